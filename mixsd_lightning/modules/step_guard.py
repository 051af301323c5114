"""Training that has gone wrong in its numbers stops before it harms the weights.

What is looked at is one step: the losses of its micro-batches and the norm of its gradient. They must be finite; a gradient that
is only large is what clipping is for.
"""

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from mixsd_lightning.errors import UserError
from mixsd_lightning.ranks import all_ranks
from mixsd_lightning.sharding import local

_WHAT_TO_DO = (
    "Nothing of this step was learnt. Lower --model.learning_rate, raise --model.warmup_steps, look at the data of that batch, or "
    "train in more precision (--trainer.precision bf16-mixed instead of 16-mixed, 32-true instead of bf16)."
)


class StepGuard:
    """Watches the losses of one optimizer step at a time."""

    def __init__(self) -> None:
        self._losses: list[tuple[int, Tensor]] = []
        """Number of the micro-batch in its epoch, and its loss; tensors, because looking at one would make a GPU wait."""

    def note(self, batch_idx: int, loss: Tensor) -> None:
        """Remember the loss of a micro-batch."""
        self._losses.append((batch_idx, loss.detach()))

    def check(self, parameters: Iterable[torch.nn.Parameter], step: int, epoch: int, scale: float | None = None) -> None:
        """Make sure that the step which is about to be made is of finite numbers. Every rank must come here.

        Args:
            parameters: What has gradients, no longer scaled.
            step: Optimizer steps before this one.
            epoch: From 0.
            scale: Of the gradient scaler, where one skips steps that overflow. It lowers its scale at each of them, until it is
                plain that not the scale is to blame.

        Raises:
            UserError: on all ranks, if a number of any rank is not finite.
        """
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        problem = self._bad_loss() or ("" if scale is not None and scale > 1 else _bad_gradient(gradients))
        self._losses.clear()
        if not all_ranks(not problem):
            problem = problem or "a loss or gradient of another process is not finite"
            raise UserError(f"Stopped before optimizer step {step + 1} (epoch {epoch}): {problem}. {_WHAT_TO_DO}")

    def _bad_loss(self) -> str:
        if self._losses:
            numbers, losses = zip(*self._losses, strict=True)
            for number, value in zip(numbers, torch.stack(losses).tolist(), strict=True):
                if not math.isfinite(value):
                    return f"the loss of batch {number} is {value}"
        return ""


def _bad_gradient(gradients: Sequence[Tensor]) -> str:
    norm = float(torch.nn.utils.get_total_norm([local(gradient) for gradient in gradients]))
    return "" if math.isfinite(norm) else f"the norm of the gradient is {norm}, though the losses here are finite"
