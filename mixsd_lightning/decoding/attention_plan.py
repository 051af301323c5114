"""Where the tokens of one packed forward stand in the cache, and which of them may see which.

Shapes: N tokens in a forward, R rows, Q queries of a row, L columns, h key-value heads, G query heads of each.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

# Rows with at most this many queries share a padded attention call; longer ones (prompts) get one of their own.
_SHORT = 8


@dataclass(frozen=True)
class Span:
    """Consecutive tokens to run: each attends to ``prefix`` and to the tokens of the span up to itself."""

    row: int
    prefix: Sequence[int]
    """Columns of everything before the span, in order."""
    columns: Sequence[int]
    """Where the keys and values of the span's tokens go, one column each."""
    token_ids: Sequence[int]


class _Places(NamedTuple):
    """Where the vectors of single heads stand in tensors that are flattened to all but the last dimension."""

    stored: Tensor
    """New keys and values, head by head, in the cache."""
    queries: list[Tensor]
    """Queries of every group's padded block, in the packed sequence."""
    outputs: Tensor
    """The packed sequence's outputs, token by token, in the blocks of all groups one after the other."""


@dataclass
class _Group:
    """Rows whose queries are padded to one number. Padding queries attend to everything and are thrown away."""

    rows: Tensor | slice
    source_RQ: np.ndarray
    """Place of each query in the packed sequence."""
    valid_RQ: np.ndarray
    """Which of them are no padding."""
    visible_RQL: np.ndarray
    distance_RQL: np.ndarray
    """How many positions back each column lies."""
    device: torch.device
    _masks: dict[Any, Tensor] = field(default_factory=dict)

    def pick(self, layer: Tensor) -> Tensor:
        """The group's rows of a layer's keys or values, up to the last visible column."""
        layer = layer[:, :, : self.visible_RQL.shape[-1]]
        return layer[self.rows] if isinstance(self.rows, slice) else layer.index_select(0, self.rows)

    def mask(self, group_size: int, window: int | None, dtype: torch.dtype) -> Tensor:
        """Additive mask ``[R, 1, G * Q, L]``; all layers of a forward share it."""
        key = group_size, window, dtype
        if key not in self._masks:
            visible = self.visible_RQL if window is None else self.visible_RQL & (self.distance_RQL < window)
            mask = torch.zeros(visible.shape, dtype=dtype).masked_fill_(torch.from_numpy(~visible), -torch.inf)
            self._masks[key] = mask.to(self.device)[:, None].repeat(1, 1, group_size, 1)
        return self._masks[key]


class AttentionPlan:
    """Where the tokens of one forward stand, in the packed sequence and in the cache."""

    def __init__(self, spans: Sequence[Span], positions_RL: np.ndarray, device: torch.device) -> None:
        rows = np.repeat([span.row for span in spans], [len(span.columns) for span in spans])
        columns = np.concatenate([span.columns for span in spans])
        self.positions_N = positions_RL[rows, columns]
        self.layers_run: set[int] = set()
        self._rows_N, self._columns_N, self._device = rows, columns, device
        self._places: dict[tuple[int, int, int], _Places] = {}
        spans_of_row: dict[int, list[tuple[int, Span]]] = defaultdict(list)
        offset = 0
        for span in spans:
            spans_of_row[span.row].append((offset, span))
            offset += len(span.columns)
        lengths = {row: sum(len(span.columns) for _, span in members) for row, members in spans_of_row.items()}
        short = sorted(row for row, length in lengths.items() if length <= _SHORT)
        long = sorted(row for row, length in lengths.items() if length > _SHORT)
        self.groups = [_make_group(rows, lengths, spans_of_row, positions_RL, device) for rows in (short, long) if rows]

    def places(self, num_heads: int, group_size: int, num_columns: int) -> _Places:
        """Places for a layer with this many key-value heads, query heads to each, and columns."""
        key = num_heads, group_size, num_columns
        if key not in self._places:
            num_tokens, num_query_heads = len(self._rows_N), num_heads * group_size
            heads = np.arange(num_heads)[:, None]
            stored = (self._rows_N * num_heads + heads) * num_columns + self._columns_N
            query_heads = np.arange(num_query_heads).reshape(num_heads, group_size, 1)
            queries, outputs, start = [], np.zeros((num_tokens, num_query_heads), dtype=np.int64), 0
            for group in self.groups:
                block_RhGQ = query_heads * num_tokens + group.source_RQ[:, None, None, :]
                queries.append(self._to_device(block_RhGQ))
                in_block_RHQ = start + np.arange(block_RhGQ.size).reshape(len(block_RhGQ), num_query_heads, -1)
                outputs[group.source_RQ[group.valid_RQ]] = in_block_RHQ.transpose(0, 2, 1)[group.valid_RQ]
                start += block_RhGQ.size
            self._places[key] = _Places(self._to_device(stored), queries, self._to_device(outputs))
        return self._places[key]

    def _to_device(self, index: np.ndarray) -> Tensor:
        return torch.from_numpy(index.reshape(-1)).to(self._device)


def _make_group(
    rows: list[int],
    lengths: dict[int, int],
    spans_of_row: dict[int, list[tuple[int, Span]]],
    positions_RL: np.ndarray,
    device: torch.device,
) -> _Group:
    # Copying a row's keys and values costs more than attending to them for nothing: idle rows in between go along.
    if contiguous := 2 * len(rows) > rows[-1]:
        rows = list(range(rows[-1] + 1))
    num_queries = max(lengths.get(row, 0) for row in rows)
    num_columns = 1 + max(max(*span.columns, *span.prefix, 0) for row in rows for _, span in spans_of_row.get(row, []))
    source = np.zeros((len(rows), num_queries), dtype=np.int64)
    position = np.zeros((len(rows), num_queries), dtype=np.int64)
    visible = np.zeros((len(rows), num_queries, num_columns), dtype=bool)
    valid = np.zeros((len(rows), num_queries), dtype=bool)
    for index, row in enumerate(rows):
        query = 0
        for offset, span in spans_of_row.get(row, []):
            block = slice(query, query + len(span.columns))
            source[index, block] = range(offset, offset + len(span.columns))
            position[index, block] = range(len(span.prefix), len(span.prefix) + len(span.columns))
            seen = visible[index, block]
            seen[:, span.prefix] = True
            seen[:, span.columns] |= np.tri(len(span.columns), dtype=bool)
            query = block.stop
        valid[index, :query] = True
        visible[index, query:] = True
    distance = position[:, :, None] - positions_RL[rows, None, :num_columns]
    return _Group(
        rows=slice(len(rows)) if contiguous else torch.tensor(rows, device=device),
        source_RQ=source,
        valid_RQ=valid,
        visible_RQL=visible,
        distance_RQL=distance,
        device=device,
    )
