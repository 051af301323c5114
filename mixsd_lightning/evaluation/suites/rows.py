"""Records of public data sets, from files or from the Hugging Face Hub."""

import csv
import gzip
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from mixsd_lightning.errors import UserError

T = TypeVar("T")
Fields = Mapping[str, Any]


@dataclass(frozen=True)
class Row:
    """One record and where it stands."""

    where: str
    """File and line, or data set and number."""
    fields: Fields
    file: Path | None = None

    def text(self, field: str, may_be_empty: bool = False) -> str:
        """A field that holds text.

        Raises:
            UserError: if it is missing, no text or, unless that is allowed, blank.
        """
        value = self.fields.get(field)
        if not isinstance(value, str) or not (may_be_empty or value.strip()):
            raise self.wrong(f"has no text in the field '{field}'")
        return value

    def texts(self, field: str) -> tuple[str, ...]:
        """A field that holds two texts or more.

        Raises:
            UserError: if it is missing or anything else.
        """
        values = self.fields.get(field)
        if not isinstance(values, list) or len(values) < 2 or not all(isinstance(v, str) and v.strip() for v in values):
            raise self.wrong(f"has no list of texts in the field '{field}'")
        return tuple(values)

    def index(self, field: str, size: int) -> int:
        """A field that holds a number from 0 to ``size - 1``, perhaps written as text.

        Raises:
            UserError: if it is missing or anything else.
        """
        value = self.fields.get(field)
        if isinstance(value, bool) or str(value) not in map(str, range(size)):
            raise self.wrong(f"has no number from 0 to {size - 1} in the field '{field}'")
        return int(str(value))

    def wrong(self, what: str) -> UserError:
        """An error about this record."""
        return UserError(f"--retention.suites: {self.where} {what}. Mend the record or remove it.")


@dataclass(frozen=True)
class DataSet:
    """A public data set in its two homes."""

    pattern: str
    """Its files in a data folder: a path with wildcards."""
    hub_name: str
    hub_config: str | None = None
    hub_split: str = "test"

    def rows(self, data_dir: str | None) -> list[Row]:
        """All records, from a folder or, without one, from the Hub.

        Raises:
            UserError: if they cannot be had.
        """
        return self._hub_rows() if data_dir is None else self._file_rows(Path(data_dir).expanduser())

    def _file_rows(self, folder: Path) -> list[Row]:
        rows = [row for path in sorted(folder.glob(self.pattern)) for row in read_rows(path)]
        if not rows:
            raise UserError(
                f"--retention.suites: data_dir '{folder}' has no records in {self.pattern}. Put the data there, or leave "
                f"data_dir out to load {self.hub_name} from the Hugging Face Hub."
            )
        return rows

    def _hub_rows(self) -> list[Row]:
        try:
            from datasets import load_dataset
        except ImportError as error:
            raise UserError(
                f"--retention.suites: loading {self.hub_name} from the Hugging Face Hub needs datasets, which is not "
                "installed: pip install 'mixsd_lightning[hub]', or set data_dir to a folder that has "
                f"{self.pattern}."
            ) from error
        try:
            records = load_dataset(self.hub_name, self.hub_config, split=self.hub_split)
        except Exception as error:  # whatever a missing network makes the loader raise; the cause is kept and shown
            reason = next(iter(str(error).splitlines()), type(error).__name__)
            raise UserError(
                f"--retention.suites: cannot load {self.hub_name} from the Hugging Face Hub: {reason} "
                f"Mend that, or set data_dir to a folder that has {self.pattern}."
            ) from error
        return [Row(f"{self.hub_name}, {self.hub_split} record {number}", fields) for number, fields in enumerate(records)]


def read_rows(path: Path) -> list[Row]:
    """Records of one file: JSON lines, CSV with a header, or lines of text (in the field ``text``); perhaps gzipped.

    Raises:
        UserError: if the file cannot be read, or a line is not what the file's name says.
    """
    is_zipped = path.suffix == ".gz"
    kind = path.with_suffix("").suffix if is_zipped else path.suffix
    if kind not in _READERS:
        raise UserError(f"--retention.suites: {path} is none of {', '.join(_READERS)}, with or without .gz. Convert it.")
    try:
        with gzip.open(path, "rt", encoding="utf-8") if is_zipped else path.open(encoding="utf-8", newline="") as file:
            return [Row(f"{path}, line {number}", fields, path) for number, fields in _READERS[kind](path, file)]
    except (OSError, EOFError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"--retention.suites: cannot read {path}: {error}. Fetch the file again.") from error


def _json_lines(path: Path, lines: Iterable[str]) -> Iterator[tuple[int, Fields]]:
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            fields = json.loads(line)
        except json.JSONDecodeError as error:
            where = f"{path}, line {number}"
            raise UserError(f"--retention.suites: {where} is not JSON: {error.msg}. Mend the line or remove it.") from error
        if not isinstance(fields, dict):
            raise UserError(f"--retention.suites: {path}, line {number} is no JSON object. Mend the line or remove it.")
        yield number, fields


def _csv_lines(path: Path, lines: Iterable[str]) -> Iterator[tuple[int, Fields]]:
    reader = csv.DictReader(lines)
    for fields in reader:
        yield reader.line_num, fields


def _text_lines(path: Path, lines: Iterable[str]) -> Iterator[tuple[int, Fields]]:
    for number, line in enumerate(lines, start=1):
        if line.strip():
            yield number, {"text": line.strip()}


_READERS = {".jsonl": _json_lines, ".csv": _csv_lines, ".txt": _text_lines}


def evenly_spaced(items: Sequence[T], limit: int) -> Sequence[T]:
    """``limit`` of the items at even distances, in order; all of them for 0.

    >>> evenly_spaced("abcdefg", 3)
    ['a', 'c', 'e']
    """
    if limit == 0 or limit >= len(items):
        return items
    return [items[index * len(items) // limit] for index in range(limit)]
