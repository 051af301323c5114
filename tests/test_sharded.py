"""Two processes that share or shard the model get the gradients of one, and see one model."""

import sys
from pathlib import Path
from typing import Any

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
from mixsd_lightning.models import base_parameters, load_student, weights_fingerprint
from mixsd_lightning.ranks import of_all_ranks, of_first_rank
from mixsd_lightning.sharding import in_step, local, local_part, shard, whole
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


def gradients_of_rank(rank: int, kind: str, model_path: str) -> dict[str, Tensor]:
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
        assert gradient is not None
        gradients[name] = gradient.full_tensor() if isinstance(gradient, DTensor) else gradient
    return gradients


def unequal_work(rank: int, model_path: str) -> dict[str, Any]:
    """A sharded model is asked three times by one rank and not at all, or later, by the other."""
    model = load_student(model_path)
    shard(model, "cpu")
    ids = torch.tensor([BEGINNING])
    seen, log = [], []
    model.register_forward_hook(lambda module, arguments, output: log.append("forward"))
    with torch.no_grad(), in_step(model) as barrier:
        for _ in range(3 * rank):
            seen.append(model(input_ids=ids).logits[0, -1])
        barrier()
        log.append("barrier")
        for _ in range(2 - 2 * rank):
            seen.append(model(input_ids=ids).logits[0, -1])
    forwards = log.index("barrier"), len(log) - 1 - log.index("barrier")
    part = local(dict(base_parameters(model))["model.embed_tokens.weight"].detach())
    like = dict(model.named_parameters())["model.embed_tokens.weight"]
    return {
        "seen": seen,
        "forwards": forwards,
        "is_training": model.training,
        "fingerprint": weights_fingerprint(model),
        "whole": whole(part, like=like),
        "is_own_part": torch.equal(local_part(whole(part, like=like), like=like), part),
        "first": of_first_rank(rank),
        "rows": of_all_ranks(torch.full((rank,), 7.0)),
    }


def run_rank(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    found: dict[str, Any] = {
        f"{kind}-{model}": gradients_of_rank(rank, kind, f"{folder}/{model}")
        for kind in ("ddp", "fsdp")
        for model in ("tied", "untied")
    }
    found["unequal"] = unequal_work(rank, f"{folder}/tied")
    torch.save(found, f"{folder}/{rank}.pt")
    distributed.barrier()
    distributed.destroy_process_group()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two ranks have found, and their models. One start of processes serves all tests."""
    folder = tmp_path_factory.mktemp("sharded")
    make_tiny_model(folder / "tied")
    make_tiny_model(folder / "untied")
    model = load_student(str(folder / "untied"))
    model.config.tie_word_embeddings = False
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone() * 0.5)
    model.save_pretrained(folder / "untied")
    torch.multiprocessing.spawn(run_rank, (str(folder),), nprocs=2)
    return folder


def found_by(folder: Path, rank: int) -> dict[str, Any]:
    return dict(torch.load(folder / f"{rank}.pt", weights_only=True))


@pytest.mark.parametrize("kind", ["tied", "untied"])
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_ranks_get_the_gradient_of_one(folder: Path, strategy: str, kind: str) -> None:
    model = load_student(str(folder / kind))
    batch = collate_training(ITEMS)
    summed_nll(model, target_states(model, batch), batch).backward()
    found = found_by(folder, 0)[f"{strategy}-{kind}"]
    assert len(found) == len(list(model.parameters())) == (20 if kind == "tied" else 21)
    for name, parameter in model.named_parameters():
        # Ranks are averaged; the modules multiply by their number.
        torch.testing.assert_close(2 * found[name], parameter.grad, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_who_has_less_to_do_runs_along(folder: Path) -> None:
    expected = load_student(str(folder / "tied"))(input_ids=torch.tensor([BEGINNING])).logits[0, -1]
    for rank, num_own in ((0, 2), (1, 3)):
        found = found_by(folder, rank)["unequal"]
        assert found["forwards"] == (3, 2)
        assert len(found["seen"]) == num_own
        for logits in found["seen"]:
            torch.testing.assert_close(logits, expected)
        assert found["is_training"]


def test_a_sharded_model_is_known_by_the_fingerprint_of_the_whole(folder: Path) -> None:
    expected = weights_fingerprint(load_student(str(folder / "tied")))
    assert [found_by(folder, rank)["unequal"]["fingerprint"] for rank in range(2)] == [expected, expected]
    assert weights_fingerprint(load_student(str(folder / "untied"))) != expected


def test_parts_make_the_whole_and_the_whole_has_parts(folder: Path) -> None:
    weight = load_student(str(folder / "tied")).get_input_embeddings().weight
    for rank in range(2):
        found = found_by(folder, rank)["unequal"]
        assert torch.equal(found["whole"], weight)
        assert found["is_own_part"]


def test_ranks_tell_one_another(folder: Path) -> None:
    for rank in range(2):
        found = found_by(folder, rank)["unequal"]
        assert found["first"] == 0
        assert found["rows"].tolist() == [7.0]
