"""ScienceQA: multiple-choice questions of school science, without those about a picture."""

import re
from typing import Any

from typing_extensions import override

from mixsd_lightning.data.choices import ChoiceCorpus
from mixsd_lightning.lettered import LetteredQuestion, options_of
from mixsd_lightning.records import DataSet, Row

_FILE, _HUB = "scienceqa/scienceqa.jsonl", "derek-thomas/ScienceQA"
_SIZES = {"train": 6508, "validation": 2144, "test": 2224}
"""Questions without a picture in the published splits."""
# An option may go on over several lines (the closing of a letter, a verse).
_OPTION = re.compile(r"^\([A-Z]\): (.*?)(?=\n\([A-Z]\): |\Z)", re.DOTALL | re.MULTILINE)


class ScienceQA(ChoiceCorpus):
    """10 876 questions of school science that have no picture (Lu et al., arXiv 2209.09513), with lectures and explanations.

    Hub `derek-thomas/ScienceQA`, whose splits are `train`, `validation` and `test`. The file `scienceqa/scienceqa.jsonl` has
    neither splits nor explanations: it is divided in the published proportions by a digest of each question and its options, so
    the splits are as large as the published ones but not the same questions, and a question that stands there twice, even with its
    options in another order, is in one split. Numbers on the file's splits cannot be compared with published ones.
    """

    def __init__(self, data_dir: str | None = None, lecture: bool = True, **options: Any) -> None:
        """
        Args:
            data_dir: Folder with the data set's file; by default it comes from the Hugging Face Hub.
            lecture: Put the lecture on the question's skill into the prompt, where there is one.
            options: Those of `ChoiceCorpus`.
        """
        super().__init__(data_dir, **options)
        self.lecture = lecture

    @override
    def questions(self, split: str) -> list[LetteredQuestion]:
        rows = DataSet(_FILE, _HUB, hub_split=split, option="--data").rows(self.data_dir)
        if rows[0].file is None:
            return [self._published(row) for row in rows if row.fields.get("image") is None]
        return [question for question in map(_from_file, rows) if _split_of(question) == split]

    def _published(self, row: Row) -> LetteredQuestion:
        choices = row.texts("choices")
        options, gold = options_of(row, choices, choices[row.index("answer", len(choices))])
        hint, lecture = (row.text(name, may_be_empty=True).strip() for name in ("hint", "lecture"))
        return LetteredQuestion(
            row.text("question").strip(),
            options,
            gold,
            explanation=row.text("solution", may_be_empty=True).strip(),
            context="\n\n".join(filter(None, [hint, lecture if self.lecture else ""])),
            topic=row.text("topic", may_be_empty=True).strip(),
        )


def _from_file(row: Row) -> LetteredQuestion:
    stem, marker, block = row.text("question").rpartition("\nChoices:\n")
    if not marker:
        raise row.wrong("has no line 'Choices:' in the field 'question'")
    return LetteredQuestion(stem.strip(), *options_of(row, _OPTION.findall(block), row.text("answer")))


def _split_of(question: LetteredQuestion) -> str:
    """Split of a question that comes without one."""
    place = question.position * sum(_SIZES.values())
    for split, size in _SIZES.items():
        if place < size:
            return split
        place -= size
    return split
