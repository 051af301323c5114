"""Negative log-likelihood of target tokens.

Shapes: B batch, T target length, V vocabulary.
"""

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy


def target_nll(logits_BTV: Tensor, target_ids_BT: Tensor, target_mask_BT: Tensor) -> tuple[Tensor, Tensor]:
    """Summed negative log-likelihood of the masked target tokens, in nats, and how many there are.

    The sum and the count stay apart so that the caller can divide by the number of valid tokens of the *global* batch
    (all micro-batches, all ranks) instead of averaging averages.

    Args:
        logits_BTV: Row ``t`` predicts ``target_ids_BT[:, t]``. Log-probabilities are computed in float32.
        target_ids_BT: Token ids; anything where the mask is zero.
        target_mask_BT: True for tokens that count.

    Returns:
        ``(nll_sum, num_tokens)``, both scalars. With no valid token the sum is 0 and still part of the graph.
    """
    logits_NV = logits_BTV[target_mask_BT].float()
    nll_sum = cross_entropy(logits_NV, target_ids_BT[target_mask_BT], reduction="sum")
    return nll_sum, torch.count_nonzero(target_mask_BT)
