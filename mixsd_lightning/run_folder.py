"""Where a run keeps its files: ``runs/<name>/version_<n>/``."""

from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from lightning.pytorch import Trainer

from mixsd_lightning.errors import UserError

UNFINISHED = ".unfinished"
"""Lies in the folder of a fit until it has ended by itself; locked as long as its process lives."""


def run_folder(trainer: Trainer) -> Path:
    """The folder of the current run, the same on every rank."""
    return Path(trainer.log_dir or trainer.default_root_dir)


def sibling_runs(trainer: Trainer) -> list[Path]:
    """Earlier runs of the same name, newest first."""
    own = run_folder(trainer)
    others = [folder for folder in own.parent.glob("version_*") if folder != own]
    return sorted(others, key=lambda folder: folder.stat().st_mtime, reverse=True)


def is_of_run(checkpoint: str | Path | None, folder: Path) -> bool:
    """Whether a checkpoint is one of a run's own."""
    return checkpoint is not None and Path(checkpoint).resolve().parent == (folder / "checkpoints").resolve()


def claim(folder: Path) -> FileLock:
    """Mark a folder as that of an unfinished run and hold it, until the process ends or the lock is released.

    Raises:
        UserError: if another process holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / UNFINISHED)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise UserError(
            f"Another process is training in {folder}. Wait for it or stop it, or give this run another folder "
            "(--trainer.logger.init_args.name or version)."
        ) from None
    return lock


def is_running(folder: Path) -> bool:
    """Whether a process is training in a folder now."""
    try:
        claim(folder).release()
    except UserError:
        return True
    return False


def logged_folders(logger: Any, default_root_dir: str | None) -> list[Path]:
    """The folders that runs with these settings of a logger have, newest first.

    Args:
        logger: `trainer.logger` of a config: off, or one or several with `init_args`.
        default_root_dir: Where a run without a logger has its files.
    """
    loggers = logger_options(logger)
    if not loggers:
        return [] if logger else [Path(default_root_dir or ".")]
    root = Path(loggers[0].get("save_dir") or default_root_dir or ".", loggers[0].get("name") or "")
    version = loggers[0].get("version")
    if version is not None:
        return [root / (version if isinstance(version, str) else f"version_{version}")]
    numbers = {folder: folder.name.partition("_")[2] for folder in root.glob("version_*")}
    return sorted((f for f, number in numbers.items() if number.isdecimal()), key=lambda f: int(numbers[f]), reverse=True)


def logger_options(logger: Any) -> list[Any]:
    """The settings of those loggers of a config that have a folder for each run; these may be changed."""
    several = logger if isinstance(logger, list) else [logger]
    return [one["init_args"] for one in several if not isinstance(one, bool | None) and "version" in one["init_args"]]
