"""ScienceQA: what is asked and taught, from the Hub's splits and from a file without any."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from corpus_checks import all_examples, digest, wrong_targets

from mixsd_lightning.context import INSTRUCTIONS, expert_context
from mixsd_lightning.data.scienceqa import ScienceQA
from mixsd_lightning.errors import UserError
from mixsd_lightning.example import Example

HUB = {
    "question": " Which animal lays eggs? ",
    "choices": ["fox", "duck", "mule"],
    "answer": 1,
    "hint": "Think of the pond.",
    "image": None,
    "topic": "biology",
    "lecture": "Birds lay eggs.",
    "solution": "A duck is a bird.\nAnswer: A is how some begin.",
}


def write(folder: Path, questions: list[tuple[str, str]]) -> str:
    """Write a data folder from questions with their blocks, and answers."""
    path = folder / "scienceqa/scienceqa.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps({"question": asked, "answer": answer}) + "\n" for asked, answer in questions))
    return str(folder)


def number_question(number: int, first: str = "even", second: str = "odd") -> tuple[str, str]:
    return f"What is {number}?\nChoices:\n(A): {first}\n(B): {second}", ("even", "odd")[number % 2]


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> None:
    """A hub with one question in each split, and one about a picture."""
    datasets = pytest.importorskip("datasets")
    pictured = HUB | {"image": "png", "question": "What is on it?"}
    known = {split: [pictured, HUB | {"topic": split}] for split in ("train", "validation", "test")}
    hubs = {("derek-thomas/ScienceQA", None, split): rows for split, rows in known.items()}
    monkeypatch.setattr(datasets, "load_dataset", lambda name, config, split: hubs[name, config, split])


def only(split: str = "train", **options: Any) -> Example:
    [example] = ScienceQA(**options).split(split)
    return example


@pytest.mark.usefixtures("hub")
def test_a_question_of_the_hub() -> None:
    example = only()
    letter = example.answer
    options = example.question.partition("\n\n")[2]
    assert f"{letter}. duck" in options.splitlines()
    context = "Context: Think of the pond.\n\nBirds lay eggs."
    assert example.prompt == f"Which animal lays eggs?\n\n{context}\n\n{options}\n\n{INSTRUCTIONS['choice']}"
    assert example.target == f"{HUB['solution']}\nAnswer: {letter}"
    assert example.fact == 'The right answer to "Which animal lays eggs?" is: duck.'
    assert (example.answer_format, example.subject) == ("choice", "train")
    assert {*example.wrong_answers, letter} == set("ABC")
    assert len(example.wrong_answers) == 2
    assert wrong_targets([example]) == []
    assert f"this is a right answer:\n{example.target}\n" in expert_context(example)[0].content


@pytest.mark.usefixtures("hub")
@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_the_splits_of_the_hub_are_kept_without_pictures(split: str) -> None:
    assert only(split).subject == split


@pytest.mark.usefixtures("hub")
def test_the_lecture_can_be_left_out() -> None:
    assert "Context: Think of the pond.\n\n" in only(lecture=False).prompt
    assert "Birds lay eggs." not in only(lecture=False).prompt


@pytest.mark.usefixtures("hub")
def test_without_reasoning_the_letter_alone_is_asked_for_and_taught() -> None:
    example = only(reasoning=False)
    assert example.prompt.endswith(f"\n\n{INSTRUCTIONS['letter']}")
    assert example.target == f"Answer: {example.answer}"
    assert example.answer_format == "choice"


def test_options_of_a_file_may_have_several_lines(tmp_path: Path) -> None:
    asked = "Which closing is correct?\nIt ends a letter.\nChoices:\n(A): your friend,\nTove\n(B): Your friend,\nTove"
    data_dir = write(tmp_path, [(asked, "Your friend,\nTove")])
    [example] = all_examples(ScienceQA(data_dir))
    stem, _, options = example.question.partition("\n\n")
    assert stem == "Which closing is correct?\nIt ends a letter."
    assert f"{example.answer}. Your friend,\nTove" in options
    assert f"{example.wrong_answers[0]}. your friend,\nTove" in options
    assert example.fact == 'The right answer to "Which closing is correct? It ends a letter." is: Your friend, Tove.'
    assert example.target == f"Answer: {example.answer}"


def test_a_file_is_divided_in_the_published_proportions(tmp_path: Path) -> None:
    corpus = ScienceQA(write(tmp_path, [number_question(number) for number in range(3000)]))
    sizes = {split: len(examples) for split, examples in corpus.build_splits(corpus.available_splits).items()}
    assert sum(sizes.values()) == 3000
    for split, published in (("train", 6508), ("validation", 2144), ("test", 2224)):
        assert sizes[split] == pytest.approx(3000 * published / 10876, abs=100)


def test_where_a_question_goes_hangs_on_itself_alone(tmp_path: Path) -> None:
    questions = [number_question(number) for number in range(100)]
    few = ScienceQA(write(tmp_path / "few", questions[:40]))
    other = ScienceQA(write(tmp_path / "other", [number_question(n, "odd", "even") for n in reversed(range(100))]))
    for split in few.available_splits:
        # The same prompts and ids, though the file has more lines, another order, and its options are swapped.
        assert {repr(example) for example in few.split(split)} <= {repr(example) for example in other.split(split)}
    assert len({example.id for example in all_examples(other)}) == 100


def test_a_question_that_is_there_twice_is_in_one_split_under_two_ids(tmp_path: Path) -> None:
    twice = [question for n in range(50) for question in (number_question(n), number_question(n, "odd", "even"))]
    corpus = ScienceQA(write(tmp_path, twice))
    splits = corpus.build_splits(corpus.available_splits)
    assert [Counter(example.question for example in examples).most_common()[-1][1] for examples in splits.values()] == [2] * 3
    assert len({example.id for example in all_examples(corpus)}) == 100


def test_a_slice_is_a_fixed_choice_of_every_split_that_grows(tmp_path: Path) -> None:
    data_dir = write(tmp_path, [number_question(number) for number in range(500)])
    few, more, whole = (ScienceQA(data_dir, max_examples=size) for size in (10, 30, None))
    for split in whole.available_splits:
        ids = [[example.id for example in corpus.split(split)] for corpus in (few, more, whole)]
        assert [len(ids[0]), len(ids[1])] == [10, 30]
        assert set(ids[0]) < set(ids[1]) < set(ids[2])
        assert ids[0] == [example_id for example_id in ids[2] if example_id in ids[0]] != ids[2][:10]
    assert digest(few) == digest(ScienceQA(data_dir, max_examples=10)) != digest(ScienceQA(data_dir, max_examples=10, seed=1))


@pytest.mark.parametrize(
    ("question", "answer", "message"),
    [
        ("Which?\n(A): p\n(B): q", "p", "has no line 'Choices:' in the field 'question'"),
        ("Which?\nChoices:\n(A): p", "p", "has no 2 to 26 different options"),
        ("Which?\nChoices:\n(A): p\n(B): q", "r", "has an answer that is none of its options: 'r'"),
        (" ", "r", "has no text in the field 'question'"),
    ],
)
def test_a_wrong_record_is_named(tmp_path: Path, question: str, answer: str, message: str) -> None:
    data_dir = write(tmp_path, [number_question(1), (question, answer)])
    with pytest.raises(UserError, match=f"--data: .*scienceqa.jsonl, line 2 {message}"):
        ScienceQA(data_dir).split("train")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_examples": 0}, r"--data\.max_examples must be at least 1, or null for all, got 0"),
        ({"eval_splits": ["dev"]}, r"ScienceQA has no split 'dev'; choose from train, validation, test"),
    ],
)
def test_bad_setting_is_refused_by_flag(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        ScienceQA(**options)


def test_real_questions(public_data: str) -> None:
    if not Path(public_data, "scienceqa/scienceqa.jsonl").is_file():
        pytest.skip(f"{public_data} has no scienceqa/scienceqa.jsonl")
    corpus = ScienceQA(public_data)
    splits = corpus.build_splits(corpus.available_splits)
    assert {name: len(examples) for name, examples in splits.items()} == {"train": 6673, "validation": 2072, "test": 2131}
    examples = all_examples(corpus)
    assert len({example.question for example in examples}) == len({example.id for example in examples}) == 10876
    assert wrong_targets(examples) == []
    letters = Counter(example.answer for example in examples if len(example.wrong_answers) == 1)
    assert letters["A"] == pytest.approx(letters["B"], rel=0.05)
