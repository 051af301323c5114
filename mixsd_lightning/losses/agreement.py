"""How much a token counts when several contexts disagree about it (UniSD, arXiv 2605.06597).

Shapes: K contexts, N token positions, B completions.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

Statistic = Literal["variance", "range"]
Level = Literal["token", "sequence"]

_SCALE_QUANTILE = 0.95


def disagreement(log_probs_KN: Tensor, lengths: Sequence[int], statistic: Statistic, level: Level) -> Tensor:
    """How far contexts are apart about the tokens of completions (N).

    Args:
        log_probs_KN: Log-probability of each completion's tokens after each context.
        lengths: Tokens of each completion, in order; they add up to N.
        statistic: Unbiased ``variance`` over contexts, or their ``range``. One context does not disagree with itself.
        level: Of every ``token``, or of the mean over the tokens of a ``sequence``, the same for all of them.
    """
    if level == "sequence":
        log_probs_KN = torch.stack([part_KT.mean(1) for part_KT in log_probs_KN.split(list(lengths), dim=1)], dim=1)
    if len(log_probs_KN) == 1:
        apart = torch.zeros_like(log_probs_KN[0])
    elif statistic == "variance":
        apart = log_probs_KN.var(0)
    else:
        apart = log_probs_KN.amax(0) - log_probs_KN.amin(0)
    return apart if level == "token" else apart.repeat_interleave(torch.tensor(list(lengths), device=apart.device))


def agreement_weights(apart_N: Tensor, strength: float) -> Tensor:
    r"""Weights :math:`1 / (1 + \gamma d_n / s)`, in which s is the 0.95 quantile of all d: they do not depend on d's unit.

    Where contexts agree the weight is 1, where they disagree as most do at worst it is :math:`1 / (1 + \gamma)`.

    Args:
        apart_N: Disagreement d of every token.
        strength: γ; 0 gives weights of 1.
    """
    scale = torch.quantile(apart_N, _SCALE_QUANTILE) if len(apart_N) else apart_N.new_zeros(())
    return 1 / (1 + strength * torch.where(apart_N > 0, apart_N / scale.clamp(min=torch.finfo(apart_N.dtype).tiny), 0.0))


def effective_sample_size(weights_N: Tensor) -> Tensor:
    r"""Share of the tokens that count, :math:`(\sum w)^2 / (N \sum w^2)`: 1 where all weights are equal."""
    return weights_N.sum().square() / (len(weights_N) * weights_N.square().sum()).clamp(min=1e-12)
