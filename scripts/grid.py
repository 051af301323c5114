"""Runs that belong together, each in a process of its own, one after the other or a few at once. What is finished stays."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from rich import get_console

from mixsd_lightning.atomic_file import write_atomically
from mixsd_lightning.callbacks.metrics_file import METRICS_FILE, read_metrics
from mixsd_lightning.checkpoint_io import PREVIOUS
from mixsd_lightning.progress import Progress
from mixsd_lightning.run_folder import UNFINISHED

_ARGUMENTS = "arguments.json"
"""What a run was called with."""

Lines = list[dict[str, float]]
"""What a run has logged at each validation."""


@dataclass(frozen=True)
class Run:
    """A call of ``python -m mixsd_lightning fit``."""

    name: str
    arguments: tuple[str, ...]


def run_all(runs: Sequence[Run], folder: Path, jobs: int = 1) -> dict[str, Lines]:
    """What the runs have logged, by name.

    A finished run lies in ``folder/<name>``, with its arguments. One that was killed goes on from its last checkpoint; one whose
    arguments have changed begins again. ``jobs`` of them run at once and share the cores: on a CPU, two runs of one thread get
    more done than one run of two.

    Raises:
        SystemExit: if a run fails, once those that ran beside it have ended.
    """
    due = [run for run in runs if not _is_finished(run, folder)]
    number, waiting, running = len(runs) - len(due), iter(due), set[Future[str]]()
    with Progress("Runs", len(runs)) as progress, ThreadPoolExecutor(jobs) as pool:
        progress.advance(number)
        running.update(pool.submit(_run, run, folder, jobs) for run in islice(waiting, jobs))
        while running:
            ended, running = wait(running, return_when=FIRST_COMPLETED)
            for one in ended:
                number += 1
                # A line for logs, where no bar is seen.
                get_console().print(f"[{number}/{len(runs)}] {one.result()}", markup=False)
                progress.advance()
            # Behind a run that has failed, none is begun.
            running.update(pool.submit(_run, run, folder, jobs) for run in islice(waiting, len(ended)))
    return {run.name: read_metrics(folder / run.name / METRICS_FILE)[0] for run in runs}


def _is_finished(run: Run, folder: Path) -> bool:
    return _has_arguments(run, folder / run.name)


def _has_arguments(run: Run, folder: Path) -> bool:
    arguments = folder / _ARGUMENTS
    return arguments.is_file() and json.loads(arguments.read_text()) == list(run.arguments)


def _run(run: Run, folder: Path, jobs: int) -> str:
    """Name of the run, which has ended."""
    target, unfinished = folder / run.name, folder / "unfinished" / run.name
    shutil.rmtree(target, ignore_errors=True)
    if not (_has_arguments(run, unfinished) and (unfinished / UNFINISHED).is_file()):
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True)
        write_atomically(unfinished / _ARGUMENTS, json.dumps(run.arguments).encode())
    logger = {"save_dir": unfinished.parent, "name": "null", "version": run.name}
    flags = [f"--trainer.logger.init_args.{key}={value}" for key, value in logger.items()]
    flags.append("--checkpoint.final_weights_only=true")  # there are many runs, and nobody trains them further
    command = [sys.executable, "-m", "mixsd_lightning", "fit", *run.arguments, *flags]
    environment = os.environ | {"COLUMNS": "120"}
    if jobs > 1:
        environment.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // jobs)))
    log = unfinished / "log.txt"
    with log.open("a") as file:
        done = subprocess.run(command, stdout=file, stderr=subprocess.STDOUT, env=environment)
    if done.returncode:
        sys.exit("\n".join([*log.read_text().splitlines()[-5:], f"error: {run.name} failed; {log} has the rest."]))
    (unfinished / "checkpoints" / PREVIOUS).unlink(missing_ok=True)
    unfinished.rename(target)
    return run.name
