"""Where a run keeps its files: ``runs/<name>/version_<n>/``."""

from pathlib import Path

from lightning.pytorch import Trainer


def run_folder(trainer: Trainer) -> Path:
    """The folder of the current run, the same on every rank."""
    return Path(trainer.log_dir or trainer.default_root_dir)


def sibling_runs(trainer: Trainer) -> list[Path]:
    """Earlier runs of the same name, newest first."""
    own = run_folder(trainer)
    others = [folder for folder in own.parent.glob("version_*") if folder != own]
    return sorted(others, key=lambda folder: folder.stat().st_mtime, reverse=True)
