"""Models whose parameters are spread over ranks (FSDP2): how they are spread, run and read.

A forward of such a model is a joint act: every rank gives its part of each layer to the others, so all ranks must run it equally
often, whatever work each of them has.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import MethodType
from typing import Any

import torch
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel

from mixsd_lightning.ranks import gathered, rank_and_count, sum_over_ranks, wait_for_ranks


def shard(model: PreTrainedModel, device_type: str) -> None:
    """Spread a model over all ranks: layer by layer, and what is outside of the layers together.

    Args:
        model: The same on every rank; anywhere.
        device_type: Where the parts go: `cpu` or `cuda`.
    """
    mesh = init_device_mesh(device_type, (rank_and_count()[1],))
    kinds = set(model._no_split_modules or ())
    for layer in [module for module in model.modules() if type(module).__name__ in kinds]:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    # Called on its own, the decoder would find the parts of the model that belong to no layer (the embedding) in pieces.
    model.run_decoder = MethodType(_run_decoder, model)  # type: ignore[assignment]
    register_fsdp_forward_method(model, "run_decoder")


def _run_decoder(model: PreTrainedModel, **options: Any) -> Any:
    return model.base_model(**options)


def run_decoder(model: PreTrainedModel, **options: Any) -> Any:
    """A forward of everything below the head; afterwards the head's weight is there as a whole."""
    return model.run_decoder(**options) if is_sharded(model) else model.base_model(**options)  # type: ignore[operator]


def is_sharded(module: torch.nn.Module) -> bool:
    """Whether ranks hold parts of the parameters of a module."""
    return any(isinstance(parameter, DTensor) for parameter in module.parameters())


def reshard(module: torch.nn.Module) -> None:
    """Have the parameters of a module be parts again: after a forward, what is outside of the layers stays whole."""
    if isinstance(module, FSDPModule):
        module.reshard()


def local(tensor: Tensor) -> Tensor:
    """What this rank holds of a tensor: all of it, or its shard."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole(part: Tensor, like: Tensor) -> Tensor:
    """The tensor of which every rank gives the part that it holds of ``like``, on the CPU if that is more than one."""
    if not isinstance(like, DTensor):
        return part
    return (
        DTensor.from_local(part, like.device_mesh, like.placements, run_check=False, shape=like.shape, stride=like.stride())
        .full_tensor()
        .cpu()
    )


def local_part(tensor: Tensor, like: Tensor) -> Tensor:
    """Of a whole tensor, the part that this rank holds of ``like``."""
    if not isinstance(like, DTensor):
        return tensor
    rank, count = rank_and_count()
    parts = tensor.chunk(count)
    return parts[rank] if rank < len(parts) else tensor[:0]


def evenly_spaced_values(tensors: Sequence[Tensor], count: int) -> list[Tensor]:
    """About ``count`` values of every tensor, in float32 on the CPU, the same whether and how they are sharded."""
    found = []
    for tensor in tensors:
        step = max(1, tensor.numel() // count)
        values = local(tensor.detach()).flatten()
        before = 0
        if isinstance(tensor, DTensor):
            rank, num_ranks = rank_and_count()
            rows_each = -(-tensor.shape[0] // num_ranks)
            before = min(rank * rows_each, tensor.shape[0]) * (tensor.numel() // tensor.shape[0])
        found.append(values[-before % step :: step].float().cpu())
    if any(isinstance(tensor, DTensor) for tensor in tensors):
        found = [
            torch.cat(parts) if isinstance(tensor, DTensor) else parts[0]
            for tensor, parts in zip(tensors, zip(*gathered(found), strict=True), strict=True)
        ]
    return found


@contextmanager
def in_step(model: PreTrainedModel) -> Iterator[Callable[[], None]]:
    """Let every rank run a model as often as its work needs; of a sharded one, who has less to do runs along until all are done.

    All ranks enter and leave together, and call between them nothing else that ranks do together, but the barrier that they
    get here.
    """
    if not is_sharded(model):
        yield wait_for_ranks
        return
    is_working = True

    def announce(module: torch.nn.Module, arguments: Any) -> None:
        if is_working:
            sum_over_ranks(torch.tensor(1))

    def meet() -> None:
        nonlocal is_working
        is_working, was_training = False, model.training
        model.eval()
        with torch.no_grad():
            while sum_over_ranks(torch.tensor(0)):  # how many are about to run the model
                model(input_ids=torch.zeros(1, 1, dtype=torch.long, device=model.device), use_cache=False)
        model.train(was_training)
        is_working = True

    handle = model.register_forward_pre_hook(announce, prepend=True)
    try:
        yield meet
        meet()
    finally:
        handle.remove()
