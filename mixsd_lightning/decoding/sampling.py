"""Next-token distributions and draws from them, by inversion of a uniform number.

Shapes: N distributions, V vocabulary, K tokens of a support.
"""

from typing import NamedTuple

import numpy as np
from torch import Tensor


class Support(NamedTuple):
    """The tokens that may come next, most probable first, and their cumulative probabilities."""

    token_ids: np.ndarray
    cumulative: np.ndarray

    def pick(self, uniform: float) -> int:
        """The token at a uniform number in [0, 1)."""
        # Rounding can leave the last cumulative value just below 1, so the index is held inside the support.
        index = min(int(self.cumulative.searchsorted(uniform, side="right")), len(self.token_ids) - 1)
        return int(self.token_ids[index])


def supports(logits_NV: Tensor, temperature: float, top_k: int) -> list[Support]:
    """What a draw at a temperature can give, for every row of logits.

    Args:
        logits_NV: Unscaled logits.
        temperature: 0 leaves only the most probable token.
        top_k: Keep the k most probable tokens, renormalised; 0 for all.
    """
    if temperature == 0:
        return [Support(ids, np.ones(1)) for ids in logits_NV.argmax(-1, keepdim=True).cpu().numpy()]
    num_kept = min(top_k, logits_NV.shape[-1]) if top_k else logits_NV.shape[-1]
    logits_NK, ids_NK = logits_NV.topk(num_kept, dim=-1)
    # On the CPU in float64, which not every device has, so that all devices draw alike.
    cumulative_NK = (logits_NK.cpu().double() / temperature).softmax(-1).cumsum(-1)
    return [Support(*pair) for pair in zip(ids_NK.cpu().numpy(), cumulative_NK.numpy(), strict=True)]
