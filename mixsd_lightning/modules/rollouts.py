"""What self-distillation is trained on: prompts, what is written after them, and an objective along that.

Shapes: N tokens of all rollouts of a batch.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from typing_extensions import Self

from mixsd_lightning.decoding.generation import Completion
from mixsd_lightning.example import Example
from mixsd_lightning.losses.chunked import TokenLoss


@dataclass(frozen=True)
class PromptItem:
    """An example with its prompts: what the student sees, and what the teacher sees."""

    example: Example
    prompt_ids: list[int]
    teacher_prompt_ids: list[int]

    @property
    def num_tokens(self) -> int:
        """Length of both prompts."""
        return len(self.prompt_ids) + len(self.teacher_prompt_ids)


class PromptBatch:
    """Items to roll out. No dataclass, for the reason of :class:`~mixsd_lightning.data.base.EvalBatch`."""

    def __init__(self, items: list[PromptItem]) -> None:
        self.items = items

    def to(self, device: torch.device, **options: bool) -> Self:
        """Nothing to move: prompts are padded when they are decoded."""
        return self


@dataclass(frozen=True)
class Rollout:
    """What was written for an item."""

    item: PromptItem
    completion: Completion


@dataclass
class Objective:
    """What the student is trained on along rollouts (N tokens)."""

    loss: TokenLoss
    weights_N: Tensor | None = None
    factor: float = 1.0
    """Of the weighted sum."""

    def sums(self, num_tokens: int) -> dict[str, tuple[float, int]]:
        """What is to be logged of it, once it was used along N tokens: sums and counts of which it is the means."""
        return {}
