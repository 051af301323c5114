"""What all corpora of multiple-choice questions share."""

import string
from abc import abstractmethod
from collections import Counter
from collections.abc import Sequence
from typing import Any

from typing_extensions import override

from mixsd_lightning.context import user_turn
from mixsd_lightning.data.slices import SlicedCorpus
from mixsd_lightning.data.wording import statement
from mixsd_lightning.example import Example
from mixsd_lightning.lettered import LetteredQuestion


class ChoiceCorpus(SlicedCorpus):
    """Base of the corpora of multiple-choice questions: a subclass only says which questions a split has (:meth:`questions`)."""

    available_splits: tuple[str, ...] = ("train", "validation", "test")

    def __init__(self, data_dir: str | None = None, reasoning: bool = True, **options: Any) -> None:
        """
        Args:
            data_dir: Folder with the data set's file; by default it comes from the Hugging Face Hub.
            reasoning: Ask for reasoning before the answer, and teach the explanation; else the letter alone.
            options: Those of `SlicedCorpus`.
        """
        super().__init__(data_dir, **options)
        self.reasoning = reasoning

    @abstractmethod
    def questions(self, split: str) -> list[LetteredQuestion]:
        """All questions of a split."""

    @override
    def build_splits(self, names: Sequence[str]) -> dict[str, list[Example]]:
        return {name: self._examples(name) for name in names}

    def _examples(self, split: str) -> list[Example]:
        # Data sets repeat a question now and then, and each time it needs an id of its own.
        seen: Counter[str] = Counter()
        known = []
        for question in self.questions(split):
            seen[question.identity] += 1
            number = seen[question.identity]
            known.append((f"{split}-{question.identity}" + (f"-{number}" if number > 1 else ""), question))
        return [self._example(example_id, question) for example_id, question in self.slice_of(split, known)]

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
