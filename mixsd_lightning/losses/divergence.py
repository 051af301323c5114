r"""How far a student's next-token distributions are from a teacher's.

With the teacher's distribution q and the student's p, both at the distillation temperature :math:`\tau`:

* ``forward_kl``: :math:`\mathrm{KL}(q\|p)`, ``reverse_kl``: :math:`\mathrm{KL}(p\|q)`;
* ``mixed``: :math:`w\,\mathrm{KL}(q\|p) + (1-w)\,\mathrm{KL}(p\|q)`;
* ``jsd``: the generalized Jensen-Shannon divergence (Agarwal et al., arXiv 2306.13649, eq. 1) divided by :math:`w(1-w)`,

  .. math:: \frac{w\,\mathrm{KL}(q\|m) + (1-w)\,\mathrm{KL}(p\|m)}{w(1-w)}, \qquad m = wq + (1-w)p.

  Undivided, it vanishes towards both ends; divided, it goes over into the forward KL at w = 0 and the reverse KL at w = 1.

There is no factor :math:`\tau^2`: what is logged is the divergence itself.

Shapes: N token positions, V vocabulary, K tokens of a support.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from mixsd_lightning.losses.chunked import Head, summed_token_loss

Kind = Literal["forward_kl", "reverse_kl", "mixed", "jsd"]

# Positions compared at once on a CPU: their distributions stay in its caches from one operation to the next.
_CPU_BLOCK = 8
# Where most positions agree exactly, the others are still trained on.
_LEAST_LIMIT = 1e-6


@dataclass(frozen=True)
class DivergenceSettings:
    """Which divergence, and over what."""

    kind: Kind = "forward_kl"
    weight: float = 0.5
    """Share of the forward KL in ``mixed``; where ``jsd`` stands between forward (0) and reverse (1)."""
    temperature: float = 1.0
    """Divides the logits of both."""
    top_k: int = 0
    """Compare the probabilities of the teacher's k likeliest tokens and of all others together; 0 for the whole vocabulary."""
    max_per_token: float | None = None
    """Divergences above this count as this, and have no gradient."""


def divergence(student_logits_NV: Tensor, teacher_logits_NV: Tensor, settings: DivergenceSettings) -> Tensor:
    """Divergence at every position, in nats, with gradients for the student's logits alone."""
    return _Divergence.apply(student_logits_NV, teacher_logits_NV, settings)


class TeacherDivergence:
    """Divergence from a teacher at every position (a :class:`~.chunked.TokenLoss`)."""

    def __init__(self, teacher_hidden_NH: Tensor, teacher_head: Head, settings: DivergenceSettings) -> None:
        """
        Args:
            teacher_hidden_NH: The teacher's final hidden states at the student's positions.
            teacher_head: The teacher's head.
            settings: Which divergence.
        """
        self._teacher_hidden_NH, self._teacher_head = teacher_head.autocast(teacher_hidden_NH)
        self._settings = settings
        self._buffer_NV: Tensor | None = None
        """Memory for the teacher's logits, shared by all chunks."""
        self.divergence_sum = teacher_hidden_NH.new_zeros((), dtype=torch.float32)
        """Divergences so far, summed over positions, before any limit."""
        self.entropy_sum = teacher_hidden_NH.new_zeros((), dtype=torch.float32)
        """Entropy of the student's distributions so far, summed over positions, in nats."""

    @torch.no_grad()
    def limit_to_quantile(
        self,
        student_hidden_NH: Tensor,
        student_head: Head,
        quantile: float,
        gather: Callable[[Tensor], Tensor] = lambda losses_N: losses_N,
    ) -> float:
        """Let divergences above a quantile of those at all positions count as that quantile, without gradient.

        It takes a pass over all positions before the one that trains.

        Args:
            student_hidden_NH: The student's final hidden states.
            student_head: The student's head.
            quantile: 0.9 limits a tenth of the positions.
            gather: Turns the divergences here into those that the quantile is one of.

        Returns:
            The limit, in nats.
        """
        losses_N = gather(summed_token_loss(student_hidden_NH, student_head, self)[1])
        self.divergence_sum.zero_()
        self.entropy_sum.zero_()
        limit = max(float(torch.quantile(losses_N, quantile)), _LEAST_LIMIT) if len(losses_N) else math.inf
        self._settings = replace(self._settings, max_per_token=limit)
        return limit

    @torch.no_grad()
    def __call__(self, logits_NV: Tensor, rows: slice) -> Tensor:
        if self._buffer_NV is None or len(self._buffer_NV) < len(logits_NV):
            self._buffer_NV = torch.empty_like(logits_NV)
        teacher_NV = self._teacher_head.logits(self._teacher_hidden_NH[rows], out_NV=self._buffer_NV[: len(logits_NV)])
        block_size = _CPU_BLOCK if logits_NV.device.type == "cpu" else len(logits_NV)
        blocks = zip(logits_NV.split(block_size), teacher_NV.split(block_size), strict=True)
        return torch.cat([self._compare(*block) for block in blocks])

    def _compare(self, student_NV: Tensor, teacher_NV: Tensor) -> Tensor:
        losses_N, entropy_N = _divergence(student_NV, teacher_NV, self._settings)
        self.divergence_sum += losses_N.sum()
        self.entropy_sum += entropy_N.sum()
        return _limited(losses_N, student_NV, self._settings)


class _Divergence(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, student_NV: Tensor, teacher_NV: Tensor, settings: DivergenceSettings) -> Tensor:
        grad_NV = student_NV.clone()
        losses_N, _ = _divergence(grad_NV, teacher_NV.clone(), settings)
        losses_N = _limited(losses_N, grad_NV, settings)
        ctx.save_for_backward(grad_NV)
        return losses_N

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_N: Tensor) -> tuple[Tensor, None, None]:
        (grad_NV,) = ctx.saved_tensors
        return grad_N[:, None] * grad_NV, None, None


def _divergence(student_NV: Tensor, teacher_NV: Tensor, settings: DivergenceSettings) -> tuple[Tensor, Tensor]:
    """Divergences and the student's entropies; overwrites both logits, the student's with the divergences' derivatives."""
    if settings.temperature != 1:
        student_NV /= settings.temperature
        teacher_NV /= settings.temperature
    p_NV, q_NV = _normalise(student_NV), _normalise(teacher_NV)
    entropy_N = -_dot(p_NV, student_NV)
    if 0 < settings.top_k < student_NV.shape[1]:
        ids_NK = teacher_NV.topk(settings.top_k, sorted=False).indices
        log_p_NB, log_q_NB = _buckets(student_NV, ids_NK), _buckets(teacher_NV, ids_NK)
        # Every token of the last bucket takes its share of the bucket's derivative.
        student_NV.sub_(log_p_NB[:, -1:]).exp_()
        losses_N = _compare(log_p_NB, log_q_NB, log_p_NB.exp(), log_q_NB.exp(), settings)
        student_NV.mul_(log_p_NB[:, -1:]).scatter_(1, ids_NK, log_p_NB[:, :-1])
    else:
        losses_N = _compare(student_NV, teacher_NV, p_NV, q_NV, settings)
    if settings.temperature != 1:
        student_NV /= settings.temperature
    return losses_N, entropy_N


def _normalise(logits_NV: Tensor) -> Tensor:
    """Make logits log-probabilities, in place, and return the probabilities."""
    logits_NV.sub_(logits_NV.amax(-1, keepdim=True))
    probs_NV = logits_NV.exp()
    total_N1 = probs_NV.sum(-1, keepdim=True)
    logits_NV.sub_(total_N1.log())
    return probs_NV.div_(total_N1)


def _limited(losses_N: Tensor, grad_NV: Tensor, settings: DivergenceSettings) -> Tensor:
    if settings.max_per_token is None:
        return losses_N
    grad_NV.masked_fill_((losses_N > settings.max_per_token)[:, None], 0.0)
    return losses_N.clamp(max=settings.max_per_token)


def _compare(log_p_NV: Tensor, log_q_NV: Tensor, p_NV: Tensor, q_NV: Tensor, settings: DivergenceSettings) -> Tensor:
    """Divergences of p from q; their derivatives with respect to the logits of p are written over its logarithms."""
    kind, weight = settings.kind, settings.weight
    if kind == "forward_kl" or (kind == "jsd" and weight == 0):
        return _forward_kl(log_p_NV, log_q_NV, p_NV, q_NV)
    if kind == "reverse_kl" or (kind == "jsd" and weight == 1):
        return _reverse_kl(log_p_NV, log_q_NV, p_NV)
    if kind == "jsd":
        return _jensen_shannon(log_p_NV, log_q_NV, p_NV, q_NV, weight)
    grad_forward_NV = log_p_NV.clone()
    forward_N = _forward_kl(grad_forward_NV, log_q_NV, p_NV, q_NV)
    reverse_N = _reverse_kl(log_p_NV, log_q_NV, p_NV)
    log_p_NV.lerp_(grad_forward_NV, weight)
    return torch.lerp(reverse_N, forward_N, weight)


def _forward_kl(log_p_NV: Tensor, log_q_NV: Tensor, p_NV: Tensor, q_NV: Tensor) -> Tensor:
    losses_N = _dot(q_NV, log_q_NV) - _dot(q_NV, log_p_NV)
    torch.sub(p_NV, q_NV, out=log_p_NV)
    return losses_N


def _reverse_kl(log_p_NV: Tensor, log_q_NV: Tensor, p_NV: Tensor) -> Tensor:
    log_ratio_NV = log_p_NV.sub_(log_q_NV)
    losses_N = _dot(p_NV, log_ratio_NV)
    log_ratio_NV.sub_(losses_N[:, None]).mul_(p_NV)
    return losses_N


def _jensen_shannon(log_p_NV: Tensor, log_q_NV: Tensor, p_NV: Tensor, q_NV: Tensor, weight: float) -> Tensor:
    difference_NV = torch.sub(log_q_NV, log_p_NV, out=log_p_NV)
    ratio_NV = _log_mixture(difference_NV, weight).neg_()
    from_p_N = _dot(p_NV, ratio_NV)
    from_q_N = -_dot(q_NV, _log_mixture(difference_NV.neg_(), 1 - weight))
    torch.mul(ratio_NV.sub_(from_p_N[:, None]), p_NV, out=log_p_NV).div_(weight)
    return from_q_N / (1 - weight) + from_p_N / weight


def _log_mixture(difference_NV: Tensor, weight: float) -> Tensor:
    r""":math:`\log(w e^d + 1 - w)`. Relative to p it is precise also where w is small; :math:`\log m - \log p` would not be."""
    return torch.logaddexp(difference_NV + math.log(weight), difference_NV.new_tensor(math.log1p(-weight)))


def _buckets(log_probs_NV: Tensor, ids_NK: Tensor) -> Tensor:
    """Log-probabilities of some tokens and, last, of all others together."""
    others_N1 = log_probs_NV.scatter(1, ids_NK, -torch.inf).logsumexp(-1, keepdim=True)
    return torch.cat([log_probs_NV.gather(1, ids_NK), others_N1], dim=1)


def _dot(left_NV: Tensor, right_NV: Tensor) -> Tensor:
    return torch.einsum("nv,nv->n", left_NV, right_NV)  # without a temporary of their size
