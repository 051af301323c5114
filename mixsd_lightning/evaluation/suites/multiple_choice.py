"""Multiple-choice questions, answered by the choice that a model finds most probable."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedModel
from typing_extensions import override

from mixsd_lightning.context import ChatEncoder
from mixsd_lightning.evaluation.suites.base import Score, by_group
from mixsd_lightning.evaluation.suites.continuations import score_texts
from mixsd_lightning.evaluation.suites.data_suite import DataSuite
from mixsd_lightning.records import Row, read_rows


@dataclass(frozen=True)
class ChoiceQuestion:
    """A text and the ways in which it may go on."""

    context: str
    choices: tuple[str, ...]
    gold: int
    """Number of the right choice, from 0."""
    group: str = ""


class ChoiceSuite(DataSuite[ChoiceQuestion]):
    """Share of questions whose right choice is the most probable continuation of the context, after a space."""

    normalize = True
    """Compare log-probabilities per character, which is lm-evaluation-harness's ``acc_norm``, and not in sum (``acc``)."""

    @property
    @override
    def settings(self) -> dict[str, Any]:
        return {**super().settings, "normalize": self.normalize}

    @override
    def measure(self, model: PreTrainedModel, encoder: ChatEncoder) -> dict[str, Score]:
        found = score_texts(
            model,
            encoder,
            [question.context for question in self.examples],
            [[f" {choice}" for choice in question.choices] for question in self.examples],
            name=self.name,
            batch_size=self.batch_size,
        )
        right = []
        for question, scores in zip(self.examples, found, strict=True):
            sizes = [len(choice) if self.normalize else 1 for choice in question.choices]
            chosen = np.argmax([score.log_prob / size for score, size in zip(scores, sizes, strict=True)])
            right.append(float(chosen == question.gold))
        return by_group(self.name, right, [question.group for question in self.examples])


class MultipleChoice(ChoiceSuite):
    r"""Your own questions. Nothing is generated, so they are quick to measure.

    Each line of the file is a JSON object:

    * ``question``: the text that a choice continues, for example ``"Question: Which is a mammal?\nAnswer:"``;
    * ``choices``: two texts or more; a space is put before each;
    * ``answer``: the number of the right choice, from 0, or its text;
    * ``group`` (in every line or in none): questions of a group also have a score of their own.
    """

    def __init__(
        self,
        file: str,
        name: str = "multiple_choice",
        normalize: bool = True,
        limit: int = 0,
        batch_size: int = 32,
        every_n_validations: int = 0,
    ) -> None:
        """
        Args:
            file: The questions, as JSON lines.
            name: Of the score; several files need different names.
            normalize: Compare log-probabilities per character, so that long choices are not at a disadvantage.
            limit: Ask so many questions, at even distances in the file; 0 asks all.
            batch_size: Choices that are scored at once.
            every_n_validations: Measure at every n-th validation and at the last; 0 is at the last alone.

        Raises:
            UserError: if a number is out of range.
        """
        self.name = name
        super().__init__(limit, batch_size, every_n_validations)
        self.file = file
        self.normalize = normalize

    @override
    def load(self) -> Sequence[ChoiceQuestion]:
        return [_question(row) for row in read_rows(Path(self.file).expanduser())]


def _question(row: Row) -> ChoiceQuestion:
    choices = row.texts("choices")
    answer = row.fields.get("answer")
    # A choice may be a number, too: as text, it is the choice of that text.
    gold = choices.index(answer) if answer in choices else row.index("answer", len(choices))
    group = row.text("group") if "group" in row.fields else ""
    return ChoiceQuestion(row.text("question"), choices, gold, group)
