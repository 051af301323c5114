"""How checkpoint files are written and read: whole or not at all, and without running what is in them."""

import pickle
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io import CheckpointIO
from typing_extensions import override

from mixsd_lightning.atomic_file import scratch_beside
from mixsd_lightning.errors import UserError
from mixsd_lightning.sharded_checkpoint import OTHERS_FILE, is_sharded_checkpoint

LAST, PREVIOUS = "last.ckpt", "previous.ckpt"
"""The newest checkpoint of a run and the one before it."""


class CheckpointFiles(CheckpointIO):
    """Files that are on disk, complete, before they have their name; a damaged one is said to be damaged."""

    @override
    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None) -> None:
        path = Path(path)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with scratch_beside(path) as scratch, scratch.open("wb") as file:
                torch.save(checkpoint, file)
        except (OSError, RuntimeError) as error:
            # Out of room, torch complains about its file and hides what the system has said.
            reason = error if isinstance(error, OSError) else error.__context__
            if not isinstance(reason, OSError):
                raise
            raise UserError(
                f"The checkpoint {path} cannot be written: {reason.strerror}. The one before it is as it was; make room, and the "
                "same command goes on from there."
            ) from error

    @override
    def load_checkpoint(
        self, path: str | Path, map_location: Callable | None = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        # On the CPU unless told otherwise; what is read is copied to where it belongs. Never more than weights and plain values.
        where: Any = map_location or "cpu"
        return _read(Path(path), map_location=where)

    @override
    def remove_checkpoint(self, path: str | Path) -> None:
        remove(Path(path))


def steps_of_resumable(path: Path) -> int:
    """Optimizer steps behind a checkpoint that training can go on from. Every byte of a file is compared with its checksum.

    Raises:
        UserError: if it is damaged, or holds weights alone.
    """
    if is_sharded_checkpoint(path):
        if not (path / OTHERS_FILE).is_file():
            raise UserError(f"The checkpoint {path} is damaged: it has no {OTHERS_FILE}.")
        return int(_read(path / OTHERS_FILE, map_location="cpu")["global_step"])
    checkpoint = _read(path, map_location="cpu", mmap=True)
    with zipfile.ZipFile(path) as file:
        if (damaged := file.testzip()) is not None:
            raise UserError(f"The checkpoint {path} is damaged ({damaged}){_instead(path)}.")
    if "optimizer_states" not in checkpoint:
        raise UserError(
            f"The checkpoint {path} holds weights without the optimizer's state, so training cannot go on from it."
        )
    return int(checkpoint["global_step"])


def put_last(scratch: Path) -> None:
    """Make a finished checkpoint the last one of its folder, and the last one the previous.

    At any moment one of them is there and whole.
    """
    last, previous = scratch.with_name(LAST), scratch.with_name(PREVIOUS)
    if last.exists():
        if previous.is_dir() or last.is_dir():  # a folder cannot be replaced
            remove(previous)
        last.replace(previous)
    scratch.replace(last)


def remove(path: Path) -> None:
    """Delete a checkpoint, a file or a folder, if it is there."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _read(path: Path, **options: Any) -> dict[str, Any]:
    if not path.exists():
        raise UserError(f"There is no checkpoint {path}.")
    try:
        checkpoint = torch.load(path, weights_only=True, **options)
        _ = checkpoint["global_step"]
    except pickle.UnpicklingError as error:
        raise UserError(
            f"'{path}' holds more than weights and plain values, so it was not opened: that could run any program. "
            "Give a checkpoint that this library wrote."
        ) from error
    except (OSError, RuntimeError, EOFError, KeyError, TypeError, ValueError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"The checkpoint {path} is damaged or cut short ({reason}){_instead(path)}.") from error
    return dict(checkpoint)


def _instead(path: Path) -> str:
    previous = path.with_name(PREVIOUS)
    return f"; {previous} is the one before it" if path.name == LAST and previous.exists() else ""
