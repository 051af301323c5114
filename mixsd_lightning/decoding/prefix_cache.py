"""A key-value cache for prefixes that share their beginnings, and forwards that waste nothing on padding.

A *row* belongs to one group of prefixes, a *column* of it to one token. A prefix is the list of columns of its tokens, so
prefixes of a row may branch anywhere, and what they share is computed and held once. All tokens of a forward, of whichever
rows, stand in one packed sequence: linear layers see no padding, and attention reads the cache in place.

Shapes: N tokens in a forward, n vectors of single heads, R rows, L columns, D head size.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, PreTrainedModel

from mixsd_lightning.decoding.attention_plan import AttentionPlan, Span
from mixsd_lightning.errors import UserError
from mixsd_lightning.models import inference

_IMPLEMENTATION = "prefix_cache"

# Tokens of one forward at most: activations of more would outgrow the cache, and speed gains nothing.
_MAX_TOKENS = 1024


class _Piece(NamedTuple):
    span: Span
    is_last: bool
    """Whether it ends the span that it was cut from."""


def _batches(spans: Sequence[Span]) -> Iterator[list[_Piece]]:
    """Cut spans, in order, into batches of at most ``_MAX_TOKENS`` tokens."""
    batch: list[_Piece] = []
    room = _MAX_TOKENS
    for span in spans:
        start = 0
        while start < len(span.columns):
            end = min(start + room, len(span.columns))
            prefix = [*span.prefix, *span.columns[:start]]
            piece = Span(span.row, prefix, span.columns[start:end], span.token_ids[start:end])
            batch.append(_Piece(piece, end == len(span.columns)))
            room -= end - start
            start = end
            if room == 0:
                yield batch
                batch, room = [], _MAX_TOKENS
    if batch:
        yield batch


class PrefixCache:
    """Keys and values of every layer, ``[R, heads, L, D]``, written and read in place."""

    def __init__(self, model: PreTrainedModel, num_rows: int) -> None:
        """
        Args:
            model: A causal language model all of whose layers are attention.
            num_rows: Groups of prefixes held at once.

        Raises:
            UserError: if a layer of the model is not attention.
        """
        layer_types = set(getattr(model.config.get_text_config(), "layer_types", None) or [])
        if other := sorted(layer_types - {"full_attention", "sliding_attention"}):
            raise _unsupported(f"it has {', '.join(other)} layers")
        self._model = model
        self._keys: dict[int, Tensor] = {}
        self._values: dict[int, Tensor] = {}
        self._positions_RL = np.zeros((num_rows, 0), dtype=np.int64)
        self._plan: AttentionPlan

    @property
    def num_rows(self) -> int:
        """Groups of prefixes held at once."""
        return self._positions_RL.shape[0]

    @property
    def num_columns(self) -> int:
        """Columns that every row has now."""
        return self._positions_RL.shape[1]

    def forward(self, spans: Sequence[Span]) -> Tensor:
        """Run the spans' tokens and return the logits of what follows each span, ``[len(spans), V]``.

        A span may attend to columns that spans before it fill.
        """
        needed = 1 + max(max(span.columns) for span in spans)
        if needed > self.num_columns:
            self.reserve(needed + needed // 8)  # growing copies the cache, so it is made rare
        return torch.cat([self._forward(batch) for batch in _batches(spans)])

    def _forward(self, pieces: Sequence["_Piece"]) -> Tensor:
        device = self._model.device
        for span, _ in pieces:
            self._positions_RL[span.row, span.columns] = range(len(span.prefix), len(span.prefix) + len(span.columns))
        self._plan = AttentionPlan([span for span, _ in pieces], self._positions_RL, device)
        ends = np.cumsum([len(span.columns) for span, _ in pieces]) - 1
        wanted = [int(end) for end, (_, is_last) in zip(ends, pieces, strict=True) if is_last]
        with inference(self._model), _attention_reads(self._model):
            output = self._model(
                input_ids=torch.tensor([[token for span, _ in pieces for token in span.token_ids]], device=device),
                position_ids=torch.from_numpy(self._plan.positions_N)[None].to(device),
                use_cache=False,
                logits_to_keep=torch.tensor(wanted, dtype=torch.long, device=device),
                prefix_cache=self,
            )
        return output.logits[0]

    def reserve(self, num_columns: int) -> None:
        """Have room for this many columns at least."""
        missing = num_columns - self.num_columns
        if missing <= 0:
            return
        self._positions_RL = np.pad(self._positions_RL, ((0, 0), (0, missing)))
        for layers in (self._keys, self._values):
            for index, layer in layers.items():
                layers[index] = torch.nn.functional.pad(layer, (0, 0, 0, missing))

    def keep(self, rows: Sequence[int]) -> None:
        """Drop all rows but these; the others move up in this order."""
        self._positions_RL = self._positions_RL[rows]
        for layers in (self._keys, self._values):
            for index, layer in layers.items():  # one layer at a time: never two whole caches
                layers[index] = layer[rows]

    def copy(self, source_row: int, row: int, columns: Sequence[int]) -> None:
        """Give ``row`` the same columns as ``source_row``."""
        self._positions_RL[row, columns] = self._positions_RL[source_row, columns]
        for layers in (self._keys, self._values):
            for layer in layers.values():
                layer[row, :, columns] = layer[source_row, :, columns]

    def attend(
        self,
        layer_index: int,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        scale: float | None,
        window: int | None,
        softcap: float | None,
    ) -> Tensor:
        """Store new keys and values ``[1, heads, N, D]`` and attend from ``query``; returns ``[1, N, heads, D]``."""
        if layer_index in self._plan.layers_run:
            raise _unsupported("its layers attend more than once")
        self._plan.layers_run.add(layer_index)
        if layer_index not in self._keys:
            num_rows, num_columns = self.num_rows, self.num_columns
            self._keys[layer_index] = key.new_zeros(num_rows, key.shape[1], num_columns, key.shape[-1])
            self._values[layer_index] = value.new_zeros(num_rows, value.shape[1], num_columns, value.shape[-1])
        keys, values, plan = self._keys[layer_index], self._values[layer_index], self._plan
        num_heads, num_query_heads = key.shape[1], query.shape[1]
        # All copies are of whole vectors by one list of places, which all layers of a forward share.
        places = plan.places(num_heads, num_query_heads // num_heads, self.num_columns)
        keys.view(-1, keys.shape[-1]).index_copy_(0, places.stored, key[0].reshape(-1, key.shape[-1]))
        values.view(-1, values.shape[-1]).index_copy_(0, places.stored, value[0].reshape(-1, value.shape[-1]))
        query_nD = query[0].reshape(-1, query.shape[-1])
        attended = []
        for group, queries in zip(plan.groups, places.queries, strict=True):
            packed = query_nD.index_select(0, queries).view(len(group.visible_RQL), num_heads, -1, query.shape[-1])
            mask = group.mask(num_query_heads // num_heads, window, query.dtype)
            output = _attention(packed, group.pick(keys), group.pick(values), mask, scale, softcap)
            attended.append(output.reshape(-1, value.shape[-1]))
        output_nD = (attended[0] if len(attended) == 1 else torch.cat(attended)).index_select(0, places.outputs)
        return output_nD.view(1, -1, num_query_heads, value.shape[-1])


def _attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scale: float | None, softcap: float | None) -> Tensor:
    if softcap is None:
        return scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scale)
    scores = query @ key.transpose(-1, -2) * (scale if scale is not None else query.shape[-1] ** -0.5)
    scores = softcap * torch.tanh(scores / softcap) + mask
    return scores.softmax(-1, dtype=torch.float32).to(value.dtype) @ value


def _unsupported(reason: str) -> UserError:
    return UserError(
        f"--model.model_name_or_path: mixed targets cannot be built with this model: {reason}. Choose one of plain, windowed "
        "or soft-capped attention layers (Llama, Qwen, Mistral, Gemma, Phi, GPT-2, ...)."
    )


def _attention_function(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    prefix_cache: PrefixCache | None = None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    position_bias: Tensor | None = None,
    **_kwargs: Any,
) -> tuple[Tensor, None]:
    """What transformers calls in every attention layer while a :class:`PrefixCache` runs the model."""
    if prefix_cache is None:
        raise _unsupported("its layers do not pass arguments on to attention")
    if s_aux is not None or position_bias is not None:
        raise _unsupported("its attention has sinks or position biases")
    return prefix_cache.attend(int(module.layer_idx), query, key, value, scaling, sliding_window, softcap), None  # type: ignore[arg-type]


AttentionInterface.register(_IMPLEMENTATION, _attention_function)


@contextmanager
def _attention_reads(model: PreTrainedModel) -> Iterator[None]:
    """Have the model's attention layers use the prefix cache while the block runs."""
    before = model.config._attn_implementation
    model.set_attn_implementation(_IMPLEMENTATION)
    try:
        if model.config._attn_implementation != _IMPLEMENTATION:
            raise _unsupported("its attention cannot be replaced")
        yield
    finally:
        model.set_attn_implementation(before)
