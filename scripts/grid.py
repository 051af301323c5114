"""Runs that belong together, one after the other, each in a process of its own. What is finished is not run again."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
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


def run_all(runs: Sequence[Run], folder: Path) -> dict[str, Lines]:
    """What the runs have logged, by name.

    A finished run lies in ``folder/<name>``, with its arguments. One that was killed goes on from its last checkpoint; one whose
    arguments have changed begins again.

    Raises:
        SystemExit: if a run fails.
    """
    due = [run for run in runs if not _is_finished(run, folder)]
    with Progress("Runs", len(runs)) as progress:
        progress.advance(len(runs) - len(due))
        for number, run in enumerate(due, 1 + len(runs) - len(due)):
            # A line for logs, where no bar is seen.
            get_console().print(f"[{number}/{len(runs)}] {run.name}", markup=False)
            _run(run, folder)
            progress.advance()
    return {run.name: read_metrics(folder / run.name / METRICS_FILE)[0] for run in runs}


def _is_finished(run: Run, folder: Path) -> bool:
    return _has_arguments(run, folder / run.name)


def _has_arguments(run: Run, folder: Path) -> bool:
    arguments = folder / _ARGUMENTS
    return arguments.is_file() and json.loads(arguments.read_text()) == list(run.arguments)


def _run(run: Run, folder: Path) -> None:
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
    log = unfinished / "log.txt"
    with log.open("a") as file:
        done = subprocess.run(command, stdout=file, stderr=subprocess.STDOUT, env=os.environ | {"COLUMNS": "120"})
    if done.returncode:
        sys.exit("\n".join([*log.read_text().splitlines()[-5:], f"error: {run.name} failed; {log} has the rest."]))
    (unfinished / "checkpoints" / PREVIOUS).unlink(missing_ok=True)
    unfinished.rename(target)
