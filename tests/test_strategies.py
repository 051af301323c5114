"""Two processes under DDP or FSDP2 give the numbers of one, for every method, and leave what one leaves."""

import json
import socket
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import two_ranks
from torch import Tensor

from mixsd_lightning.disk_cache import CACHE_VARIABLE
from mixsd_lightning.models import effective_parameters
from mixsd_lightning.trained import read_trained

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="processes are started as on Linux")

METHODS, STRATEGIES = sorted(two_ranks.METHODS), sorted(two_ranks.STRATEGIES)


@pytest.fixture(scope="module")
def folder(tiny_model_path: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where one process and two have fitted everything. One start of processes serves all tests: starting is what costs."""
    folder = tmp_path_factory.mktemp("strategies")
    text = folder / "text.txt"
    text.write_text("The sea is deep.\n\nIt is cold there.\n")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    arguments = (tiny_model_path, str(text), str(folder), port)
    spawn = torch.multiprocessing.get_context("spawn")
    ranks = [spawn.Process(target=two_ranks.run_rank, args=(rank, *arguments)) for rank in range(2)]
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("PL_GLOBAL_SEED", raising=False)  # of another test: Lightning would seed the two again, and not the one
        for process in ranks:
            process.start()
        patch.setenv(CACHE_VARIABLE, str(folder / "other cache"))
        torch.save(two_ranks.fit_all(tiny_model_path, str(text), folder / "alone"), folder / "alone-0.pt")
    deadline = time.monotonic() + 600
    for process in ranks:
        process.join(max(0, deadline - time.monotonic()))
    codes = [process.exitcode for process in ranks]
    for process in ranks:
        process.kill()
    # The last that they do is to fail.
    assert codes == [2, 2], "None: the ranks waited for one another"
    return folder


def found(folder: Path, strategy: str, rank: int = 0) -> dict[str, Any]:
    return torch.load(folder / f"{strategy}-{rank}.pt", weights_only=False)


def validations(folder: Path, strategy: str, method: str) -> list[dict[str, float]]:
    lines = (folder / strategy / method / "runs/version_0/metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def assert_same(some: dict[str, Tensor], others: dict[str, Tensor]) -> None:
    assert some.keys() == others.keys()
    for name, value in some.items():
        assert torch.equal(value, others[name]), name


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_every_step_logs_the_numbers_of_one_process(folder: Path, strategy: str, method: str) -> None:
    alone = found(folder, "alone")[method]["steps"]
    assert len(alone) == (8 if method == "OPSD" else 4)
    assert "train/loss" in alone[0]
    for rank in range(2):
        together = found(folder, strategy, rank)[method]["steps"]
        for expected, step in zip(alone, together, strict=True):
            assert step == pytest.approx(expected, rel=1e-5, abs=1e-5)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_training_ends_with_the_weights_of_one_process(folder: Path, strategy: str, method: str) -> None:
    alone = found(folder, "alone")[method]
    together = [found(folder, strategy, rank)[method]["weights"] for rank in range(2)]
    assert_same(*together)
    assert together[0].keys() == alone["weights"].keys()
    for name, value in alone["weights"].items():
        torch.testing.assert_close(together[0][name], value, rtol=0, atol=1e-5)
    moved = {name for name, value in alone["weights"].items() if not torch.allclose(value, alone["before"][name], atol=1e-3)}
    assert len(moved) == len(alone["weights"]) or (method == "LoRA" and moved)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_memorization_retention_and_drift_are_those_of_one_process(folder: Path, strategy: str, method: str) -> None:
    alone, together = (validations(folder, name, method) for name in ("alone", strategy))
    assert len(alone) == len(together) == 3
    for expected, line in zip(alone, together, strict=True):
        assert line.keys() == expected.keys()
        assert line["memorization/train_count"] == two_ranks.NUM_EXAMPLES
        tokens = {tag for tag in line if tag.startswith("resources/") and tag.endswith("_tokens")}
        compared = {tag for tag in line if not tag.startswith("resources/")} | tokens
        assert {"memorization/train", "retention/bits_per_byte", "retention/agreement_kl", "drift/fisher"} <= compared
        # The last is a square of sums that nearly cancel.
        assert {tag: line[tag] for tag in compared} == pytest.approx(
            {tag: expected[tag] for tag in compared}, rel=1e-4, abs=1e-5
        )
    assert alone[-1]["drift/l2"] > 0


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_targets_are_byte_for_byte_those_of_one_process(folder: Path, strategy: str) -> None:
    alone, together = (folder / name / "MixSD/runs/version_0/targets" for name in ("alone", strategy))
    files = {path.name for path in alone.iterdir() if not path.name.startswith(".")}
    assert files == {"mixed.jsonl", "mixed.meta.json"} == {p.name for p in together.iterdir() if not p.name.startswith(".")}
    for name in files:
        assert (together / name).read_bytes() == (alone / name).read_bytes()


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_resumed_run_ends_bit_by_bit_as_if_it_had_not_stopped(folder: Path, strategy: str) -> None:
    for rank in range(2):
        whole, resumed = found(folder, strategy, rank)["resumed"]["ends"]
        assert_same(whole["weights"], resumed["weights"])
        assert_same(whole["teacher"], resumed["teacher"])
    assert not torch.equal(*(next(iter(whole[of].values())) for of in ("weights", "teacher")))


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_checkpoint_holds_the_rollouts_of_all_ranks(folder: Path, strategy: str) -> None:
    ranks = [found(folder, strategy, rank)["resumed"] for rank in range(2)]
    assert [len(rank["own"]) for rank in ranks] == [2, 2]
    for rank in ranks:
        assert rank["saved"] == sorted(ranks[0]["own"] + ranks[1]["own"])


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_checkpoints_are_read_in_one_process(folder: Path, strategy: str, method: str) -> None:
    path = folder / strategy / method / "end.ckpt"
    assert path.is_dir() == (strategy == "fsdp")
    student = read_trained(path).student()
    assert_same(dict(effective_parameters(student)), found(folder, strategy)[method]["weights"])


def test_a_rank_that_fails_says_why_and_ends_all(folder: Path) -> None:
    said = [(folder / f"errors-{rank}.txt").read_text() for rank in range(2)]
    assert "error: what the second rank says.\n" in said[1]
    assert not any(word in text for word in ("Traceback", "Connection") for text in said)
    assert "error" not in said[0]
