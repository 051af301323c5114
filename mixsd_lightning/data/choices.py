"""What all corpora of multiple-choice questions share."""

import string
from abc import abstractmethod
from collections import Counter
from collections.abc import Sequence

from typing_extensions import override

from mixsd_lightning.context import user_turn
from mixsd_lightning.data.base import CorpusDataModule
from mixsd_lightning.data.slices import random_slice
from mixsd_lightning.data.wording import statement
from mixsd_lightning.errors import require
from mixsd_lightning.example import Example
from mixsd_lightning.lettered import LetteredQuestion


class ChoiceCorpus(CorpusDataModule):
    """Base of the corpora of multiple-choice questions: a subclass only says which questions a split has (:meth:`questions`)."""

    available_splits: tuple[str, ...] = ("train", "validation", "test")

    def __init__(
        self,
        data_dir: str | None,
        max_examples: int | None,
        reasoning: bool,
        expert_context: str | None,
        batch_size: int,
        eval_batch_size: int,
        eval_splits: Sequence[str],
        max_eval_examples: int | None,
        seed: int,
    ) -> None:
        super().__init__(batch_size, eval_batch_size, eval_splits, max_eval_examples, seed, expert_context)
        require("data.max_examples", max_examples, max_examples is None or max_examples >= 1, "at least 1, or null for all")
        self.data_dir = data_dir
        self.max_examples = max_examples
        self.reasoning = reasoning

    @abstractmethod
    def questions(self, split: str) -> list[LetteredQuestion]:
        """All questions of a split."""

    @override
    def build_splits(self, names: Sequence[str]) -> dict[str, list[Example]]:
        return {name: self._examples(name) for name in names}

    def _examples(self, split: str) -> list[Example]:
        questions = self.questions(split)
        # Data sets repeat a question now and then, and each time it needs an id of its own.
        seen: Counter[str] = Counter()
        ids = []
        for question in questions:
            seen[question.identity] += 1
            number = seen[question.identity]
            ids.append(f"{split}-{question.identity}" + (f"-{number}" if number > 1 else ""))
        chosen = random_slice(len(questions), self.max_examples, f"{self.seed}|{split}|{type(self).__name__}")
        return [self._example(ids[number], questions[number]) for number in chosen]

    def _example(self, example_id: str, question: LetteredQuestion) -> Example:
        options, letter = question.shuffled(self.seed)
        context = [f"Context: {question.context}"] if question.context else []
        explanation = [question.explanation] if self.reasoning and question.explanation else []
        return Example(
            id=example_id,
            question=f"{question.stem}\n\n{options}",
            prompt=user_turn("\n\n".join([question.stem, *context, options]), "choice" if self.reasoning else "letter"),
            answer=letter,
            target="\n".join([*explanation, f"Answer: {letter}"]),
            fact=statement(
                f'The right answer to "{_one_line(question.stem)}" is:', _one_line(question.options[question.gold])
            ),
            answer_format="choice",
            subject=question.topic,
            wrong_answers=tuple(other for other in string.ascii_uppercase[: len(question.options)] if other != letter),
        )


def _one_line(text: str) -> str:
    return " ".join(text.split())
