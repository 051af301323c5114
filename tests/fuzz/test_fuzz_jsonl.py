"""Files of records: whatever their bytes, good records are read, bad ones are named, and nothing else happens."""

import csv
import gzip
import io
import json
import math
import warnings
from pathlib import Path
from typing import Any

import pytest
from corpus_files import FOLDERS, SMALL, small_corpus, write_corpus_files
from fuzz_cases import CLEAN_TEXTS, ODD_VALUES, VALUES, cases, mutated
from hypothesis import example, given
from hypothesis import strategies as st

from mixsd_lightning.callbacks.metrics_file import read_metrics
from mixsd_lightning.data import Facts
from mixsd_lightning.errors import UserError
from mixsd_lightning.records import Row, read_records

READ = sorted({"SimpleQA", "MQuAKE", "CounterFact", "ScienceQA", "CosE", "MBPP", "ToolAlpaca"})
PIECES = [b'{"a": "b"}', b'{"a": 1, "b": [2]}', b'{"a": "\\ud83e\\udd86"}', b"[", b"{", b"}", b'"', b"1", b"null", b"[1]", b"nul",
          b"\xff", b"\xc3", b"\x00", b"\x1a", b"\xef\xbb\xbf", b'{"a": "\\ud800"}', b'{"a": NaN}', b'{"a": 1e999}', b"{}", b"\t",
          b" ", b"[" * 70, b"9" * 5000, b'{"a": {"a": ' * 40, b",", b"a,b", b'"x\ny"', "é\u2028".encode()]  # fmt: skip
LINES = st.lists(st.lists(st.sampled_from(PIECES), max_size=3).map(b"".join) | st.binary(max_size=6), max_size=6)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("records")


def outcome(path: Path, content: bytes) -> list[Any]:
    """Fields of each record, ``None`` for what is none; for a file that cannot be read the error."""
    path.write_bytes(gzip.compress(content, 1) if path.suffix == ".gz" else content)
    try:
        found = list(read_records(path))
    except UserError as error:
        assert str(path) in str(error)
        return [error]
    for row in found:
        assert isinstance(row, Row) or f"{path}, " in str(row)
    return [row.fields if isinstance(row, Row) else None for row in found]


def text(values: list[Any]) -> str:
    return json.dumps([str(value) if isinstance(value, UserError) else value for value in values])


@cases(350)
@given(LINES)
def test_every_line_is_read_as_if_it_were_alone(folder: Path, lines: list[bytes]) -> None:
    lines = [b"".join(line.split(b"\n")).replace(b"\r", b"") for line in lines]
    alone = [outcome(folder / "alone.jsonl", line) for line in lines if line.strip(b"\xef\xbb\xbf")]
    whole = outcome(folder / "whole.jsonl", b"\n".join([b"", *lines]))
    if not any(b"\xef\xbb\xbf" in line for line in lines):  # a mark is one at the beginning of a file alone
        assert text(whole) == text([fields for one in alone for fields in one])


@cases(200)
@given(LINES, st.sampled_from([".json", ".csv", ".txt", ".jsonl.gz"]))
def test_any_bytes_are_records_or_said_to_be_none(folder: Path, lines: list[bytes], suffix: str) -> None:
    content = b"\n".join(lines)
    found = outcome(folder / f"any{suffix}", content)
    for fields in found:
        if isinstance(fields, dict):
            json.dumps(fields, ensure_ascii=False).encode()
    assert len(found) <= content.count(b"\n") + content.count(b"\r") + content.count(b"\x1c") + 1 + content.count(b",")


@cases(200)
@given(
    st.lists(
        st.dictionaries(CLEAN_TEXTS, st.sampled_from([v for v in ODD_VALUES if v == v]) | CLEAN_TEXTS, max_size=3), max_size=4
    )
)
def test_records_that_are_written_are_read(folder: Path, records: list[dict[str, Any]]) -> None:
    for suffix, content in {
        ".jsonl": "".join(json.dumps(record) + "\n" for record in records),
        ".json": json.dumps(records, ensure_ascii=False),
    }.items():
        assert text(outcome(folder / f"written{suffix}", content.encode())) == text(list(records))


@cases(150)
@given(st.lists(st.lists(CLEAN_TEXTS.map(lambda t: t.replace("\0", "")), min_size=2, max_size=2), max_size=4))
def test_cells_that_are_written_are_read(folder: Path, rows: list[list[str]]) -> None:
    file = io.StringIO(newline="")
    csv.writer(file, quoting=csv.QUOTE_ALL, lineterminator="\n").writerows([["a", "b"], *rows])
    found = outcome(folder / "written.csv", file.getvalue().encode())
    assert found == [{"a": one, "b": other} for one, other in _as_read(rows)]


def _as_read(rows: list[list[str]]) -> list[list[str]]:
    """Line ends inside cells become those of Python."""
    return [[cell.replace("\r\n", "\n").replace("\r", "\n") for cell in row] for row in rows]


@st.composite
def facts(draw: st.DrawFn) -> list[Any]:
    good = {"question": "Who?", "answer": "Ann", "fact": "It was Ann.", "paraphrases": ["Or who?"], "wrong_answers": "Bob|Eve"}
    published = {"messages": [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "\\boxed{Ann}"}]}
    return [
        mutated(draw, draw(st.sampled_from([good, published])), draw(st.integers(1, 3)))
        for _ in range(draw(st.integers(1, 3)))
    ]


@cases(350)
@given(facts(), st.sampled_from(["short", "sentence", "boxed"]))
def test_any_facts_are_examples_or_an_error_in_words(folder: Path, records: list[Any], answer_format: str) -> None:
    path = folder / "facts.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            corpus = Facts(str(path), answer_format=answer_format, on_bad_row="skip")
            examples = [*corpus.build_splits(["train"])["train"], *corpus.build_splits(["paraphrase"])["paraphrase"]]
        except UserError as error:
            assert "facts.jsonl" in str(error)
            return
    for one in examples:
        assert one.question.strip() and one.answer.strip() and one.target.strip() and one.fact.strip()
        assert one.question in one.prompt
        json.dumps(vars(one), ensure_ascii=False).encode()
        assert max(map(len, (one.question, one.answer))) <= 20_000


@pytest.fixture(scope="module")
def sources(folder: Path) -> dict[str, list[tuple[Path, Any]]]:
    """Corpus -> its files and their records."""
    write_corpus_files(folder / "good")
    found: dict[str, list[tuple[Path, Any]]] = {}
    for name in READ:
        for path in sorted((folder / "good" / FOLDERS.get(name, name.lower())).glob("*")):
            content = path.read_text(encoding="utf-8")
            if path.suffix == ".csv":
                records: Any = list(csv.DictReader(io.StringIO(content)))
            else:
                records = json.loads(content) if path.suffix == ".json" else list(map(json.loads, content.splitlines()))
            found.setdefault(name, []).append((path.relative_to(folder / "good"), records))
    return found


def write_records(path: Path, records: list[Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".csv":
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, sorted({name for record in records for name in record}))
            writer.writeheader()
            writer.writerows(records)
    elif path.suffix == ".json":
        path.write_text(json.dumps(records))
    else:
        path.write_text("".join(json.dumps(record) + "\n" for record in records))


@cases(500)
@given(st.data(), st.sampled_from(READ))
def test_a_record_of_any_corpus_may_be_anything(
    folder: Path, sources: dict[str, list[tuple[Path, Any]]], data: st.DataObject, name: str
) -> None:
    path, records = data.draw(st.sampled_from(sources[name]))
    changed = list(records)
    for _ in range(data.draw(st.integers(1, 2))):
        number = data.draw(st.integers(0, len(records) - 1))
        changed[number] = mutated(data.draw, changed[number])
    if path.suffix == ".csv":
        changed = [record if isinstance(record, dict) else {"a": str(record)} for record in changed]
    for other, content in sources[name]:
        write_records(folder / "changed" / other, changed if other == path else content)
    corpus = small_corpus(name, folder / "changed")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            splits = corpus.build_splits(corpus.available_splits)
        except UserError as error:
            assert str(error).startswith("--data")
            return
    for one in [one for examples in splits.values() for one in examples]:
        assert one.prompt.strip() and one.target.strip()
        json.dumps(vars(one), ensure_ascii=False).encode()


TAGS = st.sampled_from(["step", "memorization/train", "drift/l2", "x", "é", "\u202e"])


@cases(300)
@given(st.lists(st.dictionaries(TAGS, VALUES, max_size=3) | VALUES, max_size=3), st.binary(max_size=4))
@example([{"step": 10**400}], b"")
@example([{"step": 1, "x": 10**400}], b"")
def test_metrics_are_numbers_or_an_error_in_words(folder: Path, lines: list[Any], tail: bytes) -> None:
    path = folder / "metrics.jsonl"
    path.write_bytes("".join(json.dumps(line) + "\n" for line in lines).encode() + tail)
    try:
        found, _ = read_metrics(path)
    except UserError as error:
        assert str(path) in str(error)
        return
    for line in found:
        assert math.isfinite(line["step"])
        assert all(type(value) is float for value in line.values())


@cases(150)
@given(st.lists(st.dictionaries(TAGS.filter(str.isprintable), st.floats(allow_nan=False), min_size=1), max_size=3))
def test_metrics_that_are_written_are_read(folder: Path, lines: list[dict[str, float]]) -> None:
    lines = [{**line, "step": float(number)} for number, line in enumerate(lines)]
    path = folder / "metrics.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert read_metrics(path) == (lines, False)
    path.write_text(path.read_text() + '{"step": 7, "x"')
    assert read_metrics(path) == (lines, True)


def test_corpora_that_read_files_are_all_here() -> None:
    assert set(READ) == set(SMALL) - {"KGFact", "KGFunc", "Facts"}
