"""Kills runs at random moments, starts them again with the same command, and compares where they end with runs that were left alone.

    python scripts/survive.py --runs 200                    # a tiny random model: a few seconds for each start
    python scripts/survive.py --runs 20 --strategy fsdp     # two processes, of which one is hit; or ddp

Every run is killed once to three times: with SIGKILL or SIGTERM after a random time, or with SIGKILL at a random call of what builds
targets, rolls out, trains, validates, writes checkpoints or renames files. It has to end in the same folder, with the same weights,
optimizer, teacher and rollouts bit for bit, the same targets, and the same metrics but for time and resources. The table says what was
hit; the last line is JSON: runs, those that did not end (`lost`) and those that ended elsewhere (`different`).
"""

import argparse
import contextlib
import json
import math
import os
import random
import shutil
import signal
import socket
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import torch
import yaml
from conftest import make_tiny_model
from kills import MOMENTS, count_calls, half_written, kill_at
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from rich.console import Console
from rich.table import Table
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

from mixsd_lightning.cli import main as command_line
from mixsd_lightning.disk_cache import CACHE_VARIABLE

METHODS: dict[str, dict[str, Any]] = {
    "SFT": {},
    "MixSD": {"on_reject": "gold", "max_attempts": 2, "temperature": 1.0, "refresh_every_n_epochs": 1},
    "OPSD": {"teacher": "ema", "ema_decay": 0.5, "updates_per_rollout": 2, "nll_every_n_steps": 3},
    "UniSD": {"num_contexts": 2, "ema_decay": 0.5},
}
ANY_TIME, TERMINATED = "any time", "SIGTERM"
_COMPARED = ("global_step", "epoch", "state_dict", "optimizer_states", "optimizer_0", "lr_schedulers", "teacher", "rollouts")
STRATEGIES: dict[str, Any] = {"ddp": "ddp", "fsdp": {"class_path": "lightning.pytorch.strategies.ModelParallelStrategy"}}


@dataclass
class End:
    """Where a run has ended."""

    checkpoint: dict[str, Any]
    metrics: list[dict[str, float]]
    targets: dict[str, bytes]
    num_folders: int

    def differences(self, other: "End") -> list[str]:
        """Names of what is not the same."""
        parts = [key for key in _COMPARED if not _same(self.checkpoint.get(key), other.checkpoint.get(key))]
        parts += [name for name in ("metrics", "targets", "num_folders") if getattr(self, name) != getattr(other, name)]
        return parts


@dataclass
class Reference:
    """A run that was left alone."""

    end: End
    seconds: float
    calls: list[dict[str, int]]
    """Of each rank."""


def config(model: Path, method: str, strategy: str | None) -> dict[str, Any]:
    """Two epochs of three batches, with a validation in each and checkpoints between them."""
    ranks = 2 if strategy else 1
    options = {
        "model_name_or_path": str(model),
        "max_new_tokens": 6,
        "learning_rate": 1e-3,
        "warmup_steps": 4,
        **METHODS[method],
    }
    data = {"num_domains": 3, "num_entities": 4, "batch_size": 4 // ranks, "eval_splits": ["train"], "max_eval_examples": 4}
    return {
        "model": {"class_path": method, "init_args": options},
        "data": {"class_path": "KGFact", "init_args": data},
        "drift": {"num_sequences": 1},
        "retention": {"suites": ["probe"]},
        "checkpoint": {"every_n_steps": 2},
        "trainer": {
            "accelerator": "cpu",
            "devices": ranks,
            "strategy": STRATEGIES[strategy] if strategy else "auto",
            "precision": "32-true",
            "max_epochs": 2,
            "val_check_interval": 2,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "logger": {"class_path": "TensorBoardLogger", "init_args": {"save_dir": "runs", "name": "tiny"}},
        },
    }


class Processes:
    """The command in a process for each rank, copies of this one, which has imported everything."""

    def __init__(self, folder: Path, ranks: int, prepare: Mapping[int, Callable[[], Any]] = {}) -> None:
        """
        Args:
            folder: Where they run; `config.yaml` is there.
            ranks: How many.
            prepare: Rank -> what is called in it before anything else.
        """
        environment = {}
        if ranks > 1:
            with socket.socket() as free:
                free.bind(("127.0.0.1", 0))
                environment = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
        self.ids = [_start(folder, rank, environment, prepare.get(rank)) for rank in range(ranks)]

    def status(self) -> int:
        """Wait for the end; the exit status, negative for a signal, and 0 if all have ended well.

        A rank that was killed takes others with it, whose connections break or which wait for it: those are killed, as launchers do it.
        """
        running, failed, deadline = set(self.ids), [], math.inf
        while running and time.monotonic() < deadline:
            process, status = os.waitpid(-1, os.WNOHANG)
            if process:
                running.remove(process)
                failed += [status] if (status := os.waitstatus_to_exitcode(status)) else []
                deadline = time.monotonic() + 2 if failed else math.inf
            else:
                time.sleep(0.02)
        for process in running:
            os.kill(process, signal.SIGKILL)
            os.waitpid(process, 0)
        return min(failed, default=0)


def _start(folder: Path, rank: int, environment: dict[str, str], prepare: Callable[[], Any] | None) -> int:
    sys.stdout.flush()
    process = os.fork()
    if process:
        return process
    status = 1
    try:
        if environment:
            os.environ.update(environment | {"LOCAL_RANK": str(rank)})
            rank_zero_only.rank = rank  # which was found out when Lightning was imported
        os.chdir(folder)
        log = os.open("log.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1)
        os.dup2(log, 2)
        if prepare:
            prepare()
        command_line(["fit", "--config", "config.yaml"])
        status = 0
    except SystemExit as ended:
        status = ended.code if isinstance(ended.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(BaseException):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status)


def reference_run(folder: Path, ranks: int) -> Reference:
    """A run that is left alone.

    Raises:
        RuntimeError: if it fails.
    """

    def prepare(rank: int) -> None:
        counts = Counter[str]()
        count_calls(counts)
        leave = os._exit

        def leaving(status: int) -> None:
            Path(f"calls-{rank}.json").write_text(json.dumps(counts))
            leave(status)

        os._exit = leaving  # type: ignore[assignment]

    began = time.monotonic()
    if Processes(folder, ranks, {rank: partial(prepare, rank) for rank in range(ranks)}).status():
        raise RuntimeError((folder / "log.txt").read_text()[-3000:])
    seconds = time.monotonic() - began
    calls = [json.loads((folder / f"calls-{rank}.json").read_text()) for rank in range(ranks)]
    return Reference(end_of(folder), seconds, calls)


def disturbed_run(folder: Path, reference: Reference, rng: random.Random, hits: Counter[str]) -> int:
    """A run that is killed, and started again until it ends by itself; returns its exit status."""
    ranks = len(reference.calls)
    for _ in range(rng.choice((1, 1, 2, 3))):
        hit = rng.randrange(ranks)
        calls = reference.calls[hit]
        moment = rng.choice([moment for moment in MOMENTS if calls.get(moment)] + [ANY_TIME, TERMINATED])
        if moment in MOMENTS:
            number, is_after = rng.randint(1, calls[moment]), rng.random() < 0.5
            is_halved = moment == "checkpoint writing" and rng.random() < 0.5
            prepare = partial(half_written, number) if is_halved else partial(kill_at, moment, number, is_after)
            status = Processes(folder, ranks, {hit: prepare}).status()
        else:
            processes = Processes(folder, ranks)
            time.sleep(rng.uniform(0.1, 1.0) * reference.seconds)
            with contextlib.suppress(ProcessLookupError):
                os.kill(processes.ids[hit], signal.SIGKILL if moment == ANY_TIME else signal.SIGTERM)
            status = processes.status()
        if status == 0:
            return 0  # it had ended before
        if status not in (-signal.SIGKILL, -signal.SIGTERM, 128 + signal.SIGTERM):
            return status
        hits.update([moment])
    return Processes(folder, ranks).status()


def end_of(folder: Path) -> End:
    """What a finished run has left."""
    # A process that is killed before it has begun leaves an empty folder.
    folders = [path for path in sorted((folder / "runs/tiny").iterdir()) if (path / "config.yaml").is_file()]
    checkpoint = _read(folders[-1] / "checkpoints/last.ckpt")
    lines = [json.loads(line) for line in (folders[-1] / "metrics.jsonl").read_text().splitlines()]
    metrics = [{tag: value for tag, value in line.items() if not tag.startswith("resources/")} for line in lines]
    targets = {path.name: path.read_bytes() for path in (folders[-1] / "targets").glob("*.jsonl")}
    return End(checkpoint, metrics, targets, len(folders))


def _read(path: Path) -> dict[str, Any]:
    if path.is_file():
        return dict(torch.load(path, weights_only=True))
    whole = path.with_name("whole.ckpt")
    dcp_to_torch_save(path, whole)
    return torch.load(path / "meta.pt", weights_only=True) | torch.load(whole, weights_only=True)


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return isinstance(other, torch.Tensor) and one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict):
        return isinstance(other, dict) and one.keys() == other.keys() and all(_same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(_same, one, other))
    return bool(one == other)


def survive(num_runs: int, seed: int, methods: list[str], strategy: str | None, folder: Path) -> dict[str, int]:
    """All runs; prints the table and returns the numbers."""
    os.environ[CACHE_VARIABLE] = str(folder / "cache")
    torch.set_num_threads(1)
    make_tiny_model(folder / "model")
    with_dropout = json.loads((folder / "model/config.json").read_text()) | {"attention_dropout": 0.1}
    (folder / "model/config.json").write_text(json.dumps(with_dropout))  # so that training draws random numbers
    rng, hits = random.Random(seed), Counter[str]()
    references: dict[str, Reference] = {}
    tried, resumed, lost, different = Counter[str](), Counter[str](), Counter[str](), Counter[str]()
    for number in range(num_runs):
        method = methods[number % len(methods)]
        if method not in references:
            references[method] = reference_run(_prepared(folder, method, method, strategy), 2 if strategy else 1)
        reference = references[method]
        run = _prepared(folder, f"{method}-{number}", method, strategy)
        tried.update([method])
        if status := disturbed_run(run, reference, rng, hits):
            lost.update([method])
            print(f"run {number} ({method}) ended with status {status}:\n{(run / 'log.txt').read_text()[-2000:]}")
        elif apart := reference.end.differences(end_of(run)):
            different.update([method])
            print(f"run {number} ({method}) ended with other {', '.join(apart)}:\n{(run / 'log.txt').read_text()[-2000:]}")
        else:
            resumed.update({method: (run / "log.txt").read_text().count("Going on with")})
            shutil.rmtree(run)
    rows = [(method, tried[method], resumed[method], lost[method], different[method]) for method in tried]
    _print_table(("method", "runs", "went on from a checkpoint", "lost", "different"), rows)
    _print_table(("killed at", "times"), sorted(hits.items()))
    return {"runs": num_runs, "lost": lost.total(), "different": different.total()}


def _prepared(folder: Path, name: str, method: str, strategy: str | None) -> Path:
    run = folder / name
    run.mkdir()
    (run / "config.yaml").write_text(yaml.safe_dump(config(folder / "model", method, strategy)))
    return run


def _print_table(columns: tuple[str, ...], rows: list[tuple[Any, ...]]) -> None:
    table = Table(*columns)
    for row in rows:
        table.add_row(*map(str, row))
    Console().print(table)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--seed", type=int, help="of the moments; another each time by default")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--strategy", choices=STRATEGIES, help="two processes; one by default")
    parsed = parser.parse_args()
    seed = random.SystemRandom().randrange(10**6) if parsed.seed is None else parsed.seed
    print(f"seed {seed}", flush=True)
    with tempfile.TemporaryDirectory() as scratch:
        found = survive(parsed.runs, seed, parsed.methods, parsed.strategy, Path(scratch))
    print(json.dumps(found))
    sys.exit(1 if found["lost"] or found["different"] else 0)
