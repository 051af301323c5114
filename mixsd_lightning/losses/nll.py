"""Negative log-likelihood of target tokens.

Shapes: N token positions, V vocabulary.
"""

import torch
from torch import Tensor


class TokenNLL:
    """Negative log-likelihood of a target at every position, in nats (a :class:`~.chunked.TokenLoss`)."""

    def __init__(self, target_ids_N: Tensor) -> None:
        """
        Args:
            target_ids_N: The token that each position should predict.
        """
        self._target_ids_N = target_ids_N

    def __call__(self, logits_NV: Tensor, rows: slice) -> Tensor:
        targets_N1 = self._target_ids_N[rows, None]
        logits_NV.sub_(logits_NV.amax(-1, keepdim=True))
        target_logits_N1 = logits_NV.gather(1, targets_N1)
        total_N1 = logits_NV.exp_().sum(-1, keepdim=True)
        logits_NV.div_(total_N1)
        logits_NV.scatter_add_(1, targets_N1, torch.full_like(targets_N1, -1, dtype=logits_NV.dtype))
        return (total_N1.log_() - target_logits_N1).squeeze(1)
