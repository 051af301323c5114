"""Folders -> runs: what `fit` has left, read without training anything."""

import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mixsd_lightning.callbacks.metrics_file import METRICS_FILE, read_metrics
from mixsd_lightning.errors import UserError, printable
from mixsd_lightning.untrusted import read_yaml

Line = Mapping[str, float]
"""What one validation has logged, by tag, with `step` and `epoch`."""

CONFIG_FILE = "config.yaml"


@dataclass(frozen=True)
class Run:
    """A run folder."""

    folder: Path
    name: str
    """How the report calls it: the end of its path, as long as it takes to tell it from the others."""
    config: Mapping[str, Any] | None
    """What `config.yaml` says; None where there is none."""
    lines: Sequence[Line]
    """One for each step that was validated, in the order of steps; never empty."""

    @property
    def last(self) -> Line:
        """The last validation."""
        return self.lines[-1]


def find_runs(paths: Iterable[str | Path]) -> tuple[list[Run], list[str]]:
    """All runs in some folders, at any depth, and notes on what was left out.

    Raises:
        UserError: if a path is not there, a file cannot be read, or there is no run at all.
    """
    searched, folders = [Path(path) for path in paths], set()
    for path in searched:
        if not path.exists():
            raise UserError(
                f"there is no folder '{path}'; give run folders as `fit` leaves them, or folders that contain some."
            )
        start = path.parent if path.name == METRICS_FILE else path
        folders |= {Path(found).resolve() for found, _, files in os.walk(start) if METRICS_FILE in files}
    runs, notes = [], []
    for folder, name in _names(sorted(folders)).items():
        config = _read_config(folder / CONFIG_FILE)
        if config is not None and "verbose" in config:  # which `fit` does not know
            notes.append(f"{name} is the validation of a checkpoint and not a training run; it was left out.")
            continue
        whole, is_cut = read_metrics(folder / METRICS_FILE)
        if is_cut:
            notes.append(f"The last line of {name}/{METRICS_FILE} is cut; it was left out.")
        lines, found = _by_step(whole, name)
        notes += found
        if lines:
            runs.append(Run(folder, name, config, lines))
        else:
            notes.append(f"{name} has no finished validation yet; it was left out.")
    if not runs:
        told = ", ".join(f"'{path}'" for path in searched)
        raise UserError(f"no run found in {told}; a run folder holds a {METRICS_FILE} with a line for each validation.")
    return runs, notes


def _names(folders: Sequence[Path]) -> dict[Path, str]:
    """The shortest ends of paths that differ, of two parts at least where the last is a version's number."""
    names = {}
    for folder in folders:
        length = 2 if folder.name.startswith("version_") else 1
        while length < len(folder.parts) and any(
            other != folder and other.parts[-length:] == folder.parts[-length:] for other in folders
        ):
            length += 1
        names[folder] = printable(str(Path(*folder.parts[-length:])))
    return names


def _read_config(path: Path) -> Mapping[str, Any] | None:
    if not path.exists():
        return None
    try:
        config = read_yaml(path)
    except UserError as error:
        raise UserError(f"{str(error).rstrip('.')}, or leave this run out.") from None
    if not isinstance(config, Mapping):
        raise UserError(f"{path} holds no settings; mend it, or move it away to have the run named by its folder.")
    return config


def _by_step(lines: Sequence[Line], name: str) -> tuple[list[Line], list[str]]:
    """Lines by step, later ones first in rank (a resumed run repeats some), without what is not finite; and notes."""
    steps: dict[float, dict[str, float]] = {}
    notes = []
    for values in lines:
        strange = sorted(tag for tag, value in values.items() if not math.isfinite(value))
        if strange:
            told = f"{strange[0]} and {len(strange) - 1} others are" if len(strange) > 1 else f"{strange[0]} is"
            notes.append(f"{name}: {told} not a finite number at step {values['step']:g}; the cells are empty.")
        finite = {tag: value for tag, value in values.items() if math.isfinite(value)}
        steps[values["step"]] = {**steps.get(values["step"], {}), **finite}
    return [steps[step] for step in sorted(steps)], notes
