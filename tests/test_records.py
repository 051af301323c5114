"""Records are read from files and from the Hub, and what is wrong with one is said on one line and harms no other."""

import gzip
import json
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest

from mixsd_lightning.errors import UserError
from mixsd_lightning.records import DataSet, Row, evenly_spaced, read_records, read_rows

ADDRESS = "https://example.org/cases.json"


def read(path: Path, content: bytes | str) -> list[Row | UserError]:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return list(read_records(path))


def brief(found: list[Row | UserError]) -> list[str]:
    """Field ``a`` of each record, or what is wrong with it and where."""
    return [str(row) if isinstance(row, UserError) else row.text("a") for row in found]


def test_json_lines_keep_their_numbers_past_blank_lines(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"a": "é"}\n\n{"a": "b"}\n', encoding="utf-8")
    assert [(row.where, row.text("a")) for row in read_rows(path)] == [(f"{path}, line 1", "é"), (f"{path}, line 3", "b")]


@pytest.mark.parametrize("indent", [None, 2])
def test_a_json_list_is_read_by_record(tmp_path: Path, indent: int | None) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps([{"a": "b"}, {"a": "c"}], indent=indent))
    assert [(row.where, row.text("a")) for row in read_rows(path)] == [(f"{path}, record 1", "b"), (f"{path}, record 2", "c")]


def test_what_is_no_object_of_a_json_list_is_named_by_number(tmp_path: Path) -> None:
    first, second, third = brief(read(tmp_path / "a.json", '[{"a": "b"}, 1, {"a": "c"}]'))
    assert (first, third) == ("b", "c")
    assert f"{tmp_path}/a.json, record 2 is no JSON object in a list" in second


@pytest.mark.parametrize("content", ['{"a": "b"}', "1", "null"])
def test_a_json_file_of_something_else_is_no_list(tmp_path: Path, content: str) -> None:
    (problem,) = brief(read(tmp_path / "a.json", content))
    assert "record 1 is no JSON object in a list" in problem


def test_csv_cells_may_hold_commas_quotes_and_lines(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text('question,choice0\n"Say ""a,\nb""",0\nlast,1\n')
    rows = read_rows(path)
    assert [row.fields for row in rows] == [{"question": 'Say "a,\nb"', "choice0": "0"}, {"question": "last", "choice0": "1"}]
    assert [row.where for row in rows] == [f"{path}, line 2", f"{path}, line 4"]


def test_csv_lines_may_be_blank_or_end_early(tmp_path: Path) -> None:
    found = read(tmp_path / "a.csv", "\na,b\n\nx\ny,1\n")
    assert [row.fields for row in found if isinstance(row, Row)] == [{"a": "x"}, {"a": "y", "b": "1"}]
    assert [row.where for row in found if isinstance(row, Row)] == [f"{tmp_path}/a.csv, line {number}" for number in (4, 5)]


@pytest.mark.parametrize("content", ["", "a,b\n", "\n\n"])
def test_csv_without_records_has_none(tmp_path: Path, content: str) -> None:
    assert read(tmp_path / "a.csv", content) == []


def test_lines_of_text_are_stripped_and_blank_ones_left_out(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("one two \n\nthree\n")
    assert [row.text("text") for row in read_rows(path)] == ["one two", "three"]


@pytest.mark.parametrize(
    ("name", "content"),
    [("a.jsonl", '{"a": "é"}\n{"a": "b"}\n'), ("a.json", '[{"a": "é"},\n{"a": "b"}]\n'), ("a.csv", 'a\né\n"b"\n')],
)
@pytest.mark.parametrize("mark", ["", "\ufeff"])
@pytest.mark.parametrize("line_end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_marks_of_byte_order_line_ends_and_gzip_do_not_matter(
    tmp_path: Path, name: str, content: str, mark: str, line_end: str, pack: Callable[[bytes], bytes]
) -> None:
    path = tmp_path / (name if pack is bytes else f"{name}.gz")
    assert brief(read(path, pack((mark + content.replace("\n", line_end)).encode()))) == ["é", "b"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b'{"a": 1}\n{"a": \n', "line 2 is not JSON"),
        ("a.jsonl", b"[1]\n", "line 1 is no JSON object"),
        ("a.jsonl", b"\xff\xfe", "line 1 is not JSON"),
        ("a.txt", b"a\n\xff\xfe", "line 2 cannot be written as UTF-8"),
        ("a.json", b'[{"a": "b"}, {"a', "cannot read .*Unterminated string.*Fetch the file again"),
        ("a.json", b"[" * 100_000, "cannot read .*Fetch the file again"),
        ("a.csv", b'"a,b\n1,2\n', "cannot read .*unexpected end of data.*Fetch the file again"),
        ("a.jsonl.gz", b"plain", "cannot read .*Fetch the file again"),
        # No time of making: the parameters are part of the test's name, which every worker must find alike.
        ("a.jsonl.gz", gzip.compress(b"x" * 99, mtime=0)[:-9], "cannot read .*Fetch the file again"),
        ("a.jsonl.gz", gzip.compress(b"x" * 99, mtime=0)[:10] + b"\xff" * 20, "cannot read .*Fetch the file again"),
        ("a.parquet", b"PAR1", "is none of .jsonl, .json, .csv, .txt"),
    ],
)
def test_an_unreadable_file_is_named(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        read_rows(tmp_path / name)
    assert str(tmp_path / name) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="No such file"):
        read_rows(tmp_path / "none.jsonl")


@pytest.mark.parametrize(
    ("name", "bad", "reason"),
    [
        ("a.jsonl", b'{"a": "x"', "is not JSON: Expecting ',' delimiter: column 10"),
        ("a.jsonl", b"1", "is no JSON object"),
        ("a.jsonl", b'{"a": "\xff"}', "cannot be written as UTF-8"),
        ("a.jsonl", b'{"a": "x", "b": {"c": ["\\udc00"]}}', "cannot be written as UTF-8"),
        ("a.jsonl", b'{"\\ud800": "x"}', "cannot be written as UTF-8"),
        ("a.jsonl", b'{"a": ' + b"[" * 100_000, "is not JSON: "),
        ("a.csv", b"x,1,2", "has more fields than the header"),
        ("a.csv", b"x,\xff", "cannot be written as UTF-8"),
        ("a.csv", b'"x"y,1', "is not CSV: ',' expected after '\"'"),
        ("a.csv", b'x,"1', "is not CSV: unexpected end of data"),
        ("a.csv", b"x," + b"1" * 200_000, "is not CSV: field larger than field limit"),
    ],
)
@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_a_bad_record_is_named_and_the_others_are_read(
    tmp_path: Path, name: str, bad: bytes, reason: str, pack: Callable[[bytes], bytes]
) -> None:
    lines = [b"a,b", b"u,1", bad, b"v,2", b"w,3"] if name == "a.csv" else [b'{"a": "u"}', bad, b'{"a": "v"}', b'{"a": "w"}']
    path = tmp_path / (name if pack is bytes else f"{name}.gz")
    first, problem, *others = brief(read(path, pack(b"\n".join(lines))))
    assert [first, *others] == ["u", "v", "w"]
    assert f"{path}, line {lines.index(bad) + 1} {reason}" in problem


def test_a_quote_left_open_takes_in_no_other_record(tmp_path: Path) -> None:
    good = [f'"{letter}","several\nlines"' for letter in "vw"]
    found = read(tmp_path / "a.csv", "\n".join(["a,b", 'x,"1', good[0], 'y,"2', good[1], 'z,"3']))
    rows = [row for row in found if isinstance(row, Row)]
    assert [row.fields for row in rows] == [{"a": letter, "b": "several\nlines"} for letter in "vw"]
    assert [row.where.partition(", ")[2] for row in rows] == ["line 3", "line 6"]
    problems = [str(row) for row in found if isinstance(row, UserError)]
    assert ["line 2 " in problems[0], "line 5 " in problems[1], "line 8 " in problems[2]] == [True] * 3


def test_a_bad_record_of_a_json_list_harms_no_other(tmp_path: Path) -> None:
    first, problem, last = brief(read(tmp_path / "a.json", b'[{"a": "u"}, {"a": "\xff"}, {"a": "v"}]'))
    assert (first, last) == ("u", "v")
    assert "record 2 cannot be written as UTF-8" in problem


@pytest.mark.parametrize("length", [99, 100, 199, 200, 201, 202, 303, 1000])
@pytest.mark.parametrize(
    ("name", "header", "start", "end"), [("a.jsonl", "", '{"a": "', '"}'), ("a.csv", "b,a\n", "1,", ""), ("a.txt", "", "", "")]
)
def test_a_line_has_a_greatest_length(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, header: str, start: str, end: str, length: int
) -> None:
    monkeypatch.setattr("mixsd_lightning.records._LONGEST_LINE", 100)
    long, short = (f"{start}{'x' * (size - len(start + end))}{end}" for size in (length, 50))
    found = read(tmp_path / name, f"{header}{long}\n{short}\n{long}")
    assert [isinstance(row, UserError) for row in found] == [length > 99, False, length > 100]  # the end of a line counts
    wheres = [f"{tmp_path}/{name}, line {number}" for number in range(1 + bool(header), 4 + bool(header))]
    for row, where in zip(found, wheres, strict=True):
        if isinstance(row, UserError):
            assert f"{where} is longer than 100 characters" in str(row)
        else:
            assert row.where == where


def test_of_a_line_without_end_little_is_kept_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mixsd_lightning.records._LONGEST_LINE", 10_000)
    path = tmp_path / "a.jsonl"
    path.write_text('{"a": "u"}\n{"a": "' + "x" * 10_000_000 + '\n{"a": "v"}\n')
    tracemalloc.start()
    try:
        first, problem, last = brief(list(read_records(path)))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert (first, last) == ("u", "v")
    assert "line 2 is longer than 10000 characters" in problem
    assert peak < 1_000_000


@pytest.mark.parametrize(
    ("read", "value", "expected"),
    [
        (lambda row: row.text("f"), "a", "a"),
        (lambda row: row.text("f", may_be_empty=True), "", ""),
        (lambda row: row.texts("f"), ["a", "b"], ("a", "b")),
        (lambda row: row.index("f", 4), "3", 3),
        (lambda row: row.index("f", 4), 0, 0),
    ],
)
def test_fields_are_read(read: Callable[[Row], object], value: object, expected: object) -> None:
    assert read(Row("data.jsonl, line 7", {"f": value})) == expected


@pytest.mark.parametrize(
    ("read", "value"),
    [
        (lambda row: row.text("f"), " "),
        (lambda row: row.text("f"), 3),
        (lambda row: row.text("f", may_be_empty=True), None),
        (lambda row: row.texts("f"), ["a"]),
        (lambda row: row.texts("f"), ["a", ""]),
        (lambda row: row.texts("f"), "ab"),
        (lambda row: row.index("f", 4), 4),
        (lambda row: row.index("f", 4), -1),
        (lambda row: row.index("f", 4), True),
        (lambda row: row.index("f", 4), None),
    ],
)
def test_fields_of_another_kind_are_refused(read: Callable[[Row], object], value: object) -> None:
    with pytest.raises(UserError, match="--retention.suites: data.jsonl, line 7 has no .* in the field 'f'. Mend the record"):
        read(Row("data.jsonl, line 7", {"f": value}))


@pytest.mark.parametrize("limit", range(1, 12))
def test_evenly_spaced_items_are_in_order_and_cover_the_whole(limit: int) -> None:
    chosen = list(evenly_spaced(range(10), limit))
    assert chosen == sorted(set(chosen))
    assert len(chosen) == min(limit, 10)
    gaps = [b - a for a, b in zip([*chosen], [*chosen[1:], 10], strict=True)]
    assert max(gaps) - min(gaps) <= 1


def test_a_limit_of_zero_is_all() -> None:
    assert evenly_spaced([1, 2, 3], 0) == [1, 2, 3]


def test_several_files_are_read_in_the_order_of_their_names(tmp_path: Path) -> None:
    for name in ("b", "a"):
        (tmp_path / f"{name}.txt").write_text(f"{name}\n")
    assert [row.text("text") for row in DataSet("*.txt", "hub").rows(str(tmp_path))] == ["a", "b"]


# Data sets of the Hub.


def test_hub_records_are_named_by_number(monkeypatch: pytest.MonkeyPatch) -> None:
    known = {("some/name", "main", "test"): [{"a": "x"}, {"a": "y"}]}
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets, "load_dataset", lambda name, config, split: known[name, config, split])
    rows = DataSet("", "some/name", "main").rows(None)
    assert [(row.where, row.text("a")) for row in rows] == [
        ("some/name, test record 0", "x"),
        ("some/name, test record 1", "y"),
    ]


def test_an_address_is_loaded_as_a_json_file(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(kind: str, data_files: str, split: str) -> list[dict[str, str]]:
        assert (kind, data_files, split) == ("json", ADDRESS, "train")
        return [{"a": "x"}]

    monkeypatch.setattr(pytest.importorskip("datasets"), "load_dataset", load)
    (row,) = DataSet("cases/*.json", ADDRESS, option="--data").rows(None)
    assert (row.where, row.text("a")) == (f"{ADDRESS}, train record 0", "x")
    assert str(row.wrong("is odd")).startswith("--data: ")


@pytest.mark.parametrize(
    ("pattern", "remedy"), [("", "or name a file on this machine"), ("b/*.txt", "or set data_dir to a folder that has b/")]
)
def test_what_cannot_be_loaded_is_said_with_a_remedy(monkeypatch: pytest.MonkeyPatch, pattern: str, remedy: str) -> None:
    def fail(*args: object, **options: object) -> None:
        raise ConnectionError("no network\nand more")

    monkeypatch.setattr(pytest.importorskip("datasets"), "load_dataset", fail)
    with pytest.raises(UserError, match=f"cannot load {ADDRESS}: no network Mend that, {remedy}"):
        DataSet(pattern, ADDRESS).rows(None)
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UserError, match=rf"pip install 'mixsd_lightning\[hub\]', {remedy}"):
        DataSet(pattern, ADDRESS).rows(None)
