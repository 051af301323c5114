"""Which ending of an everyday scene makes sense."""

import re

from typing_extensions import override

from mixsd_lightning.evaluation.suites.multiple_choice import ChoiceQuestion, ChoiceSuite
from mixsd_lightning.records import DataSet

_DATA = DataSet("hellaswag/validation*.jsonl", "Rowan/hellaswag", hub_split="validation")
_MARK = re.compile(r"\[[^\]]*\]")


class HellaSwag(ChoiceSuite):
    """10 042 scenes with four endings (Zellers et al., arXiv 1905.07830).

    Files `hellaswag/validation*.jsonl`, Hub `Rowan/hellaswag`. Text and score are those of lm-evaluation-harness's
    ``acc_norm``.
    """

    name = "hellaswag"

    def __init__(
        self, data_dir: str | None = None, limit: int = 0, batch_size: int = 32, every_n_validations: int = 0
    ) -> None:
        """
        Args:
            data_dir: Folder with the data set's files; by default it comes from the Hugging Face Hub.
            limit: Ask so many scenes, at even distances in the data set; 0 asks all.
            batch_size: Endings that are scored at once.
            every_n_validations: Measure at every n-th validation and at the last; 0 is at the last alone.

        Raises:
            UserError: if a number is out of range.
        """
        super().__init__(limit, batch_size, every_n_validations)
        self.data_dir = data_dir

    @override
    def load(self) -> list[ChoiceQuestion]:
        questions = []
        for row in _DATA.rows(self.data_dir):
            scene = f"{row.text('ctx_a')} {row.text('ctx_b', may_be_empty=True).capitalize()}"
            endings = tuple(map(clean, row.texts("endings")))
            context = clean(f"{row.text('activity_label')}: {scene}")
            questions.append(ChoiceQuestion(context, endings, row.index("label", len(endings))))
        return questions


def clean(text: str) -> str:
    """Text without the marks that stand in what was taken from WikiHow.

    >>> clean("How to swim [title] Get wet. [step] Begin  slowly.")
    'How to swim. Get wet. Begin slowly.'
    """
    sentences = text.strip().replace(" [title]", ". ")
    return _MARK.sub("", sentences).replace("  ", " ")
