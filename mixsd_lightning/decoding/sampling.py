"""Next-token distributions and draws from them, by inversion of a uniform number.

Shapes: N distributions, V vocabulary, K tokens of a support.
"""

from bisect import bisect_right
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from torch import Tensor


class Support(NamedTuple):
    """The tokens that may come next, most probable first, and their cumulative probabilities."""

    token_ids: Sequence[int] | np.ndarray
    cumulative: Sequence[float] | np.ndarray

    def pick(self, uniform: float) -> int:
        """The token at a uniform number in [0, 1)."""
        # Rounding can leave the last cumulative value just below 1, so the index is held inside the support.
        index = min(bisect_right(self.cumulative, uniform), len(self.token_ids) - 1)
        return int(self.token_ids[index])


def supports(logits_NV: Tensor, temperature: float, top_k: int) -> list[Support]:
    """What a draw at a temperature can give, for every row of logits.

    Args:
        logits_NV: Unscaled logits.
        temperature: 0 leaves only the most probable token.
        top_k: Keep the k most probable tokens, renormalised; 0 for all.
    """
    if temperature == 0:
        # Many are kept for long. As plain numbers they do not pin the memory of a forward among which they were made.
        return [Support((token,), (1.0,)) for token in logits_NV.argmax(-1).tolist()]
    num_kept = min(top_k, logits_NV.shape[-1]) if top_k else logits_NV.shape[-1]
    logits_NK, ids_NK = logits_NV.topk(num_kept, dim=-1)
    # On the CPU in float64, which not every device has, so that all devices draw alike.
    cumulative_NK = (logits_NK.cpu().double() / temperature).softmax(-1).cumsum(-1)
    return [Support(*pair) for pair in zip(ids_NK.cpu().numpy(), cumulative_NK.numpy(), strict=True)]
