"""The files of a set of mixed targets: nothing finished is lost, nothing half-written is taken for finished.

* ``<name>.jsonl`` holds the finished records, one a line; it appears by an atomic rename.
* ``<name>.meta.json`` says what they were made from, and holds the digest of the finished file.
* ``<name>.jsonl.partial-<rank>`` collects what a build has so far, one checked line each, every line on disk before the next.
"""

import hashlib
import json
import os
import warnings
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock

from mixsd_lightning.atomic_file import write_atomically
from mixsd_lightning.errors import UserError

Record = dict[str, Any]


class TargetStore:
    """One set of targets in a folder."""

    def __init__(self, folder: Path, name: str, identity: Mapping[str, Any]) -> None:
        """
        Args:
            folder: Where the files are or will be.
            name: What their names begin with.
            identity: Everything that decides the content; two builds with equal identities give equal bytes.
        """
        self.path = folder / f"{name}.jsonl"
        self._meta_path = folder / f"{name}.meta.json"
        self._lock_path = folder / f".{name}.lock"
        # As it will be read back.
        self._identity: dict[str, Any] = json.loads(json.dumps(identity))

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the store; a second process that wants it waits."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(self._lock_path):
            yield

    def check(self) -> None:
        """Raise a :class:`UserError` that says what differs, if the folder holds targets of another kind."""
        is_finished = self.path.exists()  # asked first: another process writes the meta file before this one
        meta = self._meta()
        if meta is None:
            if is_finished:
                raise UserError(f"{self.path} has no {self._meta_path.name} beside it. Delete it to build it again.")
            return
        there = meta["made_from"]
        keys = [key for key in {**there, **self._identity} if there.get(key) != self._identity.get(key)]
        if keys:
            differences = "; ".join(f"{key} was {there.get(key)}, now {self._identity.get(key)}" for key in keys)
            raise UserError(
                f"{self.path.parent} holds mixed targets that were made differently: {differences}. Go back to those "
                "settings, write to another folder, or delete that one."
            )

    def load(self) -> list[Record] | None:
        """The finished records, or ``None`` if they are not finished.

        Raises:
            UserError: if the file is not what was written.
        """
        is_finished = self.path.is_file()
        self.check()
        if not is_finished:
            return None
        content = self.path.read_bytes()
        meta = self._meta()
        assert meta is not None
        if hashlib.sha256(content).hexdigest() != meta.get("sha256"):
            raise UserError(f"{self.path} {_damage(content)}. Delete it to build it again.")
        return [json.loads(line) for line in content.splitlines()]

    def begin(self) -> None:
        """Say what the targets will be made from, before the first is there."""
        self.check()
        if self._meta() is None:
            for path in self._partials():  # nothing says what they were made from
                path.unlink()
            self._write_meta()

    def tidy(self) -> None:
        """Remove what a build that was killed has left beside a finished file."""
        if self.path.is_file():
            for path in self._partials():
                path.unlink()
        for path in (self.path, self._meta_path):
            for scratch in path.parent.glob(f".{path.name}.*"):
                scratch.unlink()

    def append(self, rank: int, record: Record) -> None:
        """Add a line to what a rank has so far; it is on disk when this returns."""
        with self._partial(rank).open("ab") as file:
            file.write(_checked_line(record))
            file.flush()
            os.fsync(file.fileno())

    def unfinished(self) -> list[Record]:
        """What all ranks have so far. Lines that were cut short or damaged are dropped: they will be made again."""
        return [record for path in self._partials() for record in _checked_lines(path)]

    def repair(self) -> None:
        """Drop damaged lines from the files themselves, so that nothing is appended to half a line."""
        for path in self._partials():
            records = list(_checked_lines(path))
            if len(records) != path.read_bytes().count(b"\n") or not path.read_bytes().endswith(b"\n"):
                warnings.warn(f"{path} was cut short or damaged; what is missing is made again.", stacklevel=2)
                write_atomically(path, b"".join(map(_checked_line, records)))

    def finish(self, records: Sequence[Record]) -> None:
        """Write the finished file and drop the unfinished ones."""
        content = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records).encode()
        self._write_meta(sha256=hashlib.sha256(content).hexdigest())
        write_atomically(self.path, content)
        for path in self._partials():
            path.unlink()

    def take_over(self, other: "TargetStore") -> bool:
        """Copy what another store of the same identity holds, finished or not; returns whether it held anything."""
        try:
            if other._meta() is None:
                return False
            finished = other.load()
        except UserError:  # it was made from something else, or is damaged
            return False
        if finished is not None:
            self.finish(finished)
            return True
        records = other.unfinished()
        for record in records:
            self.append(0, record)
        return bool(records)

    def _partial(self, rank: int) -> Path:
        return self.path.with_name(f"{self.path.name}.partial-{rank}")

    def _partials(self) -> list[Path]:
        return sorted(self.path.parent.glob(f"{self.path.name}.partial-*"))

    def _meta(self) -> dict[str, Any] | None:
        if not self._meta_path.is_file():
            return None
        try:
            meta = json.loads(self._meta_path.read_bytes())
            if isinstance(meta["made_from"], dict):
                return dict(meta)
        except (ValueError, KeyError, TypeError):
            pass
        raise UserError(f"{self._meta_path} is damaged. Delete it and {self.path.name}* to build the targets again.")

    def _write_meta(self, **more: str) -> None:
        content = json.dumps({"made_from": self._identity, **more}, indent=2, ensure_ascii=False) + "\n"
        write_atomically(self._meta_path, content.encode())


def _checked_line(record: Record) -> bytes:
    line = json.dumps(record).encode()
    return b"%08x %s\n" % (zlib.crc32(line), line)


def _checked_lines(path: Path) -> Iterator[Record]:
    for line in path.read_bytes().split(b"\n"):
        checksum, _, text = line.partition(b" ")
        if text and checksum == b"%08x" % zlib.crc32(text):
            yield json.loads(text)


def _damage(content: bytes) -> str:
    for number, line in enumerate(content.splitlines(), start=1):
        try:
            json.loads(line)
        except ValueError:
            return f"is damaged in line {number}"
    return "was changed after it was built, or cut short"
