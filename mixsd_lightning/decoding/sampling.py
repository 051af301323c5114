"""Next-token distributions and draws from them, by inversion of a uniform number.

Shapes: N distributions, V vocabulary, K tokens of a support.
"""

import hashlib
from bisect import bisect_right
from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
from torch import Tensor


class Support(NamedTuple):
    """The tokens that may come next and their cumulative probabilities; most probable first, unless it is all tokens."""

    token_ids: Sequence[int] | np.ndarray
    cumulative: Sequence[float] | np.ndarray

    def pick(self, uniform: float) -> int:
        """The token at a uniform number in [0, 1)."""
        # Rounding can leave the last cumulative value just below 1, so the index is held inside the support.
        index = min(bisect_right(self.cumulative, uniform), len(self.token_ids) - 1)
        return int(self.token_ids[index])


def supports(logits_NV: Tensor, temperature: float, top_k: int = 0, top_p: float = 1.0) -> list[Support]:
    """What a draw at a temperature can give, for every row of logits.

    Args:
        logits_NV: Unscaled logits.
        temperature: 0 leaves only the most probable token.
        top_k: Keep the k most probable tokens, renormalised; 0 for all.
        top_p: Of these, keep the fewest most probable that have this probability together, renormalised.
    """
    if temperature == 0:
        # Many are kept for long. As plain numbers they do not pin the memory of a forward among which they were made.
        return [Support((token,), (1.0,)) for token in logits_NV.argmax(-1).tolist()]
    num_tokens = logits_NV.shape[-1]
    if top_k or top_p < 1:
        logits_NK, ids_NK = logits_NV.topk(min(top_k or num_tokens, num_tokens), dim=-1)
        all_ids = ids_NK.cpu().numpy()
    else:  # a vocabulary takes long to sort
        logits_NK = logits_NV
        all_ids = np.broadcast_to(np.arange(num_tokens), logits_NV.shape)
    # On the CPU in float64, which not every device has, so that all devices draw alike.
    cumulative_NK = (logits_NK.cpu().double() / temperature).softmax(-1).cumsum(-1).numpy()
    return list(map(Support if top_p == 1 else partial(_nucleus, top_p=top_p), all_ids, cumulative_NK))


def uniform_numbers(key: str, *shape: int) -> np.ndarray:
    """Independent uniform numbers in [0, 1) that depend on the key alone."""
    words = np.frombuffer(hashlib.blake2b(key.encode(), digest_size=16).digest(), dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=words)).random(shape)


def _nucleus(token_ids: np.ndarray, cumulative: np.ndarray, top_p: float) -> Support:
    kept = cumulative[: cumulative.searchsorted(top_p) + 1]
    return Support(token_ids[: len(kept)], kept / kept[-1])
