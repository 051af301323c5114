"""How far parameters have moved, read in one pass over them."""

import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

# Numbers of a block on a CPU: what is made of it stays in the shared cache, and the calls cost little beside the work.
_CPU_BLOCK = 2**20
# Subtracts and squares in one pass, into memory that is there.
_squared_difference = torch.ops.aten.mse_loss.out
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


def moved(
    parameters: Iterable[tuple[str, Tensor]], origin: Mapping[str, Tensor], fisher: Mapping[str, Tensor]
) -> dict[str, Moved]:
    """What each parameter adds to drift; every number is read from memory once.

    Args:
        parameters: Names and values now.
        origin: Values before.
        fisher: Diagonal Fisher information, on the device where the sums are to be made.
    """
    sizes = [tensor.numel() if tensor.device.type != "cpu" else min(_CPU_BLOCK, tensor.numel()) for tensor in fisher.values()]
    # Memory of its own for every block would cost as much as the sums.
    buffer = next(iter(fisher.values())).new_empty(max(1, *sizes))
    sums = {name: _sums(parameter, origin[name], fisher[name], buffer) for name, parameter in parameters}
    return {name: Moved(*row) for name, row in zip(sums, torch.stack(list(sums.values())).tolist(), strict=True)}


def _sums(parameter: Tensor, origin: Tensor, fisher: Tensor, buffer: Tensor) -> Tensor:
    parameter = parameter.detach().to(fisher.device, torch.float32)
    now, before, weight = (tensor.reshape(-1) for tensor in (parameter, origin, fisher))
    sums = []
    for start in range(0, len(weight), len(buffer)):
        rows = slice(start, start + len(buffer))
        square = _squared_difference(now[rows], before[rows], 0, out=buffer[: len(weight) - start])
        sums += [square.sum(), square.dot(weight[rows])]
    return torch.stack(sums).view(-1, 2).sum(0) if sums else fisher.new_zeros(2)


def by_place(moves: Mapping[str, Moved]) -> dict[Place, Moved]:
    """Sums over the parameters of each layer and kind."""
    sums: dict[Place, Moved] = {}
    for name, move in moves.items():
        place = place_of(name)
        before = sums.get(place, Moved(0.0, 0.0))
        sums[place] = Moved(before.squared + move.squared, before.fisher + move.fisher)
    return sums
