"""The forward pass of training: hidden states where a target token is to be predicted, and nowhere else.

Shapes: B batch, L sequence, N target tokens of a batch, H hidden.
"""

from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from mixsd_lightning.data.batches import TrainBatch
from mixsd_lightning.errors import UserError
from mixsd_lightning.losses.chunked import Head
from mixsd_lightning.models import ATTENTION_KINDS, attends_by, evaluating, is_compiled
from mixsd_lightning.sharding import run_decoder

FINAL = -1
"""The last layer's states, after the final norm: what the head gets."""


def target_states(model: PreTrainedModel, batch: TrainBatch) -> Tensor:
    """Final hidden states at the positions that predict the batch's target tokens, row by row (N, H).

    What all rows begin with (a system prompt and the head of the user's turn) is computed once, and its keys and values serve
    every row; gradients add up through them.
    """
    return layer_states(model, batch, [FINAL])[FINAL]


def layer_states(model: PreTrainedModel, batch: TrainBatch, layers: Collection[int]) -> dict[int, Tensor]:
    """The same for several layers: 0 is the embedding, n what comes after the n-th layer, and negative numbers count from
    :data:`FINAL` backwards.
    """
    token_ids_BL, is_target_BL = batch.token_ids_BL, batch.is_target_BL
    options: dict[str, Any] = {"output_hidden_states": any(layer != FINAL for layer in layers), "use_cache": False}
    shared = batch.num_shared if _can_share(model) else 0
    if shared:
        num_rows, length = token_ids_BL.shape
        cache = run_decoder(model, input_ids=token_ids_BL[:1, :shared], use_cache=True).past_key_values
        cache.batch_repeat_interleave(num_rows)
        options |= {"past_key_values": cache, "use_cache": True}
        options["position_ids"] = torch.arange(shared, length, device=token_ids_BL.device)[None]
    output = run_decoder(model, input_ids=token_ids_BL[:, shared:], **options)
    is_predicting_BL = is_target_BL[:, shared + 1 :]
    hidden = {layer: output.last_hidden_state if layer == FINAL else output.hidden_states[layer] for layer in layers}
    return {layer: hidden_BLH[:, :-1][is_predicting_BL] for layer, hidden_BLH in hidden.items()}


def target_tokens(batch: TrainBatch) -> Tensor:
    """The tokens that :func:`target_states` predict (N)."""
    return batch.token_ids_BL[batch.is_target_BL]


def output_head(model: PreTrainedModel) -> Head:
    """The head of a model, as its config describes it."""
    layer = model.get_output_embeddings()
    config = model.config.get_text_config()
    scale = getattr(config, "logit_scale", None) or 1.0  # Cohere
    scale *= getattr(config, "lm_head_multiplier", 1.0)  # Falcon H1
    scale /= getattr(config, "logits_scaling", 1.0)  # Granite
    cap = getattr(config, "final_logit_softcapping", None) or getattr(config, "logits_soft_cap", None)  # RecurrentGemma
    return Head(layer.weight, getattr(layer, "bias", None), scale, cap)


@torch.no_grad()
def check_head(model: PreTrainedModel) -> None:
    """Make sure that :func:`output_head` is all that stands between a model's hidden states and its logits.

    Raises:
        UserError: if it is not, or there are no logits to speak of.
    """
    if model.base_model is model:
        raise UserError(
            f"--model.model_name_or_path: {type(model).__name__} does not say which part of it lies below the head, so it cannot "
            "be trained here. Choose another model."
        )
    # Some tokens, none of them padding, whose state is zero.
    ids = torch.arange(1, 9, device=model.device)[None]
    with evaluating(model):
        expected = model(input_ids=ids, use_cache=False).logits[0].float()
        hidden = model.base_model(input_ids=ids, use_cache=False).last_hidden_state[0]
    if not expected.isfinite().all():
        raise UserError(
            f"--model.model_name_or_path: the logits of this {type(model).__name__} are not finite before any training: its weights "
            "are damaged. Fetch the model again."
        )
    found = output_head(model).logits(hidden).float()
    if found.shape != expected.shape or not torch.allclose(found, expected, rtol=1e-2, atol=1e-2 * float(expected.std())):
        raise UserError(
            f"--model.model_name_or_path: {type(model).__name__} does more with its last hidden states than a head with bias, "
            "scale and soft cap, so it cannot be trained here. Choose another model."
        )


def _can_share(model: PreTrainedModel) -> bool:
    """Whether rows may go on from a common cache here."""
    # Checkpointed layers drop the cache, and a compiled model would be compiled for every length of it.
    is_checkpointed = any(getattr(module, "gradient_checkpointing", False) for module in model.modules())
    return attends_by(model, ATTENTION_KINDS) and not (model.training and is_checkpointed) and not is_compiled(model)
