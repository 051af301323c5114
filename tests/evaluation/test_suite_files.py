"""Suites read their records from files and from the Hub alike, and what is wrong with them is said on one line."""

import csv
import gzip
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from mixsd_lightning.errors import UserError
from mixsd_lightning.evaluation.suites import AIME2024, GPQA, GSM8K, MATH500, MMLU, SUITES, HellaSwag, HumanEval, Lambada
from mixsd_lightning.evaluation.suites.data_suite import DataSuite
from mixsd_lightning.evaluation.suites.mmlu_subjects import CATEGORIES

DATA_SUITES = [suite for suite in SUITES.values() if issubclass(suite, DataSuite)]
HUMANEVAL = {"prompt": "def f():\n", "entry_point": "f", "test": "def check(f): pass", "canonical_solution": "    pass\n"}
SCENE = {
    "activity_label": "Swimming",
    "ctx_a": "A boy dives.",
    "ctx_b": "the boy",
    "endings": ["swims.", "[step] flies.", "sings.", "reads."],
    "label": 0,
}
EXPERT_QUESTION = {
    "Question": "Which salt colours the Sarne?\n",
    "Correct Answer": "the green one",
    "Incorrect Answer 1": "the white one",
    "Incorrect Answer 2": "the grey one",
    "Incorrect Answer 3": "none of them\n",
    "High-level domain": "Chemistry",
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
    GPQA: {("Idavidrein/gpqa", "gpqa_main", "train"): [EXPERT_QUESTION | {"Subdomain": "Salts"}]},
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
    (tmp_path / "gpqa").mkdir()
    with (tmp_path / "gpqa/gpqa_main.csv").open("w", newline="") as file:
        csv.writer(file).writerows([EXPERT_QUESTION, EXPERT_QUESTION.values()])
    (tmp_path / "lambada").mkdir()
    (tmp_path / "lambada" / "development.txt").write_text("It rained all day\n\n")
    return tmp_path


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> None:
    """A hub that knows the records of ``HUB`` alone."""
    datasets = pytest.importorskip("datasets")
    known = {key: records for sets in HUB.values() for key, records in sets.items()}
    monkeypatch.setattr(datasets, "load_dataset", lambda name, config, split: known[name, config, split])


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
    message = "cannot load openai/gsm8k: no network Mend that, or set data_dir to a folder that has gsm8k"
    with pytest.raises(UserError, match=message) as caught:
        GSM8K().setup()
    assert isinstance(caught.value.__cause__, ConnectionError)


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
        (GPQA, "gpqa/gpqa_main.csv", "Question\nWhich?\n", "line 2 has no text in the field 'Correct Answer'"),
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
