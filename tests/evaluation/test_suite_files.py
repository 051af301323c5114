"""Records are read from files and from the Hub alike, and what is wrong with them is said on one line."""

import gzip
import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from mixsd_lightning.errors import UserError
from mixsd_lightning.evaluation.suites import AIME2024, GSM8K, MATH500, MMLU, SUITES, HellaSwag, HumanEval, Lambada
from mixsd_lightning.evaluation.suites.data_suite import DataSuite
from mixsd_lightning.evaluation.suites.mmlu_subjects import CATEGORIES
from mixsd_lightning.evaluation.suites.rows import DataSet, Row, evenly_spaced, read_rows

DATA_SUITES = [suite for suite in SUITES.values() if issubclass(suite, DataSuite)]
HUMANEVAL = {"prompt": "def f():\n", "entry_point": "f", "test": "def check(f): pass", "canonical_solution": "    pass\n"}
SCENE = {
    "activity_label": "Swimming",
    "ctx_a": "A boy dives.",
    "ctx_b": "the boy",
    "endings": ["swims.", "[step] flies.", "sings.", "reads."],
    "label": 0,
}
# Suite -> the records of its hub data sets, by (name, config, split).
HUB: dict[type[DataSuite], dict[tuple[str, str | None, str], list[dict[str, Any]]]] = {
    GSM8K: {("openai/gsm8k", "main", "test"): [{"question": "Add.", "answer": "1000+600\n#### 1,600"}]},
    MATH500: {("HuggingFaceH4/MATH-500", None, "test"): [{"problem": "Halve.", "answer": "\\frac{1}{2}", "level": 1}]},
    AIME2024: {("HuggingFaceH4/aime_2024", None, "train"): [{"problem": "Count.", "answer": "33", "id": 60}]},
    HumanEval: {("openai/openai_humaneval", None, "test"): [HUMANEVAL]},
    MMLU: {
        ("cais/mmlu", "all", split): [
            {"question": f"Which of {split}?", "subject": "virology", "choices": ["p", "q", "r", "s"], "answer": 2}
        ]
        for split in ("test", "dev")
    },
    HellaSwag: {("Rowan/hellaswag", None, "validation"): [{**SCENE, "label": "0"}]},
    Lambada: {("EleutherAI/lambada_openai", None, "test"): [{"text": "It rained all day"}]},
}


def write_jsonl(path: Path, records: Sequence[Mapping[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(record) + "\n" for record in records)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    """The records of ``HUB`` in the layout of a data folder."""
    write_jsonl(tmp_path / "gsm8k" / "test.jsonl", [{"question": "Add.", "answer": "1000+600\n#### 1,600"}])
    write_jsonl(tmp_path / "math500" / "test.jsonl", [{"problem": "Halve.", "answer": "\\frac{1}{2}"}])
    write_jsonl(tmp_path / "aime2024" / "test.jsonl", [{"problem": "Count.", "answer": "33"}])
    write_jsonl(tmp_path / "humaneval" / "HumanEval.jsonl.gz", [HUMANEVAL])
    write_jsonl(tmp_path / "hellaswag" / "validation-500.jsonl", [SCENE])
    for split in ("test", "dev"):
        (tmp_path / "mmlu" / split).mkdir(parents=True)
        rows = f"question,choice0,choice1,choice2,choice3,answer\nWhich of {split}?,p,q,r,s,2\n"
        (tmp_path / "mmlu" / split / f"virology_{split}.csv").write_text(rows)
    (tmp_path / "lambada").mkdir()
    (tmp_path / "lambada" / "development.txt").write_text("It rained all day\n\n")
    return tmp_path


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> None:
    """A hub that knows the records of ``HUB`` alone."""
    datasets = pytest.importorskip("datasets")
    known = {key: records for sets in HUB.values() for key, records in sets.items()}
    monkeypatch.setattr(datasets, "load_dataset", lambda name, config, split: known[name, config, split])


def test_json_lines_keep_their_numbers_past_blank_lines(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"a": "é"}\n\n{"a": "b"}\n', encoding="utf-8")
    assert [(row.where, row.text("a")) for row in read_rows(path)] == [(f"{path}, line 1", "é"), (f"{path}, line 3", "b")]


def test_csv_cells_may_hold_commas_quotes_and_lines(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text('question,choice0\n"Say ""a,\nb""",0\nlast,1\n')
    rows = read_rows(path)
    assert [row.fields for row in rows] == [{"question": 'Say "a,\nb"', "choice0": "0"}, {"question": "last", "choice0": "1"}]
    assert [row.where for row in rows] == [f"{path}, line 3", f"{path}, line 4"]


def test_lines_of_text_are_stripped_and_blank_ones_left_out(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("one two \n\nthree\n")
    assert [row.text("text") for row in read_rows(path)] == ["one two", "three"]


def test_gzipped_files_are_read(tmp_path: Path) -> None:
    path = tmp_path / "a.txt.gz"
    path.write_bytes(gzip.compress(b"one\ntwo\n"))
    assert [row.text("text") for row in read_rows(path)] == ["one", "two"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b'{"a": 1}\n{"a": \n', "line 2 is not JSON"),
        ("a.jsonl", b"[1]\n", "line 1 is no JSON object"),
        ("a.jsonl", b"\xff\xfe", "cannot read .*Fetch the file again"),
        ("a.jsonl.gz", b"plain", "cannot read .*Fetch the file again"),
        ("a.jsonl.gz", gzip.compress(b"x" * 99)[:-9], "cannot read .*Fetch the file again"),
        ("a.parquet", b"PAR1", "is none of .jsonl, .csv, .txt"),
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


@pytest.mark.parametrize("make_suite", HUB)
def test_files_and_hub_give_the_same_examples(make_suite: type[DataSuite], data_dir: Path, hub: None) -> None:
    from_files, from_hub = make_suite(data_dir=str(data_dir)), make_suite()  # type: ignore[call-arg]
    assert list(from_files.examples) == list(from_hub.examples)
    assert len(from_files.examples) == 1


def test_every_data_suite_is_covered_here() -> None:
    assert set(HUB) == set(DATA_SUITES)


@pytest.mark.parametrize("make_suite", DATA_SUITES)
def test_a_folder_without_the_data_is_named(make_suite: type[DataSuite], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"data_dir '{tmp_path}' has no records in .* leave data_dir out to load"):
        make_suite(data_dir=str(tmp_path)).setup()  # type: ignore[call-arg]


@pytest.mark.parametrize("make_suite", DATA_SUITES)
def test_without_the_extra_it_is_named(make_suite: type[DataSuite], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UserError, match=r"pip install 'mixsd_lightning\[hub\]', or set data_dir"):
        make_suite().setup()  # type: ignore[call-arg]


def test_a_hub_out_of_reach_is_said_on_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object, **options: object) -> None:
        raise ConnectionError("no network\nand more")

    monkeypatch.setattr(pytest.importorskip("datasets"), "load_dataset", fail)
    message = (
        "cannot load openai/gsm8k from the Hugging Face Hub: no network Mend that, or set data_dir to a folder that has gsm8k"
    )
    with pytest.raises(UserError, match=message) as caught:
        GSM8K().setup()
    assert isinstance(caught.value.__cause__, ConnectionError)


def test_hub_records_are_named_by_number(hub: None) -> None:
    [row] = DataSet("", "openai/gsm8k", "main").rows(None)
    assert row.where == "openai/gsm8k, test record 0"


def test_several_files_are_read_in_the_order_of_their_names(tmp_path: Path) -> None:
    for name in ("b", "a"):
        (tmp_path / f"{name}.txt").write_text(f"{name}\n")
    assert [row.text("text") for row in DataSet("*.txt", "hub").rows(str(tmp_path))] == ["a", "b"]


@pytest.mark.parametrize(
    ("make_suite", "path", "content", "message"),
    [
        (GSM8K, "gsm8k/test.jsonl", '{"question": "Add.", "answer": "4"}', "line 1 has no number after '####'"),
        (GSM8K, "gsm8k/test.jsonl", '{"question": "Add."}', "line 1 has no text in the field 'answer'"),
        (MATH500, "math500/test.jsonl", '{"problem": "Add.", "answer": 4}', "line 1 has no text in the field 'answer'"),
        (HumanEval, "humaneval/HumanEval.jsonl", '{"prompt": "def f():"}', "line 1 has no text in the field 'test'"),
        (
            HellaSwag,
            "hellaswag/validation.jsonl",
            '{"ctx_a": "A", "ctx_b": ""}',
            "has no list of texts in the field 'endings'",
        ),
        (Lambada, "lambada/development.txt", "fine words\nword\n", "line 2 is a single word"),
        (MMLU, "mmlu/dev/cooking.csv", "question\nWhat?\n", "is of no subject of MMLU: 'cooking'"),
        (MMLU, "mmlu/test/anatomy.csv", "question,answer\nWhat?,1\n", "of 'anatomy', of which mmlu/dev"),
        (MMLU, "mmlu/dev/virology_dev.csv", "question,answer\nWhat?,1\n", "line 2 has no text in the field 'choice0'"),
    ],
)
def test_a_wrong_record_is_named(make_suite: type[DataSuite], path: str, content: str, message: str, data_dir: Path) -> None:
    (data_dir / path).write_text(content)
    for zipped in (data_dir / path).parent.glob("*.gz"):
        zipped.unlink()
    with pytest.raises(UserError, match=message):
        make_suite(data_dir=str(data_dir)).setup()  # type: ignore[call-arg]


def test_nothing_is_read_until_it_is_needed(tmp_path: Path) -> None:
    for make_suite in DATA_SUITES:
        make_suite(data_dir=str(tmp_path / "none"))  # type: ignore[call-arg]


def test_settings_follow_the_data(data_dir: Path) -> None:
    before = GSM8K(str(data_dir)).settings
    assert GSM8K(str(data_dir)).settings == before
    write_jsonl(data_dir / "gsm8k" / "test.jsonl", [{"question": "Add.", "answer": "#### 1,601"}])
    assert GSM8K(str(data_dir)).settings != before


def test_the_57_subjects_of_mmlu_have_4_categories() -> None:
    sizes = {category: list(CATEGORIES.values()).count(category) for category in CATEGORIES.values()}
    assert sizes == {"STEM": 18, "humanities": 13, "social sciences": 12, "other": 14}


# Public data sets, where the variable names a folder that has them.


@pytest.fixture
def public_data() -> str:
    folder = os.environ.get("MIXSD_DATA_DIR")
    if folder is None:
        pytest.skip("MIXSD_DATA_DIR names no folder of public data sets")
    return folder


@pytest.mark.parametrize(
    ("make_suite", "num_examples", "first_gold"),
    [
        (GSM8K, (800, 1319), "18"),
        (MATH500, (500,), "\\left( 3, \\frac{\\pi}{2} \\right)"),
        (AIME2024, (30,), "204"),
        (MMLU, (14042,), "B"),
    ],
)
def test_public_problems(public_data: str, make_suite: Any, num_examples: tuple[int, ...], first_gold: str) -> None:
    examples = make_suite(data_dir=public_data).examples
    assert len(examples) in num_examples
    assert examples[0].gold == first_gold


def test_public_humaneval(public_data: str) -> None:
    examples = HumanEval(public_data).examples
    assert len(examples) == 164
    assert examples[0].gold["entry_point"] == "has_close_elements"


def test_public_mmlu_has_five_solved_questions_and_a_category_each(public_data: str) -> None:
    examples = MMLU(public_data).examples
    assert {len(problem.shots) for problem in examples} == {5}
    assert {problem.group for problem in examples} == set(CATEGORIES.values())
    assert len({problem.group for problem in MMLU(public_data, limit=40).examples}) == 4


def test_public_hellaswag(public_data: str) -> None:
    examples = HellaSwag(public_data).examples
    assert len(examples) in (500, 10042)
    assert {len(question.choices) for question in examples} == {4}
    assert not any("[" in text for question in examples for text in (question.context, *question.choices))


def test_public_lambada(public_data: str) -> None:
    examples = Lambada(public_data).examples
    assert len(examples) == 4869
    assert examples[0].word == "cake"
    assert examples[0].context.endswith("to the top of the")
