"""SimpleQA: questions that models of its time could not answer."""

import ast
import random
from collections.abc import Sequence

from typing_extensions import override

from mixsd_lightning.context import user_turn
from mixsd_lightning.data.base import CorpusDataModule
from mixsd_lightning.data.wording import statement
from mixsd_lightning.errors import UserError, require
from mixsd_lightning.example import Example
from mixsd_lightning.records import DataSet, Row

_DATA = DataSet("simpleqa/simple_qa_test_set.csv", "basicv8vc/SimpleQA", option="--data")
PRESETS = {"SimpleQA": None, "SimpleQA-1600": 1600}
"""Preset -> number of questions; the second is the paper's."""
_CONCISE = "Be concise, and give the answer inside \\boxed{}."
"""What ``boxed`` asks for: the target has no reasoning."""


class SimpleQA(CorpusDataModule):
    """4326 short questions with one answer (Wei et al., arXiv 2411.04368), taught as facts.

    File `simpleqa/simple_qa_test_set.csv`, Hub `basicv8vc/SimpleQA`. The only split is `train`; asked again it is the
    memorization test. The topic of a question is its subject.
    """

    default_expert_context = "reference_solution"

    def __init__(
        self,
        preset: str = "SimpleQA-1600",
        data_dir: str | None = None,
        max_facts: int | None = None,
        answer_format: str = "boxed",
        expert_context: str | None = None,
        batch_size: int = 16,
        eval_batch_size: int = 64,
        eval_splits: Sequence[str] = ("train",),
        max_eval_examples: int | None = 200,
        seed: int = 42,
    ) -> None:
        """
        Args:
            preset: `SimpleQA` (all questions) or `SimpleQA-1600` (the paper's number of them, a random choice).
            data_dir: Folder with the data set's file; by default it comes from the Hugging Face Hub.
            max_facts: Teach so many, a random choice; by default what the preset says.
            answer_format: `boxed`, or `short` for models under about 1B.
            expert_context: How the expert is shown the answer; by default as a reference solution.
            batch_size: Examples in a training batch, per device.
            eval_batch_size: Questions that are answered at once during validation.
            eval_splits: Splits that are answered at each validation.
            max_eval_examples: Ask at most this many questions of each split (a fixed random choice); null asks all.
            seed: Decides the choice of questions and the order of training examples.
        """
        super().__init__(batch_size, eval_batch_size, eval_splits, max_eval_examples, seed, expert_context)
        if preset not in PRESETS:
            raise UserError(f"--data.preset: there is no '{preset}'; choose from {', '.join(PRESETS)}.")
        if answer_format not in ("boxed", "short"):
            raise UserError(f"--data.answer_format: '{answer_format}' is none of boxed, short.")
        self.max_facts = PRESETS[preset] if max_facts is None else max_facts
        require("data.max_facts", max_facts, self.max_facts is None or self.max_facts >= 1, "at least 1")
        self.data_dir = data_dir
        self.answer_format = answer_format

    @override
    def build_splits(self, names: Sequence[str]) -> dict[str, list[Example]]:
        rows = _DATA.rows(self.data_dir)
        numbers = random.Random(f"{self.seed}|simpleqa").sample(range(len(rows)), len(rows))[: self.max_facts]
        return {"train": [self._example(number, rows[number]) for number in sorted(numbers)]}

    def _example(self, number: int, row: Row) -> Example:
        # White space within an answer says nothing, and a short answer is a single line.
        question, answer = row.text("problem").strip(), " ".join(row.text("answer").split())
        return Example(
            id=f"train-{number}",
            question=question,
            prompt=f"{question}\n\n{_CONCISE}" if self.answer_format == "boxed" else user_turn(question, "short"),
            answer=answer,
            target=f"\\boxed{{{answer}}}" if self.answer_format == "boxed" else answer,
            fact=statement(question, answer),
            answer_format=self.answer_format,
            subject=_topic(row),
        )


def _topic(row: Row) -> str:
    """Topic in the metadata, which are a Python dict written as text; empty where there is none."""
    try:
        metadata = ast.literal_eval(str(row.fields.get("metadata")))
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        return ""
    return str(metadata.get("topic", "")) if isinstance(metadata, dict) else ""
