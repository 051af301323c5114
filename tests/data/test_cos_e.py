"""CoS-E: questions joined with their explanations, and a tuning split that is not the test split."""

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from corpus_checks import all_examples, wrong_targets
from corpus_files import write_corpus_files

from mixsd_lightning.data.cos_e import CosE
from mixsd_lightning.errors import UserError

Change = Callable[[dict[str, Any]], object]


def hub_record(part: str, number: int) -> dict[str, Any]:
    return {
        "id": f"{part}-{number}",
        "question": f"Where is {number}?",
        "choices": ["here", "there", "nowhere"],
        "answer": "there",
        "abstractive_explanation": f"It is {number}.",
        "extractive_explanation": "is",
    }


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> None:
    """A hub with 500 questions to train on and 20 others."""
    datasets = pytest.importorskip("datasets")
    sizes = {"train": 500, "validation": 20}
    known = {
        ("Salesforce/cos_e", "v1.11", part): [hub_record(part, number) for number in range(size)]
        for part, size in sizes.items()
    }
    monkeypatch.setattr(datasets, "load_dataset", lambda name, config, split: known[name, config, split])


@pytest.mark.usefixtures("hub")
def test_a_tenth_of_the_training_questions_is_held_out_for_tuning() -> None:
    corpus = CosE()
    splits = {
        name: [example.question for example in examples]
        for name, examples in corpus.build_splits(corpus.available_splits).items()
    }
    assert len(splits["train"]) + len(splits["validation"]) == 500
    assert len(splits["validation"]) == pytest.approx(50, abs=20)
    assert not set(splits["train"]) & set(splits["validation"])
    assert len(splits["test"]) == 20
    assert {example.id.partition("-")[0] for example in corpus.split("test")} == {"test"}
    assert CosE(seed=1).build_splits(["validation"])["validation"][0].id == corpus.split("validation")[0].id


@pytest.mark.usefixtures("hub")
def test_the_explanation_is_taught_and_the_answer_last() -> None:
    example = CosE().split("test")[3]
    stem, _, options = example.question.partition("\n\n")
    assert stem == "Where is 3?"
    assert f"{example.answer}. there" in options.splitlines()
    assert example.target == f"It is 3.\nAnswer: {example.answer}"
    assert CosE(reasoning=False).split("test")[3].target == f"Answer: {example.answer}"


def test_files_are_joined_by_their_ids(tmp_path: Path) -> None:
    corpus = CosE(str(write_corpus_files(tmp_path)))
    lines = (tmp_path / "cos_e/dev_rand_split.jsonl").read_text().splitlines()
    asked = [json.loads(line) for line in lines]
    (tmp_path / "cos_e/cose_dev_v1.0.jsonl").write_text(
        "".join(
            json.dumps({"id": question["id"], "explanation": {"open-ended": f" Because of {question['id']}. "}}) + "\n"
            for question in reversed(asked)
        )
    )
    examples = corpus.split("test")
    assert [example.target.partition("\n")[0] for example in examples] == [
        f"Because of {question['id']}." for question in asked
    ]
    assert wrong_targets(all_examples(corpus)) == []


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("dev_rand_split", lambda record: record.pop("id"), "has no text in the field 'id'"),
        ("dev_rand_split", lambda record: record.update(id="7"), "has no explanation in cose_.*, where the id 7 is missing"),
        ("dev_rand_split", lambda record: record.update(answerKey="F"), "has an answer that is none of its options: 'F'"),
        ("dev_rand_split", lambda record: record.update(question="Where?"), "has no JSON object in the field 'question'"),
        ("dev_rand_split", lambda record: record["question"].pop("stem"), "has no stem and choices .*KeyError"),
        (
            "dev_rand_split",
            lambda record: record["question"].update(choices=[]),
            "has an answer that is none of its options: 'A'",
        ),
        (
            "cose_dev_v1.0",
            lambda record: record.update(explanation={}),
            "has no text in the field 'explanation', 'open-ended'",
        ),
    ],
)
def test_a_wrong_record_is_named(tmp_path: Path, file: str, change: Change, message: str) -> None:
    path = write_corpus_files(tmp_path) / f"cos_e/{file}.jsonl"
    records = [json.loads(line) for line in path.read_text().splitlines()]
    change(records[1])
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    with pytest.raises(UserError, match=rf"--data: {path}, line 2 {message}"):
        CosE(str(tmp_path)).split("test")


def test_real_questions(public_data: str) -> None:
    if not Path(public_data, "cos_e").is_dir():
        pytest.skip(f"{public_data} has no cos_e")
    corpus = CosE(public_data)
    splits = corpus.build_splits(corpus.available_splits)
    assert {name: len(examples) for name, examples in splits.items()} == {"train": 6769, "validation": 841, "test": 950}
    examples = all_examples(corpus)
    assert len({example.id for example in examples}) == len({example.question for example in examples}) == 8560
    assert wrong_targets(examples) == []
    assert all("\nAnswer: " in example.target for example in examples)
    assert all(2700 < count < 3000 for count in Counter(example.answer for example in examples).values())
