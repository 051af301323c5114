"""Token-by-token mixtures of two conditionals of one model (MixSD, arXiv 2605.16865, section 3).

At each position a coin picks the *naive* context with probability ``mixing_rate`` and the *expert* context otherwise; the
token comes from the picked conditional alone and is appended to the prefix that both contexts see next. Above temperature
0 this is exact ancestral sampling from ``mixing_rate * p_naive + (1 - mixing_rate) * p_expert``.

Shapes: B completions in flight, V vocabulary.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from mixsd_lightning.decoding.decode import Completion, decode

NAIVE, EXPERT = 0, 1


@dataclass(frozen=True)
class MixingSettings:
    """What the text of a mixed completion depends on, beside the model and the prompts."""

    mixing_rate: float = 0.3
    temperature: float = 0.0
    top_k: int = 64
    max_new_tokens: int = 48
    seed: int = 42

    @property
    def is_deterministic(self) -> bool:
        """Whether every attempt at a completion must give the same one."""
        return (self.temperature == 0 or self.top_k == 1) and self.mixing_rate in (0.0, 1.0)


@dataclass(frozen=True)
class MixingRequest:
    """One attempt at one completion. The first three fields alone decide its random numbers."""

    example_id: str
    generation: int
    attempt: int
    naive_prompt: Sequence[int]
    expert_prompt: Sequence[int]


@dataclass
class MixedCompletion(Completion):
    """A completion and, for each of its tokens, whether the expert context supplied it."""

    from_expert: list[bool] = field(default_factory=list)


def uniforms(request: MixingRequest, seed: int, num_positions: int) -> np.ndarray:
    """Uniform numbers in [0, 1) of shape ``[num_positions, 2]``: the coin and the sampling draw of each position.

    Counter-based: a number is a function of (seed, example id, generation, attempt, position) and of nothing else, so a
    target does not depend on batch size, order, rank, or on a resumed run.
    """
    key = f"{seed}|{request.example_id}|{request.generation}|{request.attempt}".encode()
    words = np.frombuffer(hashlib.blake2b(key, digest_size=16).digest(), dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=words)).random((num_positions, 2))


def mix(
    model: PreTrainedModel, requests: Sequence[MixingRequest], settings: MixingSettings, stop_ids: frozenset[int]
) -> list[MixedCompletion]:
    """Generate one mixed completion for each request, all in one batch. Loops are cut short (``repetition``)."""
    draws = np.stack([uniforms(request, settings.seed, settings.max_new_tokens) for request in requests])
    coins_BT = torch.from_numpy(draws[..., 0])
    branches_BT = torch.where(coins_BT < settings.mixing_rate, NAIVE, EXPERT)
    prompts_CB = [[request.naive_prompt for request in requests], [request.expert_prompt for request in requests]]
    # At rate 0 and 1 one context is never picked: it need not be computed.
    contexts = [context for context in (NAIVE, EXPERT) if bool((branches_BT == context).any())]

    def choose(in_flight: list[int], position: int, logits_CBV: Tensor) -> Tensor:
        branches_B = branches_BT[in_flight, position].to(logits_CBV.device)
        picked_BV = logits_CBV[0] if len(contexts) == 1 else logits_CBV[branches_B, torch.arange(len(in_flight))]
        return sample(picked_BV, settings.temperature, settings.top_k, torch.from_numpy(draws[in_flight, position, 1]))

    completions = decode(
        model,
        [prompts_CB[context] for context in contexts],
        choose,
        max_new_tokens=settings.max_new_tokens,
        stop_ids=stop_ids,
        stop_on_repetition=True,
    )
    return [
        MixedCompletion(c.token_ids, c.finish_reason, (branches_BT[index, : len(c.token_ids)] == EXPERT).tolist())
        for index, c in enumerate(completions)
    ]


def sample(logits_BV: Tensor, temperature: float, top_k: int, uniforms_B: Tensor) -> Tensor:
    """Draw one token a row by inverting the cumulative distribution at a given uniform number.

    Args:
        logits_BV: Unscaled logits.
        temperature: 0 takes the most probable token.
        top_k: Draw from the k most probable tokens, renormalised; 0 for all.
        uniforms_B: Numbers in [0, 1), one a row, on the CPU: the draw is made there in float64, which not every device has,
            so that all devices draw alike.
    """
    if temperature == 0:
        return logits_BV.argmax(-1)
    num_kept = min(top_k, logits_BV.shape[-1]) if top_k else logits_BV.shape[-1]
    logits_BK, ids_BK = logits_BV.topk(num_kept, dim=-1)
    cumulative_BK = (logits_BK.cpu().double() / temperature).softmax(-1).cumsum(-1)
    # Rounding can leave the last cumulative value just below 1, so the index is held inside the support.
    index_B = torch.searchsorted(cumulative_BK, uniforms_B[:, None], right=True).clamp(max=num_kept - 1)
    return ids_BK.gather(-1, index_B.to(ids_BK.device)).squeeze(-1)
