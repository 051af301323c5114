"""What the ranks of a distributed run tell one another, outside of Lightning's own calls. Without ranks, nothing."""

from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

_T = TypeVar("_T")

_FAILURES = "mixsd_lightning/failures"


def rank_and_count() -> tuple[int, int]:
    """The number of this rank and of all ranks; ``(0, 1)`` without any."""
    is_on = dist.is_available() and dist.is_initialized()
    return (dist.get_rank(), dist.get_world_size()) if is_on else (0, 1)


def sum_over_ranks(tensor: Tensor) -> Tensor:
    """Sum of a tensor over all ranks, where the tensor is."""
    if rank_and_count()[1] == 1:
        return tensor
    total = tensor.to("cuda") if dist.get_backend() == "nccl" else tensor.clone()
    dist.all_reduce(total)
    return total.to(tensor.device)


def all_ranks(condition: bool) -> bool:
    """Whether a condition holds on every rank."""
    return int(sum_over_ranks(torch.tensor(int(condition)))) == rank_and_count()[1]


def gathered(value: _T) -> list[_T]:
    """What every rank has here, in the order of the ranks; tensors on the CPU."""
    values = [value] * rank_and_count()[1]
    if len(values) > 1:
        dist.all_gather_object(values, value)
    return values


def of_first_rank(value: _T) -> _T:
    """What rank 0 has here; tensors on the CPU."""
    values = [value]
    if rank_and_count()[1] > 1:
        dist.broadcast_object_list(values)
    return values[0]


def of_all_ranks(tensor_N: Tensor) -> Tensor:
    """The rows that the ranks have, one rank after the other."""
    return torch.cat(gathered(tensor_N.detach().cpu())).to(tensor_N.device)


def wait_for_ranks() -> None:
    """Return once all ranks have come here."""
    all_ranks(True)


def is_first_failure() -> bool:
    """Note that this rank has failed; returns whether no other had before, so that one of them says why.

    Of ranks that are there only because another has gone, none is the first: their connections broke.
    """
    if not (dist.is_available() and dist.is_initialized()):
        return True
    try:
        return int(dist.distributed_c10d._get_default_store().add(_FAILURES, 1)) == 1
    except RuntimeError:  # rank 0, which keeps the count, is gone
        return False
