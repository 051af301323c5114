"""Runs that belong together, one after the other, each in a process of its own. What is finished is not run again."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

Lines = list[dict[str, float]]
"""What a run has logged at each validation."""


@dataclass(frozen=True)
class Run:
    """A call of ``python -m mixsd_lightning fit``."""

    name: str
    arguments: tuple[str, ...]


def run_all(runs: Sequence[Run], folder: Path) -> dict[str, Lines]:
    """What the runs have logged, by name.

    A finished run lies in ``folder/<name>``, with its arguments. One that was killed, or whose arguments have changed, begins
    again.

    Raises:
        SystemExit: if a run fails.
    """
    console = Console()
    for number, run in enumerate(runs, 1):
        target = folder / run.name
        arguments = target / "arguments.json"
        if arguments.is_file() and json.loads(arguments.read_text()) == list(run.arguments):
            continue
        console.print(f"[{number}/{len(runs)}] {run.name}", markup=False)
        unfinished = folder / "unfinished" / run.name
        for old in (unfinished, target):
            shutil.rmtree(old, ignore_errors=True)
        unfinished.mkdir(parents=True)
        logger = {"save_dir": unfinished.parent, "name": "null", "version": run.name}
        flags = [f"--trainer.logger.init_args.{key}={value}" for key, value in logger.items()]
        command = [sys.executable, "-m", "mixsd_lightning", "fit", *run.arguments, *flags]
        with (unfinished / "log.txt").open("w") as log:
            status = subprocess.run(
                command, stdout=log, stderr=subprocess.STDOUT, env=os.environ | {"COLUMNS": "120"}
            ).returncode
        if status:
            lines = (unfinished / "log.txt").read_text().splitlines()
            sys.exit("\n".join([*lines[-5:], f"error: {run.name} failed; {unfinished / 'log.txt'} has the rest."]))
        (unfinished / "arguments.json").write_text(json.dumps(run.arguments))
        unfinished.rename(target)
    return {run.name: read_metrics(folder / run.name) for run in runs}


def read_metrics(folder: Path) -> Lines:
    """The lines of a run's ``metrics.jsonl``."""
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
