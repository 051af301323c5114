"""Files that are complete under their name or not there, whatever kills the process, fills the disk or cuts the power."""

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def scratch_beside(path: Path) -> Iterator[Path]:
    """A path beside ``path`` to write to; what stands there at the end is on disk and takes the name ``path``.

    If the block raises, ``path`` stays as it was. A process that is killed leaves a file ``.<name>.<random>`` behind.
    """
    scratch = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        yield scratch
        with scratch.open("rb+") as file:
            os.fsync(file.fileno())
        scratch.replace(path)
        sync_folder(path.parent)
    finally:
        scratch.unlink(missing_ok=True)


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file so that it is, at any moment, either absent (or old) or complete."""
    with scratch_beside(path) as scratch:
        scratch.write_bytes(content)


def sync_folder(folder: Path) -> None:
    """Put the names of a folder's files on disk, where the system has folders that can be opened."""
    with suppress(PermissionError):  # Windows
        handle = os.open(folder, os.O_RDONLY)
        try:
            with suppress(OSError):  # some network file systems
                os.fsync(handle)
        finally:
            os.close(handle)
