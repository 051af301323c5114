"""MBPP: what a prompt tells of the tested function, and references that pass their own tests."""

import json
from pathlib import Path
from typing import Any

import pytest
from corpus_checks import all_examples, digest, wrong_targets
from corpus_files import write_corpus_files

from mixsd_lightning.context import INSTRUCTIONS, expert_context
from mixsd_lightning.data import mbpp
from mixsd_lightning.data.mbpp import MBPP
from mixsd_lightning.errors import UserError
from mixsd_lightning.evaluation.scoring import is_exact_match
from mixsd_lightning.example import Example

NODE = {
    "task_id": 601,
    "text": " Write a function to add up a chain. ",
    "code": "class Node:\r\n\tdef __init__(self, x, after=None):\r\n\t\tself.x = x\r\n\t\tself.after = after\r\n"
    "def value(node):\r\n\treturn node.x\r\n"
    "def total(node, *, start: int = 0):\r\n\treturn start if node is None else value(node) + total(node.after)\r\n",
    "test_setup_code": "chain = Node(1, Node(2))\r\nsingle = Node(value(Node(4)))",
    "test_list": ["assert total(chain) == 3", "assert total(single) == 4", "assert value(single) == 4"],
    "challenge_test_list": [],
}


def write(folder: Path, *records: dict[str, Any]) -> str:
    path = folder / "mbpp/mbpp.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(folder)


def only(folder: Path, record: dict[str, Any], **options: Any) -> Example:
    [example] = MBPP(write(folder, record), **options).split("train")
    return example


def test_the_tested_function_is_named_even_if_it_is_not_the_first(tmp_path: Path) -> None:
    example = only(tmp_path, NODE)
    test = "chain = Node(1, Node(2))\nsingle = Node(value(Node(4)))\nassert total(chain) == 3"
    assert example.prompt == (
        "Write a function to add up a chain.\n\nThe function is `total(node, *, start: int=0)`.\n\n"
        f"It must pass this test:\n```python\n{test}\n```\n\n{INSTRUCTIONS['code']}"
    )
    assert (example.question, example.subject) == ("Write a function to add up a chain.", "total")
    assert example.answer == f"{test}\nassert total(single) == 4\nassert value(single) == 4"
    assert (example.answer_format, example.wrong_answers) == ("code", ())


@pytest.mark.parametrize(("number", "shown"), [(0, 0), (1, 1), (2, 2), (9, 3)])
def test_as_many_tests_are_shown_as_asked_for(tmp_path: Path, number: int, shown: int) -> None:
    example = only(tmp_path, NODE, num_shown_tests=number)
    assert example.prompt.count("\nassert ") == shown
    assert ("It must pass" in example.prompt) == (shown > 0)
    assert example.answer.count("assert ") == 3


def test_the_reference_is_fenced_with_its_tabs_and_passes_its_tests(tmp_path: Path) -> None:
    example = only(tmp_path, NODE)
    assert example.target.startswith("```python\nclass Node:\n\tdef __init__")
    assert example.target.endswith("total(node.after)\n```")
    assert "\r" not in example.target + example.answer + example.prompt
    assert wrong_targets([example]) == []
    assert not is_exact_match(example.target.replace("+ total", "- total"), example.answer, "", "code")
    assert example.target in expert_context(example)[0].content


@pytest.mark.parametrize(
    ("code", "test"),
    [
        ("def other(x):\n    return x", "assert double(1) == 2"),
        ("def double(x):\n    return 2 *", "assert double(1) == 2"),
        ("double = lambda x: 2 * x", "assert double(1) == 2"),
        ("def double(x):\n    return 2 * x", "assert double(1) =="),
        ("def outer():\n    def double(x):\n        return 2 * x", "assert double(1) == 2"),
    ],
)
def test_tasks_without_the_tested_function_are_left_out_with_a_warning(tmp_path: Path, code: str, test: str) -> None:
    data_dir = write(tmp_path, NODE, NODE | {"task_id": 602, "code": code, "test_list": [test]})
    with pytest.warns(UserWarning, match=r"1 of 2 tasks are left out, .* the first: .*mbpp\.jsonl, line 2"):
        assert [example.id for example in MBPP(data_dir).split("train")] == ["train-601"]


def test_outermost_function_of_the_first_test_counts(tmp_path: Path) -> None:
    assert only(tmp_path, NODE | {"test_list": ["assert value(Node(total(single))) == 4"]}).subject == "value"
    assert only(tmp_path, NODE | {"test_list": ["assert set([total(single)]) == {4}"]}).subject == "total"


def test_task_ids_decide_the_split(tmp_path: Path) -> None:
    first, *_, last = ids = [1, 10, 11, 510, 511, 600, 601, 974]
    corpus = MBPP(write(tmp_path, *(NODE | {"task_id": number} for number in ids)))
    splits = {
        name: [example.id for example in examples] for name, examples in corpus.build_splits(corpus.available_splits).items()
    }
    assert splits == {
        "train": ["train-601", f"train-{last}"],
        "validation": ["validation-511", "validation-600"],
        "test": ["test-11", "test-510"],
    }
    assert first not in {int(example.id.partition("-")[2]) for example in all_examples(corpus)}


def test_the_hub_has_the_same_records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    known = {("google-research-datasets/mbpp", "full", "train"): [NODE]}
    monkeypatch.setattr(datasets, "load_dataset", lambda name, config, split: known[name, config, split])
    assert MBPP().split("train") == [only(tmp_path, NODE)]


def test_a_slice_is_a_fixed_choice_that_grows(tmp_path: Path) -> None:
    data_dir = write(tmp_path, *(NODE | {"task_id": number} for number in range(601, 700)))
    few, more = (MBPP(data_dir, max_examples=size) for size in (5, 20))
    assert len(few.split("train")) == 5
    assert {example.id for example in few.split("train")} < {example.id for example in more.split("train")}
    assert digest(few) == digest(MBPP(data_dir, max_examples=5)) != digest(MBPP(data_dir, max_examples=5, seed=1))


def test_without_a_sandbox_nothing_begins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> None:
        raise UserError("no sandbox here")

    monkeypatch.setattr(mbpp, "isolation", refuse)
    with pytest.raises(UserError, match="no sandbox here"):
        MBPP(str(write_corpus_files(tmp_path))).prepare_data()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"task_id": "x"}, "has no number from 0 to 974 in the field 'task_id'"),
        ({"task_id": 975}, "has no number from 0 to 974 in the field 'task_id'"),
        ({"text": ""}, "has no text in the field 'text'"),
        ({"code": None}, "has no text in the field 'code'"),
        ({"test_list": []}, "has no list of tests in the field 'test_list'"),
        ({"test_list": "assert True"}, "has no list of tests in the field 'test_list'"),
        ({"test_setup_code": None}, "has no text in the field 'test_setup_code'"),
    ],
)
def test_a_wrong_record_is_named(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=rf"--data: .*mbpp\.jsonl, line 2 {message}"):
        MBPP(write(tmp_path, NODE, NODE | change)).split("train")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_examples": 0}, r"--data\.max_examples must be at least 1, or null for all, got 0"),
        ({"num_shown_tests": -1}, r"--data\.num_shown_tests must be at least 0, got -1"),
    ],
)
def test_bad_setting_is_refused_by_flag(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        MBPP(**options)


def test_real_tasks(public_data: str) -> None:
    if not Path(public_data, "mbpp/mbpp.jsonl").is_file():
        pytest.skip(f"{public_data} has no mbpp/mbpp.jsonl")
    corpus = MBPP(public_data)
    splits = corpus.build_splits(corpus.available_splits)
    assert {name: len(examples) for name, examples in splits.items()} == {"train": 374, "validation": 90, "test": 500}
    examples = all_examples(corpus)
    assert [example.id for example in examples if "\r" in repr(example) or example.target.count("```") != 2] == []
    # All 964 were run once, and pass; here no more than some of them, for the time that takes.
    assert wrong_targets(examples[::120]) == []
