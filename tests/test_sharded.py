"""Two processes that share or shard the model get the gradients of one."""

import sys
from pathlib import Path

import pytest
import torch
import torch.multiprocessing
from conftest import make_tiny_model
from torch import Tensor, distributed
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from transformers import PreTrainedModel

from mixsd_lightning.data.batches import TrainBatch, TrainItem, collate_training
from mixsd_lightning.losses.chunked import summed_token_loss
from mixsd_lightning.losses.nll import TokenNLL
from mixsd_lightning.models import load_student
from mixsd_lightning.sharding import shard
from mixsd_lightning.target_states import output_head, target_states, target_tokens

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="gloo over a file")

BEGINNING = [5, 9, 11, 30, 7]
ITEMS = [
    TrainItem("a", [*BEGINNING, 3, 4, 8], [10, 11, 12]),
    TrainItem("b", [*BEGINNING, 6], [13]),
    TrainItem("c", [*BEGINNING, 3, 20, 21], [14, 15, 16]),
    TrainItem("d", [*BEGINNING, 1], []),  # a rank may have nothing to train on
]


def summed_nll(model: PreTrainedModel, states_NH: Tensor, batch: TrainBatch) -> Tensor:
    return summed_token_loss(states_NH, output_head(model), TokenNLL(target_tokens(batch)), chunk_size=2)[0]


class Step(torch.nn.Module):
    """What DistributedDataParallel wraps."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: TrainBatch) -> Tensor:
        return summed_nll(self.model, target_states(self.model, batch), batch)


def run_rank(rank: int, kind: str, model_path: str, folder: str) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    model = load_student(model_path)
    # One rank gets the item without targets, alone.
    batch = collate_training(ITEMS[:3] if rank == 0 else ITEMS[3:])
    if kind == "ddp":
        step = DistributedDataParallel(Step(model))
        step(batch).backward()
    else:
        shard(model, "cpu")
        summed_nll(model, target_states(model, batch), batch).backward()
    gradients = {}
    for name, parameter in model.named_parameters():
        gradient = parameter.grad
        gradients[name] = gradient.full_tensor() if isinstance(gradient, DTensor) else gradient
    if rank == 0:
        torch.save(gradients, f"{folder}/gradients.pt")
    distributed.barrier()
    distributed.destroy_process_group()


@pytest.mark.parametrize("is_tied", [True, False])
@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_two_ranks_get_the_gradient_of_one(tmp_path: Path, kind: str, is_tied: bool) -> None:
    make_tiny_model(tmp_path / "model")
    model = load_student(str(tmp_path / "model"))
    if not is_tied:
        model.config.tie_word_embeddings = False
        model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone() * 0.5)
        model.save_pretrained(tmp_path / "model")
        model = load_student(str(tmp_path / "model"))
    batch = collate_training(ITEMS)
    summed_nll(model, target_states(model, batch), batch).backward()
    torch.multiprocessing.spawn(run_rank, (kind, str(tmp_path / "model"), str(tmp_path)), nprocs=2)
    found = torch.load(tmp_path / "gradients.pt", weights_only=True)
    assert len(found) == len(list(model.parameters()))
    for name, parameter in model.named_parameters():
        # Ranks are averaged; the modules multiply by their number.
        torch.testing.assert_close(2 * found[name], parameter.grad, rtol=1e-4, atol=1e-5)
