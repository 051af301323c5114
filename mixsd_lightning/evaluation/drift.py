"""How far parameters have moved, read in one pass over them."""

import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

# Numbers of a block on a CPU: what is made of it stays in a core's cache, and the calls cost little beside the work.
_CPU_BLOCK = 2**16
_LAYER = re.compile(r"(?:^|\.)(?:layers|h|blocks|block)\.(\d+)\.")
_KINDS = (
    ("norm", re.compile(r"norm|\.ln_|layernorm")),
    ("attention", re.compile(r"attn|attention")),
    ("mlp", re.compile(r"mlp|feed_forward|ffn|expert|\.fc\d")),
    ("embedding", re.compile(r"embed|wte|wpe|lm_head")),
)


class Moved(NamedTuple):
    r"""What one parameter adds to drift."""

    squared: float
    r""":math:`\sum_i \Delta_i^2`."""
    fisher: float
    r""":math:`\sum_i F_i \Delta_i^2`."""


class Place(NamedTuple):
    """Where a parameter belongs."""

    layer: int | None
    kind: str
    """``attention``, ``mlp``, ``embedding``, ``norm`` or ``other``."""


def place_of(name: str) -> Place:
    """Layer and kind of module of a parameter, from its name.

    >>> place_of("model.layers.7.self_attn.q_proj.weight")
    Place(layer=7, kind='attention')
    """
    layer = _LAYER.search(name)
    kind = next((kind for kind, pattern in _KINDS if pattern.search(name.lower())), "other")
    return Place(int(layer.group(1)) if layer else None, kind)


def moved(parameter: Tensor, origin: Tensor, fisher: Tensor) -> Moved:
    """Sums over one parameter; every number of the three tensors is read from memory once."""
    squared = weighted = 0.0
    size = min(_CPU_BLOCK, fisher.numel()) if fisher.device.type == "cpu" else fisher.numel()
    deltas, products = fisher.new_empty(2, size)
    for now, before, weight in zip(*(_blocks(tensor, size) for tensor in (parameter, origin, fisher)), strict=True):
        delta = torch.sub(now.to(fisher.device, torch.float32), before, out=deltas[: len(now)])
        product = torch.mul(delta, weight, out=products[: len(now)])
        squared += float(delta.dot(delta))
        weighted += float(delta.dot(product))
    return Moved(squared, weighted)


def by_place(moves: Mapping[str, Moved]) -> dict[Place, Moved]:
    """Sums over the parameters of each layer and kind."""
    sums: dict[Place, Moved] = {}
    for name, move in moves.items():
        place = place_of(name)
        before = sums.get(place, Moved(0.0, 0.0))
        sums[place] = Moved(before.squared + move.squared, before.fisher + move.fisher)
    return sums


def _blocks(tensor: Tensor, size: int) -> Sequence[Tensor]:
    return tensor.detach().reshape(-1).split(size)
