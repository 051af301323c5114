"""ToolAlpaca: instructions with gold calls that can be written, from the authors' files and from the Hub."""

import json
from pathlib import Path
from typing import Any

import pytest
from corpus_checks import all_examples, digest, wrong_targets

from mixsd_lightning.context import INSTRUCTIONS, expert_context
from mixsd_lightning.data.toolalpaca import ToolAlpaca
from mixsd_lightning.errors import UserError
from mixsd_lightning.evaluation.scoring import is_exact_match
from mixsd_lightning.example import Example

FUNCTIONS = {"find": "Find a book.\nParameters: {}", "lend": " Lend it. ", "components": "Book: Object{title}"}


def call(name: str, given: Any) -> dict[str, Any]:
    return {"Action": name, "Action_Input": given}


def api(*answers: Any, **changes: Any) -> dict[str, Any]:
    """A record about a library, with these gold answers."""
    record = {
        "Name": "Library of Lund",
        "Function_Description": FUNCTIONS,
        "Instructions": [f" Do {number}. " for number in range(len(answers))],
        "Golden_Answers": list(answers),
    }
    return record | changes


def write(folder: Path, *records: Any, file: str = "eval_simulated") -> str:
    path = folder / f"toolalpaca/{file}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(records))
    return str(folder)


def train(folder: Path, *records: Any, **options: Any) -> list[Example]:
    return ToolAlpaca(write(folder, *records), **options).split("train")


BOTH = [call("find", '{"title": "Ø", "pages": 3}'), call("lend", "{}")]


def test_functions_stand_in_the_prompt_and_calls_in_the_target(tmp_path: Path) -> None:
    [example] = train(tmp_path, api(BOTH))
    assert example.prompt == (
        "You can call these functions of the API Library of Lund:\n\nfind: Find a book.\nParameters: {}\n\nlend: Lend it.\n\n"
        f"The user's request: Do 0.\n\n{INSTRUCTIONS['tool_calls']}"
    )
    assert example.target == 'Action: find\nAction Input: {"title": "Ø", "pages": 3}\nAction: lend\nAction Input: {}'
    assert json.loads(example.answer) == [call("find", {"title": "Ø", "pages": 3}), call("lend", {})]
    assert example.fact == 'The request "Do 0." takes: find with {"title": "Ø", "pages": 3}, then lend with {}.'
    assert (example.question, example.subject, example.answer_format) == ("Do 0.", "Library of Lund", "tool_calls")
    assert wrong_targets([example]) == []
    assert not is_exact_match(example.target.replace("Ø", "O"), example.answer, example.question, "tool_calls")
    assert example.target in expert_context(example)[0].content


def test_instructions_are_numbered_by_api(tmp_path: Path) -> None:
    examples = train(tmp_path, api(BOTH, BOTH), api(BOTH, Name="Museum"))
    assert [(example.id, example.subject) for example in examples] == [
        ("train-0-0", "Library of Lund"),
        ("train-0-1", "Library of Lund"),
        ("train-1-0", "Museum"),
    ]


@pytest.mark.parametrize(
    "impossible",
    [
        [],
        [call("find", '{"id": ${id from search}}')],
        [call("find", '{"id": "${id}"}')],
        [call("find", '{"dates": ["{start date}"]}')],
        [call("find", '{"when": {"day": "{day}"}}')],
        [call("find", "[1]")],
        [call("find", None)],
        [call("find", "{}"), call("getDetails", "{}")],
        [call("components", "{}")],
    ],
)
def test_instructions_that_cannot_be_carried_out_are_left_out_with_a_warning(tmp_path: Path, impossible: Any) -> None:
    with pytest.warns(UserWarning, match=r"1 of 2 instructions of train are left out, .* the first: 'Do 1\.'"):
        assert [example.id for example in train(tmp_path, api(BOTH, impossible))] == ["train-0-0"]


@pytest.mark.parametrize("name", ["api_key", "access_key", "appid"])
def test_keys_that_no_prompt_shows_are_not_asked_for(tmp_path: Path, name: str) -> None:
    [example] = train(tmp_path, api([call("find", json.dumps({name: "8BbG", "title": "x"}))]))
    assert "8BbG" not in repr(example)
    assert example.target == 'Action: find\nAction Input: {"title": "x"}'


def test_the_two_files_are_the_two_splits(tmp_path: Path) -> None:
    write(tmp_path, api(BOTH, Name="Museum"), file="eval_real")
    corpus = ToolAlpaca(write(tmp_path, api(BOTH)))
    assert [(example.id, example.subject) for example in all_examples(corpus)] == [
        ("train-0-0", "Library of Lund"),
        ("test-0-0", "Museum"),
    ]


def test_the_hub_words_its_own_prompts(monkeypatch: pytest.MonkeyPatch) -> None:
    record = {
        "instruction": "Lend it.",
        "name": "Library",
        "prompt": " Tools: ...\nLend it. ",
        "golden_answer": BOTH,
        "golden_response": [],
    }
    known = {("Ahren09/ToolAlpaca", None, "train"): [record, record | {"name": None}]}
    monkeypatch.setattr(
        pytest.importorskip("datasets"), "load_dataset", lambda name, config, split: known[name, config, split]
    )
    first, second = ToolAlpaca().split("train")
    assert (first.id, first.question, first.prompt, first.subject) == (
        "train-0",
        "Lend it.",
        "Tools: ...\nLend it.",
        "Library",
    )
    assert (second.id, second.subject) == ("train-1", "")
    assert wrong_targets([first, second]) == []
    del record["golden_answer"]
    with pytest.raises(
        UserError, match="--data: Ahren09/ToolAlpaca, train record 0 has a gold answer that is no list of calls"
    ):
        ToolAlpaca().split("train")


def test_a_slice_is_a_fixed_choice_that_grows(tmp_path: Path) -> None:
    few, more = (train(tmp_path, api(*[BOTH] * 60), max_examples=size) for size in (5, 20))
    assert (len(few), len(more)) == (5, 20)
    assert {example.id for example in few} < {example.id for example in more}
    assert few != train(tmp_path, api(*[BOTH] * 60), max_examples=5, seed=1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"Name": ""}, "has no text in the field 'Name'"),
        ({"Function_Description": []}, "has no JSON object of texts in the field 'Function_Description'"),
        ({"Function_Description": {"find": 1}}, "has no JSON object of texts in the field 'Function_Description'"),
        ({"Instructions": []}, "has no lists of the same length"),
        ({"Golden_Answers": None}, "has no lists of the same length"),
        ({"Instructions": [" "]}, "has no text as instruction 0"),
        ({"Golden_Answers": ["find"]}, "has a gold answer that is no list of calls"),
        ({"Golden_Answers": [[{"name": "find"}]]}, "has a gold answer that is no list of calls"),
    ],
)
def test_a_wrong_record_is_named(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=rf"--data: .*eval_simulated\.json, record 2 {message}"):
        train(tmp_path, api(BOTH), api(BOTH, **changes))


def test_bad_setting_is_refused_by_flag() -> None:
    with pytest.raises(UserError, match=r"--data\.max_examples must be at least 1, or null for all, got 0"):
        ToolAlpaca(max_examples=0)
    with pytest.raises(UserError, match="ToolAlpaca has no split 'validation'; choose from train, test"):
        ToolAlpaca(eval_splits=["validation"])


@pytest.mark.filterwarnings("ignore:.*are left out")
def test_real_instructions(public_data: str) -> None:
    if not Path(public_data, "toolalpaca").is_dir():
        pytest.skip(f"{public_data} has no toolalpaca")
    corpus = ToolAlpaca(public_data)
    splits = corpus.build_splits(corpus.available_splits)
    assert {name: len(examples) for name, examples in splits.items()} == {"train": 66, "test": 104}
    examples = all_examples(corpus)
    assert len({example.id for example in examples}) == 170
    assert wrong_targets(examples) == []
    assert not {example.subject for example in splits["train"]} & {example.subject for example in splits["test"]}
    assert digest(corpus) == digest(ToolAlpaca(public_data))
