"""How probable training targets are under a model: what training has to change it by.

Shapes: N target tokens of a batch.
"""

from collections.abc import Sequence
from itertools import chain

import torch
from torch import Tensor
from transformers import PreTrainedModel

from mixsd_lightning.data.batches import TrainBatch, TrainItem, collate_training
from mixsd_lightning.losses.chunked import summed_token_loss
from mixsd_lightning.losses.nll import TokenNLL
from mixsd_lightning.models import evaluating
from mixsd_lightning.target_states import output_head, target_states, target_tokens

IMPROBABLE = 0.01
"""Tokens of less probability than this are counted as improbable."""


def batch_nll(model: PreTrainedModel, batch: TrainBatch) -> tuple[Tensor, Tensor]:
    """Summed NLL of the targets of a batch, in nats, with gradients, and that of each of their tokens (N), without."""
    return summed_token_loss(target_states(model, batch), output_head(model), TokenNLL(target_tokens(batch)))


@torch.no_grad()
def token_nlls(model: PreTrainedModel, items: Sequence[TrainItem], batch_size: int) -> list[list[float]]:
    """NLL of every target token of every item, in nats, after the item's own prompt.

    One forward at least: where ranks share the items of a batch, one may have none and must run a sharded model like the others.
    """
    found: list[list[float]] = []
    with evaluating(model):
        for start in range(0, max(1, len(items)), batch_size):
            part = items[start : start + batch_size]
            _, nll_N = batch_nll(model, collate_training(part).to(model.device))
            found += [nlls.tolist() for nlls in nll_N.split([len(item.target_ids) for item in part])]
    return found


def likelihood_tags(nlls: Sequence[Sequence[float]]) -> dict[str, float]:
    """Tags for the NLL of targets under the base model, from that of every token of every target.

    `targets/nll_base` is the mean over tokens, `targets/nll_base_per_example` the mean over targets of their means, and
    `targets/improbable` the share of tokens that the base model gives a probability below 1 %.
    """
    tokens = torch.tensor(list(chain.from_iterable(nlls)), dtype=torch.float64)
    means = [sum(target) / len(target) for target in nlls if target]
    return {
        "targets/nll_base": float(tokens.sum()) / max(1, len(tokens)),
        "targets/nll_base_per_example": sum(means) / max(1, len(means)),
        "targets/improbable": float((tokens.neg().exp() < IMPROBABLE).sum()) / max(1, len(tokens)),
    }
