"""Batched greedy decoding, for answers that are scored. It works with every causal language model of transformers.

Shapes: N completions in flight, V vocabulary, L cached length.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from mixsd_lightning.models import inference


@dataclass
class Completion:
    """Generated token ids (with the stop token, if there is one) and why generation ended."""

    token_ids: list[int] = field(default_factory=list)
    finish_reason: str = ""
    """``stop`` or ``max_new_tokens``."""


class CachedRows:
    """Left-padded prompts with their key-value cache, extended by one token a step.

    Attributes:
        logits_NV: Next-token logits of each row, float32.
    """

    logits_NV: Tensor

    def __init__(self, model: PreTrainedModel, prompts: Sequence[Sequence[int]]) -> None:
        self._model = model
        self._cache = DynamicCache(config=model.config)
        longest = max(map(len, prompts))
        # Any id does for padding: the mask hides it.
        ids_NL = torch.tensor([[0] * (longest - len(prompt)) + list(prompt) for prompt in prompts], device=model.device)
        lengths_N = torch.tensor([len(prompt) for prompt in prompts], device=model.device)
        columns_L = torch.arange(longest, device=model.device)
        self._mask_NL = (columns_L >= longest - lengths_N[:, None]).long()
        self._next_position_N = lengths_N
        self._forward(ids_NL, (self._mask_NL.cumsum(-1) - 1).clamp(min=0))

    def append(self, tokens_N: Tensor) -> None:
        """Append one token to every row and compute the next logits."""
        self._mask_NL = torch.cat([self._mask_NL, self._mask_NL.new_ones(len(tokens_N), 1)], dim=1)
        self._forward(tokens_N[:, None], self._next_position_N[:, None])
        self._next_position_N = self._next_position_N + 1

    def keep(self, rows: Sequence[int]) -> None:
        """Drop all rows but these, in this order."""
        index = torch.tensor(list(rows), device=self._mask_NL.device)
        self._cache.batch_select_indices(index)
        self._mask_NL = self._mask_NL[index]
        self._next_position_N = self._next_position_N[index]
        self.logits_NV = self.logits_NV[index]

    def _forward(self, ids_NL: Tensor, positions_NL: Tensor) -> None:
        output = self._model(
            input_ids=ids_NL,
            attention_mask=self._mask_NL,
            position_ids=positions_NL,
            past_key_values=self._cache,
            use_cache=True,
            logits_to_keep=1,
        )
        self.logits_NV = output.logits[:, -1].float()


def generate_greedy(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    stop_ids: frozenset[int],
    batch_size: int = 64,
) -> list[Completion]:
    """Greedy completions of ``prompts``, in order; the most probable token at every position.

    Args:
        model: A causal language model; it is put into eval mode for the call.
        prompts: Prompt token ids.
        max_new_tokens: Longest completion, stop token included.
        stop_ids: Tokens that end a completion.
        batch_size: Prompts answered at once.
    """
    # Similar lengths together, so that little of a batch is padding.
    order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
    completions: dict[int, Completion] = {}
    for start in range(0, len(order), batch_size):
        indices = order[start : start + batch_size]
        batch = _generate_batch(model, [prompts[index] for index in indices], max_new_tokens, stop_ids)
        completions.update(zip(indices, batch, strict=True))
    return [completions[index] for index in range(len(prompts))]


def _generate_batch(
    model: PreTrainedModel, prompts: Sequence[Sequence[int]], max_new_tokens: int, stop_ids: frozenset[int]
) -> list[Completion]:
    completions = [Completion() for _ in prompts]
    in_flight = list(range(len(prompts)))
    with inference(model):
        rows = CachedRows(model, prompts)
        for position in range(max_new_tokens):
            tokens = rows.logits_NV.argmax(-1)
            staying: list[int] = []
            for slot, (index, token) in enumerate(zip(in_flight, tokens.tolist(), strict=True)):
                completion = completions[index]
                completion.token_ids.append(token)
                if token in stop_ids:
                    completion.finish_reason = "stop"
                elif position + 1 == max_new_tokens:
                    completion.finish_reason = "max_new_tokens"
                else:
                    staying.append(slot)
            if not staying:
                break
            if len(staying) < len(in_flight):  # finished prompts leave the batch
                rows.keep(staying)
                in_flight = [in_flight[slot] for slot in staying]
                tokens = tokens[staying]
            rows.append(tokens)
    return completions
