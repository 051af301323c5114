"""Records of public data sets, from files or from the Hugging Face Hub."""

import csv
import gzip
import json
import zlib
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO, TypeVar

from mixsd_lightning.errors import UserError
from mixsd_lightning.untrusted import parse_json

T = TypeVar("T")
Fields = Mapping[str, Any]
_LONGEST_LINE = 10_000_000
_LARGEST_LIST = 1_000_000_000


@dataclass(frozen=True)
class Row:
    """One record and where it stands."""

    where: str
    """File and line, or data set and number."""
    fields: Fields
    file: Path | None = None
    option: str = "--retention.suites"
    """What the user set to have it read, for messages."""

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
        return UserError(f"{self.option}: {self.where} {what}. Mend the record or remove it.")


@dataclass(frozen=True)
class DataSet:
    """A public data set in its two homes."""

    pattern: str
    """Its files in a data folder: a path with wildcards."""
    hub_name: str
    """Its name on the Hugging Face Hub, or the address of a JSON file that is not there."""
    hub_config: str | None = None
    hub_split: str = "test"
    option: str = "--retention.suites"

    def rows(self, data_dir: str | None) -> list[Row]:
        """All records, from a folder or, without one, from the Hub.

        Raises:
            UserError: if they cannot be had.
        """
        return self._hub_rows() if data_dir is None else self._file_rows(Path(data_dir).expanduser())

    def _file_rows(self, folder: Path) -> list[Row]:
        rows = [row for path in sorted(folder.glob(self.pattern)) for row in read_rows(path, self.option)]
        if not rows:
            raise UserError(
                f"{self.option}: data_dir '{folder}' has no records in {self.pattern}. Put the data there, or leave "
                f"data_dir out to load {self.hub_name}."
            )
        return rows

    def _hub_rows(self) -> list[Row]:
        otherwise = f"set data_dir to a folder that has {self.pattern}" if self.pattern else "name a file on this machine"
        try:
            from datasets import load_dataset
        except ImportError as error:
            raise UserError(
                f"{self.option}: loading {self.hub_name} needs datasets, which is not installed: "
                f"pip install 'mixsd_lightning[hub]', or {otherwise}."
            ) from error
        is_address = "://" in self.hub_name
        split = "train" if is_address else self.hub_split  # a single file has no other
        try:
            if is_address:
                records = load_dataset("json", data_files=self.hub_name, split=split)
            else:
                records = load_dataset(self.hub_name, self.hub_config, split=split)
        except Exception as error:  # whatever a missing network makes the loader raise; the cause is kept and shown
            reason = next(iter(str(error).splitlines()), type(error).__name__)
            raise UserError(f"{self.option}: cannot load {self.hub_name}: {reason} Mend that, or {otherwise}.") from error
        where = f"{self.hub_name}, {split} record"
        return [Row(f"{where} {number}", fields, option=self.option) for number, fields in enumerate(records)]


def read_rows(path: Path, option: str = "--retention.suites") -> list[Row]:
    """All records of a file that :func:`read_records` reads.

    Raises:
        UserError: if the file cannot be read, or a record is not what the file's name says.
    """
    rows = []
    for row in read_records(path, option):
        if isinstance(row, UserError):
            raise row
        rows.append(row)
    return rows


def read_records(path: Path, option: str = "--retention.suites") -> Iterator[Row | UserError]:
    """Records of a file: JSON lines, a JSON list, CSV with a header, or lines of text (in the field ``text``); perhaps gzipped.

    In the place of a record that is none comes an error that says where and why, and reading goes on with the next line. Of a
    line that is longer than ten million characters no more than that is kept in memory; a JSON list is read whole, up to a billion.

    Args:
        path: The file, in UTF-8.
        option: What the user set to have it read, for messages.

    Raises:
        UserError: if the file cannot be read.
    """
    is_zipped = path.suffix == ".gz"
    kind = path.with_suffix("").suffix if is_zipped else path.suffix
    if kind not in _READERS:
        raise UserError(f"{option}: {path} is none of {', '.join(_READERS)}, with or without .gz. Convert it.")
    try:
        # utf-8-sig: a mark of byte order, which spreadsheets write, is no part of the first field. surrogateescape: bytes that
        # are no UTF-8 spoil their own record and no other.
        with (
            gzip.open(path, "rt", encoding="utf-8-sig", errors="surrogateescape")
            if is_zipped
            else path.open(encoding="utf-8-sig", errors="surrogateescape")
        ) as file:
            for where, fields in _READERS[kind](file):
                problem = fields if isinstance(fields, str) else _encoding_problem(fields)
                row = Row(f"{path}, {where}", {} if isinstance(fields, str) else fields, path, option)
                yield row.wrong(problem) if problem else row
    except (OSError, EOFError, ValueError, RecursionError, zlib.error, csv.Error) as error:
        raise UserError(f"{option}: cannot read {path}: {error}. Fetch the file again.") from error


Found = Iterator[tuple[str, Fields | str]]
"""Where a record stands, and its fields or what is wrong with it."""


def _encoding_problem(fields: Fields) -> str | None:
    """What is wrong with texts that cannot be written as UTF-8: bytes that are none, or half of a pair of surrogates."""
    try:
        json.dumps(fields, ensure_ascii=False).encode()
    except (UnicodeEncodeError, RecursionError) as error:
        return f"cannot be written as UTF-8: {error}"
    return None


def _lines(file: TextIO) -> Iterator[str]:
    """Lines, each cut short after one character more than the longest that is allowed."""
    while line := file.readline(_LONGEST_LINE + 1):
        yield line
        while line and not line.endswith("\n"):
            line = file.readline(_LONGEST_LINE + 1)


def _length_problem(line: str) -> str | None:
    return f"is longer than {_LONGEST_LINE} characters" if len(line) > _LONGEST_LINE else None


def _json_lines(file: TextIO) -> Found:
    for number, line in enumerate(_lines(file), start=1):
        if line.strip():
            yield f"line {number}", _length_problem(line) or _json_object(line)


def _json_object(line: str) -> Fields | str:
    try:
        fields = parse_json(line.rstrip())
    except ValueError as error:
        return f"is not JSON: {error}".replace("line 1 ", "")
    return fields if isinstance(fields, dict) else "is no JSON object"


def _json_list(file: TextIO) -> Found:
    records = parse_json(_whole(file))
    for number, fields in enumerate(records if isinstance(records, list) else [None], start=1):
        yield f"record {number}", fields if isinstance(fields, dict) else "is no JSON object in a list"


def _whole(file: TextIO) -> str:
    """All of a file.

    Raises:
        ValueError: if that is more than the largest list; an archive of a few kilobytes can be.
    """
    text = file.read(_LARGEST_LIST + 1)
    if len(text) > _LARGEST_LIST:
        raise ValueError(f"it is longer than {_LARGEST_LIST} characters; make it JSON lines, which are read one by one")
    return text


def _csv_lines(file: TextIO) -> Found:
    lines = _lines(file)
    again: deque[str] = deque()
    taken: list[str] = []

    def take() -> Iterator[str]:
        while line := again.popleft() if again else next(lines, ""):
            taken.append(line)
            yield line

    header = next(filter(None, csv.reader(take(), strict=True)), [])
    number = 1
    while taken:
        number += len(taken)
        taken.clear()
        try:
            cells = next(csv.reader(take(), strict=True), [])
        except csv.Error as error:
            # A quote that is left open takes in all that follows: the record ends with its first line, and the others are read
            # again.
            again.extendleft(reversed(taken[1:]))
            del taken[1:]
            yield f"line {number}", f"is not CSV: {error}"
            continue
        if problem := next(filter(None, map(_length_problem, taken)), None):
            yield f"line {number}", problem
        elif len(cells) > len(header):
            yield f"line {number}", "has more fields than the header"
        elif cells:
            yield f"line {number}", dict(zip(header, cells, strict=False))


def _text_lines(file: TextIO) -> Found:
    for number, line in enumerate(_lines(file), start=1):
        if line.strip():
            yield f"line {number}", _length_problem(line) or {"text": line.strip()}


_READERS = {".jsonl": _json_lines, ".json": _json_list, ".csv": _csv_lines, ".txt": _text_lines}


def evenly_spaced(items: Sequence[T], limit: int) -> Sequence[T]:
    """``limit`` of the items at even distances, in order; all of them for 0.

    >>> evenly_spaced("abcdefg", 3)
    ['a', 'c', 'e']
    """
    if limit == 0 or limit >= len(items):
        return items
    return [items[index * len(items) // limit] for index in range(limit)]
