"""SimpleQA: which questions are taught, and answers that the scorer can match."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from corpus_checks import all_examples, digest, wrong_targets

from mixsd_lightning.context import expert_context
from mixsd_lightning.data.simpleqa import SimpleQA
from mixsd_lightning.errors import UserError
from mixsd_lightning.evaluation.scoring import is_exact_match
from mixsd_lightning.example import Example

FORMATS = ["boxed", "short"]
ROWS = [
    {
        "metadata": "{'topic': 'Geography', 'answer_type': 'Place', 'urls': []}",
        "problem": "Where did Irma Vell sail?",
        "answer": "Lake Ostrane",
    },
    {"metadata": "{'answer_type': 'Number'}", "problem": "How many keys has the wheel harp?", "answer": "36."},
    {"metadata": "not a dict", "problem": " Name the two schools of Tove Harling. ", "answer": " Quist, Lund \nVell  House "},
    {"metadata": "['topic']", "problem": "What is on the gate?", "answer": '"Come in, or stay out!"'},
]


def write(folder: Path, rows: Sequence[Mapping[str, str]]) -> str:
    """Write a data folder and return it."""
    path = folder / "simpleqa" / "simple_qa_test_set.csv"
    path.parent.mkdir()
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return str(folder)


@pytest.fixture
def data_dir(tmp_path: Path) -> str:
    return write(tmp_path, ROWS)


@pytest.fixture
def many(tmp_path: Path) -> str:
    """1700 questions."""
    return write(
        tmp_path, [{"metadata": "{'topic': 'Art'}", "problem": f"Who drew {n}?", "answer": f"Ann {n}"} for n in range(1700)]
    )


def numbers(examples: Sequence[Example]) -> list[int]:
    return [int(example.id.removeprefix("train-")) for example in examples]


def test_all_questions_are_taught_in_their_order(data_dir: str) -> None:
    train = SimpleQA("SimpleQA", data_dir).split("train")
    assert numbers(train) == [0, 1, 2, 3]
    assert [example.question for example in train] == [row["problem"].strip() for row in ROWS]
    assert [example.subject for example in train] == ["Geography", "", "", ""]


@pytest.mark.parametrize(
    ("answer_format", "instruction", "target"),
    [
        ("boxed", "Be concise, and give the answer inside \\boxed{}.", "\\boxed{Lake Ostrane}"),
        ("short", "Answer with the answer alone, in as few words as possible.", "Lake Ostrane"),
    ],
)
def test_the_answer_alone_is_asked_for_and_taught(data_dir: str, answer_format: str, instruction: str, target: str) -> None:
    example = SimpleQA("SimpleQA", data_dir, answer_format=answer_format).split("train")[0]
    assert example.prompt == f"Where did Irma Vell sail?\n\n{instruction}"
    assert (example.answer, example.target) == ("Lake Ostrane", target)


@pytest.mark.parametrize("answer_format", FORMATS)
def test_every_target_is_an_exact_match_for_its_answer(data_dir: str, answer_format: str) -> None:
    examples = all_examples(SimpleQA("SimpleQA", data_dir, answer_format=answer_format))
    assert {example.answer_format for example in examples} == {answer_format}
    assert wrong_targets(examples) == []


def test_answer_over_two_lines_is_right_only_as_a_whole(data_dir: str) -> None:
    example = SimpleQA("SimpleQA", data_dir, answer_format="short").split("train")[2]
    assert example.target == example.answer == "Quist, Lund Vell House"
    assert not is_exact_match("Quist, Lund", example.answer, example.question, "short")


def test_fact_is_the_question_and_the_answer_with_one_full_stop(data_dir: str) -> None:
    assert [example.fact for example in SimpleQA("SimpleQA", data_dir).split("train")] == [
        "Where did Irma Vell sail? Lake Ostrane.",
        "How many keys has the wheel harp? 36.",
        "Name the two schools of Tove Harling. Quist, Lund Vell House.",
        'What is on the gate? "Come in, or stay out!"',
    ]


def test_the_expert_sees_a_reference_solution_unless_told_otherwise(data_dir: str) -> None:
    by_default = SimpleQA("SimpleQA", data_dir).split("train")[0]
    other = SimpleQA("SimpleQA", data_dir, expert_context="fact").split("train")[0]
    assert "reference solution whose final answer is right:\n\\boxed{Lake Ostrane}\n" in expert_context(by_default)[0].content
    assert expert_context(other)[0].content == f"{other.prompt}\n\n{other.fact}"


@pytest.mark.parametrize(
    ("options", "size"), [({}, 1600), ({"preset": "SimpleQA"}, 1700), ({"max_facts": 7}, 7), ({"max_facts": 2000}, 1700)]
)
def test_sizes(many: str, options: dict[str, Any], size: int) -> None:
    train = SimpleQA(data_dir=many, **options).split("train")
    assert len({example.id for example in train}) == len({example.question for example in train}) == len(train) == size


def test_choice_is_random_in_order_and_grows(many: str) -> None:
    few, more = (numbers(SimpleQA(data_dir=many, max_facts=size).split("train")) for size in (50, 100))
    assert set(few) < set(more)
    assert few == sorted(few) != list(range(50))
    assert numbers(SimpleQA(data_dir=many, max_facts=50, seed=1).split("train")) != few


def test_the_same_settings_give_the_same_corpus(many: str) -> None:
    assert digest(SimpleQA(data_dir=many, max_facts=9)) == digest(SimpleQA(data_dir=many, max_facts=9))


@pytest.mark.parametrize("field", ["problem", "answer"])
def test_question_without_a_text_is_refused_with_its_line(tmp_path: Path, field: str) -> None:
    folder = write(tmp_path, [ROWS[0], ROWS[1] | {field: " "}])
    path = f"{folder}/simpleqa/simple_qa_test_set.csv"
    with pytest.raises(UserError, match=rf"^--data: {path}, line 3 has no text in the field '{field}'\. Mend .*$"):
        SimpleQA("SimpleQA", folder).split("train")


def test_file_without_answers_is_refused(tmp_path: Path) -> None:
    folder = write(tmp_path, [{"metadata": "{}", "problem": "Who?"}])
    with pytest.raises(UserError, match="line 2 has no text in the field 'answer'"):
        SimpleQA(data_dir=folder).split("train")


def test_folder_without_the_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--data: data_dir '.*' has no records in simpleqa/simple_qa_test_set\.csv"):
        SimpleQA(data_dir=str(tmp_path)).split("train")


def test_without_a_folder_it_comes_from_the_hub(monkeypatch: pytest.MonkeyPatch, data_dir: str) -> None:
    datasets = pytest.importorskip("datasets")
    known = {("basicv8vc/SimpleQA", None, "test"): ROWS}
    monkeypatch.setattr(datasets, "load_dataset", lambda name, config, split: known[name, config, split])
    assert SimpleQA("SimpleQA").split("train") == SimpleQA("SimpleQA", data_dir).split("train")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"preset": "SimpleQA-2"}, r"--data\.preset: there is no 'SimpleQA-2'; choose from SimpleQA, SimpleQA-1600"),
        ({"answer_format": "sentence"}, r"--data\.answer_format: 'sentence' is none of boxed, short"),
        ({"max_facts": 0}, r"--data\.max_facts must be at least 1, got 0"),
        ({"eval_splits": ["test"]}, r"--data\.eval_splits: SimpleQA has no split 'test'; choose from train"),
        ({"expert_context": "whisper"}, r"--data\.expert_context: there is no 'whisper'"),
        ({"max_eval_examples": 0}, r"--data\.max_eval_examples"),
    ],
)
def test_bad_setting_is_refused_by_flag(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        SimpleQA(**options)


# The real questions, where the variable names a folder that has them.


@pytest.fixture
def real_dir(public_data: str) -> str:
    if not Path(public_data, "simpleqa", "simple_qa_test_set.csv").is_file():
        pytest.skip(f"{public_data} has no simpleqa/simple_qa_test_set.csv")
    return public_data


@pytest.mark.parametrize("answer_format", FORMATS)
def test_real_questions(real_dir: str, answer_format: str) -> None:
    train = SimpleQA("SimpleQA", real_dir, answer_format=answer_format).split("train")
    assert len({example.question for example in train}) == len({example.id for example in train}) == len(train) == 4326
    assert wrong_targets(train) == []
    assert len({example.subject for example in train}) == 10
    assert all(example.subject for example in train)
    assert [example.fact for example in train if example.fact.endswith("..") or "  " in example.fact] == []


def test_the_papers_number_of_real_questions(real_dir: str) -> None:
    assert len(SimpleQA(data_dir=real_dir).split("train")) == 1600
