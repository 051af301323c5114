"""Which run a command goes on with: the newest unfinished one of the same configuration, or one that the user names."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mixsd_lightning.callbacks.metrics_file import METRICS_FILE
from mixsd_lightning.checkpoint_io import LAST, PREVIOUS, remove, steps_of_resumable
from mixsd_lightning.errors import UserError
from mixsd_lightning.run_folder import UNFINISHED, is_running
from mixsd_lightning.trained import CONFIG_FILE
from mixsd_lightning.untrusted import read_yaml

_FOLDER_FLAGS = "--trainer.logger.init_args.version or --trainer.default_root_dir"
_MOST_NAMED = 6
"""Differences between two configs that a message names."""


@dataclass(frozen=True)
class Continued:
    """A run to go on with."""

    folder: Path
    checkpoint: Path | None = None
    """``None``: it was killed before there was one, and begins again in its folder."""
    step: int = 0


def unfinished_run(
    folders: list[Path], config: dict[str, Any], is_fixed: bool, is_first_rank: bool = True
) -> Continued | None:
    """The run that a command was killed in, if any.

    Args:
        folders: Where it may be, newest first.
        config: Of the command.
        is_fixed: Whether the command names its folder, so that it can go nowhere else; then there is one.
        is_first_rank: The others of a distributed run look without a word, and do not ask who is training.

    Raises:
        UserError: if the folder is fixed and holds something else.
    """
    for folder in folders:
        if not (folder / UNFINISHED).is_file():
            if is_fixed:
                check_unused(folder)
            continue
        problem = ""
        if is_first_rank and is_running(folder):
            problem = "is being trained by another process"
        elif not (folder / CONFIG_FILE).is_file() and not (folder / "checkpoints").exists():
            return continued(folder, is_first_rank)  # killed in its first second
        elif not (folder / CONFIG_FILE).is_file():
            problem = f"was not finished, but its {CONFIG_FILE} is gone"
        elif apart := differences(read_config(folder), config):
            problem = f"was not finished, but has another configuration: {apart}"
        if not problem:
            return continued(folder, is_first_rank)
        if is_fixed:
            raise UserError(f"{folder} {problem}. Go back to that, or give this run another folder ({_FOLDER_FLAGS}).")
        _say(f"{folder} {problem}; this is a run of its own.", is_first_rank)
    return None


def check_unused(folder: Path) -> None:
    """Refuse a folder that holds the files of another run, which those of this one would be mixed with.

    Raises:
        UserError: if it does.
    """
    if (folder / METRICS_FILE).exists():
        raise UserError(
            f"{folder} holds a run already ({METRICS_FILE}). Give this one another folder ({_FOLDER_FLAGS}), or train that one "
            f"further with --resume {folder}."
        )


def named_run(path: Path, config: dict[str, Any], is_first_rank: bool = True) -> Continued:
    """The run that a user wants to go on with: its folder, or one of its checkpoints.

    Raises:
        UserError: if there is no such run, or no checkpoint that training can go on from.
    """
    is_checkpoint = path.parent.name == "checkpoints"
    folder = path.parent.parent if is_checkpoint else path
    if not (folder / CONFIG_FILE).is_file():
        raise UserError(f"--resume: '{path}' is no run folder (runs/<name>/version_<n>) and no checkpoint in one.")
    found = Continued(folder, path, steps_of_resumable(path)) if is_checkpoint else continued(folder, is_first_rank)
    if found.checkpoint is None:
        raise UserError(f"--resume: '{folder}' has no checkpoint to go on from.")
    if apart := differences(read_config(folder), config):
        _say(f"{folder} goes on with another configuration: {apart}.", is_first_rank)
    return found


def continued(folder: Path, is_first_rank: bool = True) -> Continued:
    """A run with the newest of its checkpoints that is whole; what is damaged is said, and deleted if there is another."""
    checkpoints = folder / "checkpoints"
    for path in (checkpoints / LAST, checkpoints / PREVIOUS):
        if not path.exists():
            continue
        try:
            step = steps_of_resumable(path)
        except UserError as error:
            _say(str(error), is_first_rank)
            if is_first_rank and (checkpoints / PREVIOUS).exists():
                remove(path)  # or it would become the previous one
            continue
        _say(f"Going on with {folder} from step {step} ({path.name}); --resume off begins another run.", is_first_rank)
        return Continued(folder, path, step)
    _say(f"{folder} has no checkpoint yet: it begins again; --resume off begins another run.", is_first_rank)
    return Continued(folder)


def read_config(folder: Path) -> dict[str, Any]:
    """The config of a run.

    Raises:
        UserError: if it cannot be read.
    """
    path = folder / CONFIG_FILE
    try:
        config = read_yaml(path)
    except UserError as error:
        raise UserError(f"{str(error).removesuffix('.')}, or give --resume off.") from error
    if not isinstance(config, dict):
        raise UserError(f"{path} is no config of a run. Mend it, or give --resume off.")
    return config


def differences(there: dict[str, Any], here: dict[str, Any]) -> str:
    """What differs between two configs, by key; nothing where they give the same run.

    >>> differences({"data": {"seed": 1}, "resume": "auto"}, {"data": {"seed": 2}, "resume": "off"})
    'data.seed is 1 there and 2 here'
    """
    one, other = _flat(there), _flat(here)
    keys = [key for key in {**one, **other} if key != "resume" and one.get(key) != other.get(key)]
    named = [f"{key} is {one.get(key)} there and {other.get(key)} here" for key in keys[:_MOST_NAMED]]
    return ", ".join(named) + (f" and {len(keys) - len(named)} more" if len(keys) > len(named) else "")


def _flat(config: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(config, dict):
        return {prefix.rstrip("."): config}
    return {name: value for key, part in config.items() for name, value in _flat(part, f"{prefix}{key}.").items()}


def _say(line: str, is_first_rank: bool) -> None:
    if is_first_rank:
        print(line, flush=True)
