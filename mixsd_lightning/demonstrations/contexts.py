"""From an example and what a teacher is shown besides to chat messages (UniSD, arXiv 2605.06597).

An auxiliary context is a text that stands before the task, whatever its kind, and it never holds the answer to the task itself:
so the teacher's agreement over several of them means the same everywhere. The published code lets the gold answer into some kinds.
"""

from collections.abc import Sequence
from dataclasses import replace

from mixsd_lightning.context import Message, expert_context, naive_context
from mixsd_lightning.demonstrations.wrong_targets import WrongDemonstration
from mixsd_lightning.example import Example

_SAMPLES_HEADER = (
    "Before your task come solved samples of other tasks. They show what a good answer looks like. "
    "Do not solve them again, and do not copy from them."
)
_INSTRUCTION_HEADER = "Before your task comes some general advice on tasks of its kind."
_SEPARATOR = "=== Your task ==="


def solved_samples(demonstrations: Sequence[Example]) -> str:
    """Numbered questions, each with its canonical answer turn."""
    samples = (f"Sample {i}:\n{shown.question}\n\nAnswer {i}:\n{shown.target}" for i, shown in enumerate(demonstrations, 1))
    return "\n\n".join(samples)


def demonstrations_text(demonstrations: Sequence[Example]) -> str:
    """What stands before the task in :func:`with_demonstrations`; empty without demonstrations."""
    return f"{_SAMPLES_HEADER}\n\n{solved_samples(demonstrations)}" if demonstrations else ""


def instruction_text(instruction: str) -> str:
    """What stands before the task in :func:`with_instruction`."""
    return f"{_INSTRUCTION_HEADER}\n\n{instruction}"


def with_text_before(example: Example, text: str) -> list[Message]:
    """A text, a separator, and the plain prompt of ``example``; the plain prompt alone where there is no text."""
    return [Message("user", f"{text}\n\n{_SEPARATOR}\n\n{example.prompt}")] if text else naive_context(example)


def with_demonstrations(example: Example, demonstrations: Sequence[Example]) -> list[Message]:
    """The task after solved samples of other tasks."""
    return with_text_before(example, demonstrations_text(demonstrations))


def with_instruction(example: Example, instruction: str) -> list[Message]:
    """The task after a general instruction."""
    return with_text_before(example, instruction_text(instruction))


def negative_context(example: Example, wrong: WrongDemonstration) -> list[Message]:
    """The expert context of ``example`` with a wrong demonstration in place of the right one.

    Good and bad prompts come from the same template: they differ in content and not in layout, which the contrastive loss could
    go by otherwise.
    """
    return expert_context(replace(example, target=wrong.target, fact=wrong.fact, answer=wrong.answer))
