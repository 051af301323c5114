r"""A student nearer to the good demonstration than to the bad one (UniSD, arXiv 2605.06597).

Shapes: N token positions, V vocabulary.
"""

import torch
from torch import Tensor

from mixsd_lightning.losses.chunked import TokenLoss


class ContrastiveHinge:
    r"""Adds to another loss, at every position,

    .. math:: \lambda\,\max\big(0,\; m + |\log p_S(y) - \log p_T^+(y)| - |\log p_S(y) - \log p_T^-(y)|\big),

    with the sampled token y, and the teacher's probability of it after a right demonstration and after a wrong one
    (a :class:`~.chunked.TokenLoss`).
    """

    def __init__(
        self, loss: TokenLoss, token_ids_N: Tensor, good_N: Tensor, bad_N: Tensor, weight: float, margin: float
    ) -> None:
        """
        Args:
            loss: What it is added to.
            token_ids_N: The sampled token of every position.
            good_N: Its log-probability under the teacher that sees a right demonstration.
            bad_N: The same with a wrong demonstration; NaN where there is none, and nothing is added.
            weight: λ; 0 adds nothing.
            margin: m, in nats.
        """
        self._loss = loss
        self._token_ids_N, self._good_N, self._bad_N = token_ids_N, good_N, bad_N
        self._weight, self._margin = weight, margin
        self.hinge_sum = good_N.new_zeros((), dtype=torch.float32)
        """Hinges so far, summed over positions, before λ."""

    @torch.no_grad()
    def __call__(self, logits_NV: Tensor, rows: slice) -> Tensor:
        ids_N1 = self._token_ids_N[rows, None]
        probs_NV = logits_NV.softmax(-1)
        log_p_N = logits_NV.log_softmax(-1).gather(1, ids_N1).squeeze(1)
        to_good_N, to_bad_N = log_p_N - self._good_N[rows], log_p_N - self._bad_N[rows]
        hinge_N = (self._margin + to_good_N.abs() - to_bad_N.abs()).clamp(min=0).nan_to_num(0.0)
        slope_N = torch.where(hinge_N > 0, to_good_N.sign() - to_bad_N.sign(), 0.0) * self._weight
        self.hinge_sum += hinge_N.sum()
        losses_N = self._loss(logits_NV, rows) + self._weight * hinge_N
        # d log p(y) / d logits = onehot(y) - p
        logits_NV.sub_(probs_NV.mul_(slope_N[:, None]))
        logits_NV.scatter_add_(1, ids_N1, slope_N[:, None].to(logits_NV.dtype))
        return losses_N
