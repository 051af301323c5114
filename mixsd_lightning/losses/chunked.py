"""Losses over the vocabulary that never hold the logits of more than a few tokens.

The gradient is computed in the forward pass, a chunk of positions at a time, while the chunk's logits are there; nothing of
the vocabulary's size is kept for the backward pass but the gradient of the head itself.

Shapes: N token positions, H hidden, V vocabulary.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor

CHUNK_SIZE = 128
"""Positions whose logits exist at once: enough for the matrix products, little enough for the caches."""


@dataclass(frozen=True)
class Head:
    """How a model turns hidden states into logits: ``softcap(scale * (hidden @ weight.T + bias))``.

    ``softcap(z)`` is ``cap * tanh(z / cap)`` where a model has a cap (Gemma 2), and ``z`` where it has none.
    """

    weight_VH: Tensor
    bias_V: Tensor | None = None
    scale: float = 1.0
    softcap: float | None = None

    def autocast(self, hidden_NH: Tensor) -> "tuple[Tensor, Head]":
        """States and head in the precision that autocast multiplies in, if it is on; cast once instead of at each product."""
        device = hidden_NH.device.type
        if not torch.is_autocast_enabled(device):
            return hidden_NH, self
        dtype = torch.get_autocast_dtype(device)
        bias_V = None if self.bias_V is None else self.bias_V.to(dtype)
        return hidden_NH.to(dtype), replace(self, weight_VH=self.weight_VH.to(dtype), bias_V=bias_V)

    def logits(self, hidden_NH: Tensor, out_NV: Tensor | None = None) -> Tensor:
        """Logits in float32 (in float64 if the states are), written to ``out_NV`` if it is given."""
        if out_NV is None:
            logits_NV = torch.nn.functional.linear(hidden_NH, self.weight_VH, self.bias_V)
            logits_NV = logits_NV.to(torch.promote_types(logits_NV.dtype, torch.float32))
        elif out_NV.dtype != hidden_NH.dtype:
            logits_NV = out_NV.copy_(torch.nn.functional.linear(hidden_NH, self.weight_VH, self.bias_V))
        elif self.bias_V is None:
            logits_NV = torch.mm(hidden_NH, self.weight_VH.T, out=out_NV)
        else:
            logits_NV = torch.addmm(self.bias_V, hidden_NH, self.weight_VH.T, out=out_NV)
        if self.scale != 1:
            logits_NV = logits_NV.mul_(self.scale)
        if self.softcap is not None:
            logits_NV = logits_NV.div_(self.softcap).tanh_().mul_(self.softcap)
        return logits_NV


class TokenLoss(Protocol):
    """A loss of every position on its own."""

    def __call__(self, logits_NV: Tensor, rows: slice) -> Tensor:
        """Losses of the positions ``rows``; their derivatives with respect to the logits are written over the logits."""
        ...


def summed_token_loss(
    hidden_NH: Tensor, head: Head, loss: TokenLoss, weights_N: Tensor | None = None, chunk_size: int = CHUNK_SIZE
) -> tuple[Tensor, Tensor]:
    """Weighted sum of a loss over token positions, and the loss of each.

    The products run in autocast's precision where it is on, everything else in float32.

    Args:
        hidden_NH: Final hidden states of the positions that count; drop the others before.
        head: From hidden states to logits. Gradients reach its weight and its bias if they require any.
        loss: Called once for each chunk, in order.
        weights_N: Factors of the sum; 1 by default.
        chunk_size: Positions whose logits exist at once.

    Returns:
        ``(sum, losses_N)``: the sum has gradients, also with no position at all; the single losses have none.
    """
    with_gradients = torch.is_grad_enabled()
    return _SummedTokenLoss.apply(hidden_NH, head.weight_VH, head.bias_V, head, loss, weights_N, chunk_size, with_gradients)


class _SummedTokenLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_NH: Tensor,
        weight_VH: Tensor,
        bias_V: Tensor | None,
        head: Head,
        loss: TokenLoss,
        weights_N: Tensor | None,
        chunk_size: int,
        with_gradients: bool,
    ) -> tuple[Tensor, Tensor]:
        states_NH, cast = replace(head, weight_VH=weight_VH, bias_V=bias_V).autocast(hidden_NH)
        dtype = states_NH.dtype
        full = torch.promote_types(dtype, torch.float32)
        for_hidden, for_weight, for_bias = (need and with_gradients for need in ctx.needs_input_grad[:3])
        grad_hidden_NH = torch.zeros_like(hidden_NH) if for_hidden else None
        # Sums over chunks are kept in float32 also where the weight is not.
        grad_weight_VH = torch.zeros_like(weight_VH, dtype=full) if for_weight else None
        grad_bias_V = torch.zeros_like(bias_V, dtype=full) if for_bias and bias_V is not None else None
        losses_N = hidden_NH.new_empty(len(hidden_NH), dtype=full)
        # The chunks share their memory: blocks of this size that come and go would tear holes into an allocator's heap.
        buffer_NV = hidden_NH.new_empty(min(chunk_size, len(hidden_NH)), len(weight_VH), dtype=full)
        with torch.autocast(hidden_NH.device.type, enabled=False):
            for rows in _chunks(len(hidden_NH), chunk_size):
                logits_NV = cast.logits(states_NH[rows], out_NV=buffer_NV[: rows.stop - rows.start])
                slope_NV = None if head.softcap is None else 1 - (logits_NV / head.softcap).square_()
                losses_N[rows] = loss(logits_NV, rows)
                if not (for_hidden or for_weight or for_bias):
                    continue
                grad_NV = logits_NV
                if head.scale != 1:
                    grad_NV.mul_(head.scale)
                if weights_N is not None:
                    grad_NV.mul_(weights_N[rows, None].to(full))
                if slope_NV is not None:
                    grad_NV.mul_(slope_NV)
                product_NV = grad_NV.to(dtype)
                if grad_hidden_NH is not None:
                    grad_hidden_NH[rows] = product_NV @ cast.weight_VH
                if grad_weight_VH is not None:
                    _add_product(grad_weight_VH, product_NV.T, states_NH[rows])
                if grad_bias_V is not None:
                    grad_bias_V += grad_NV.sum(0)
        ctx.save_for_backward(
            grad_hidden_NH,
            None if grad_weight_VH is None else grad_weight_VH.to(weight_VH.dtype),
            None if grad_bias_V is None or bias_V is None else grad_bias_V.to(bias_V.dtype),
        )
        ctx.mark_non_differentiable(losses_N)
        return losses_N.sum() if weights_N is None else losses_N @ weights_N.to(full), losses_N

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_total: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        def scaled(gradient: Tensor | None) -> Tensor | None:
            # The usual factor is one, and the gradient of a head is large. Elsewhere than on a CPU looking would mean waiting.
            if gradient is None or (grad_total.device.type == "cpu" and grad_total == 1):
                return gradient
            return gradient * grad_total.to(gradient.dtype)

        return (*map(scaled, ctx.saved_tensors), None, None, None, None, None)


def _chunks(num_rows: int, chunk_size: int) -> Iterator[slice]:
    for start in range(0, num_rows, chunk_size):
        yield slice(start, min(start + chunk_size, num_rows))


def _add_product(sum_MN: Tensor, left_MK: Tensor, right_KN: Tensor) -> None:
    if left_MK.dtype == sum_MN.dtype:
        sum_MN.addmm_(left_MK, right_KN)  # without a temporary of the size of the head
    else:
        sum_MN += left_MK @ right_KN
