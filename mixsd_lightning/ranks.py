"""What the ranks of a distributed run tell one another, outside of Lightning's own calls. Without ranks, nothing."""

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor


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


def local(tensor: Tensor) -> Tensor:
    """What this rank holds of a tensor: all of it, or its shard."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def is_sharded(module: torch.nn.Module) -> bool:
    """Whether ranks hold parts of the parameters of a module."""
    return any(isinstance(parameter, DTensor) for parameter in module.parameters())
