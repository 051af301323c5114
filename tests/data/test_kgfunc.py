"""KGFunc: the functions, their worked solutions, and which numbers are asked where."""

import random
import re
from collections import Counter

import pytest

from mixsd_lightning.context import expert_context, naive_context
from mixsd_lightning.data.kgfunc import KGFunc
from mixsd_lightning.data.kgfunc.operations import EASY, TAUGHT, digits_of
from mixsd_lightning.errors import UserError
from mixsd_lightning.evaluation.scoring import extract_boxed

NUMBERS = [0, 7, 10, 100, 4821, 99999, 50320, *random.Random(0).sample(range(100_000), 60)]
ALL_SPLITS = KGFunc.available_splits


def small(**options: object) -> KGFunc:
    settings = {"num_digits": 3, "num_shots": 6, "items_per_operation": 20, "num_test_inputs": 5, "num_chains": 4}
    return KGFunc(**(settings | options))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("key", "number", "result"),
    [
        # By hand, from the formulas of the paper's code.
        ("B", 4821, (4 - 1) ** 2 + (8 - 1) ** 2 + (2 - 1) ** 2 + 0),
        ("C", 4821, abs(16 - 64 + 4 - 1)),
        ("D", 4821, 4 + 8 + 2**2 + 1),
        ("E", 4821, 4 * 1 + 8 * 2 + 2 * 8 + 1 * 4),
        ("F", 4821, 4 + 8 + 8 + 8),
        ("G", 4821, 10 + 36 + 3 + 1),
        ("H", 4821, 1482),
        ("H", 5030, 305),
        ("a", 4821, 15), ("b", 4021, 8), ("b", 0, 1), ("c", 4821, 4), ("d", 4821, 8), ("e", 4821, 1), ("f", 4821, 4),
        ("g", 4821, 1), ("h", 4821, 7), ("i", 4820, 284), ("j", 4821, 5), ("k", 4821, 3), ("l", 4821, 1), ("m", 4884, 2),
        ("n", 4821, 6), ("n", 0, 0), ("n", 9, 9), ("o", 4821, 85), ("p", 4821, 1248), ("p", 4021, 124), ("q", 4821, 8421),
        ("r", 40200, 3), ("s", 4821, 30), ("t", 4821, 4),
    ],
)  # fmt: skip
def test_functions(key: str, number: int, result: int) -> None:
    (operation,) = [operation for operation in (*TAUGHT, *EASY) if operation.key == key]
    assert operation.apply(number) == result


def test_there_are_seven_taught_and_twenty_easy_functions() -> None:
    assert "".join(operation.key for operation in TAUGHT) == "BCDEFGH"
    assert len({operation.key for operation in EASY}) == 20


def value(expression: str) -> int:
    """What an expression of a worked solution comes to."""
    text = re.sub(r"\|(-?\d+)\|", r"abs(\1)", expression).replace("^", "**").replace("/", "//")
    assert re.fullmatch(r"[\d+\-*/() abs]+", text), expression
    return int(eval(text))


@pytest.mark.parametrize("operation", TAUGHT, ids=lambda operation: operation.key)
@pytest.mark.parametrize("number", NUMBERS)
def test_every_equation_of_a_worked_solution_holds(operation: object, number: int) -> None:
    lines = operation.solution(number).splitlines()  # type: ignore[attr-defined]
    assert lines[0] == f"The digits of {number} are {', '.join(map(str, digits_of(number)))}."
    assert lines[-1] == f"{operation.key}({number}) = {operation.apply(number)}"  # type: ignore[attr-defined]
    num_equations = 0
    for line in lines[1:-1]:
        if " = " in line:
            expression, _, result = line.rpartition(": ")[2].partition(" = ")
            assert value(expression) == int(result), line
            num_equations += 1
    # What the last line says is what the line before came to.
    assert re.findall(r"\d+", lines[-2])[-1] == str(operation.apply(number))  # type: ignore[attr-defined]
    assert num_equations > 0 or operation.key == "H"  # type: ignore[attr-defined]


def test_sizes() -> None:
    corpus = small()
    assert {name: len(corpus.split(name)) for name in ALL_SPLITS} == {
        "train": 7 * 20,
        "unseen_inputs": 7 * 5,
        "same_op_chain": 7 * 4,
        "mixed_op_chain": 4,
        "unseen_operations": 20 * 5,
    }


def test_the_papers_corpus_has_43750_items() -> None:
    corpus = KGFunc()
    assert len(corpus.split("train")) == 43_750
    assert len(corpus.split("unseen_inputs")) == 175
    assert len(corpus.split("unseen_operations")) == 500
    assert len(corpus.split("same_op_chain")) == 1400
    assert len(corpus.split("mixed_op_chain")) == 200


def test_no_number_is_asked_in_two_places() -> None:
    corpus = small()

    def asked(split: str) -> set[int]:
        return {int(re.findall(r"\((\d+)\)?", example.question)[0]) for example in corpus.split(split)}

    shots = {int(number) for number in re.findall(r"^B\((\d+)\) =", corpus.split("train")[0].prompt, re.MULTILINE)}
    places = [shots, asked("train"), asked("unseen_inputs"), asked("same_op_chain")]
    assert len(shots) == 6
    assert sum(map(len, places)) == len(set().union(*places))
    assert asked("unseen_operations") == asked("unseen_inputs")
    assert asked("mixed_op_chain") <= asked("same_op_chain")


def test_solved_examples_are_as_many_of_each_length() -> None:
    prompt = KGFunc().split("train")[0].prompt
    lengths = Counter(len(number) for number in re.findall(r"^B\((\d+)\) =", prompt, re.MULTILINE))
    assert lengths == {1: 2, 2: 2, 3: 2, 4: 2, 5: 2}


@pytest.mark.parametrize("split", ALL_SPLITS)
def test_the_answer_is_in_the_box_and_the_prompt_does_not_tell_the_rule(split: str) -> None:
    by_key = {operation.key: operation for operation in (*TAUGHT, *EASY)}
    for example in small().split(split):
        assert extract_boxed(example.target) == example.answer
        expression = re.fullmatch(r"What is (.+)\?", example.question).group(1)  # type: ignore[union-attr]
        while call := re.search(r"([A-Za-z])\(([\d +-]+)\)", expression):
            result = by_key[call.group(1)].apply(int(eval(call.group(2).strip())))
            expression = expression.replace(call.group(0), str(result))
        assert expression == example.answer
        for operation in by_key.values():
            assert operation.rule not in example.prompt
        for key, number, result in re.findall(r"^([A-Za-z])\((\d+)\) = (\d+)$", example.prompt, re.MULTILINE):
            assert by_key[key].apply(int(number)) == int(result)


def test_a_chain_shows_all_functions_and_its_two_solutions() -> None:
    corpus = small(operations="BF")
    for example in corpus.split("mixed_op_chain"):
        assert {line[0] for line in re.findall(r"^[A-Z]\(\d+\) = .*", example.prompt, re.MULTILINE)} == {"B", "F"}
        assert example.target.count("The digits of") == 2
        assert set(example.subject) == {"B", "F"}
        offsets = re.findall(r"^(\d+ [+-] \d+) = (\d+)$", example.target, re.MULTILINE)
        assert all(value(expression) == int(result) for expression, result in offsets)


def test_the_same_settings_give_the_same_corpus_and_another_seed_another() -> None:
    assert small().split("train") == small().split("train")
    assert small().split("train") != small(seed=1).split("train")


def test_the_expert_sees_the_worked_solution_and_the_naive_prompt_does_not() -> None:
    example = small().split("train")[0]
    (naive,), (expert,) = naive_context(example), expert_context(example)
    assert example.target in expert.content
    assert "reference solution" in expert.content
    assert example.target not in naive.content


@pytest.mark.parametrize(
    ("options", "flag"),
    [
        ({"preset": "KGFunc-Hard"}, "preset"),
        ({"operations": "BA"}, "operations"),
        ({"operations": "BB"}, "operations"),
        ({"operations": ""}, "operations"),
        ({"num_digits": 0}, "num_digits"),
        ({"num_shots": 0}, "num_shots"),
        ({"items_per_operation": 989}, "items_per_operation"),
        ({"num_chains": 0}, "num_chains"),
        ({"expert_context": "whisper"}, "expert_context"),
    ],
)
def test_impossible_settings_are_refused_by_flag(options: dict[str, object], flag: str) -> None:
    with pytest.raises(UserError, match=f"--data.{flag}"):
        small(**options)


def test_a_mixed_chain_needs_two_functions() -> None:
    with pytest.raises(UserError, match="mixed_op_chain"):
        small(operations="B").split("mixed_op_chain")


def test_the_easy_preset_is_small() -> None:
    corpus = KGFunc("KGFunc-Easy")
    assert {example.subject for example in corpus.split("train")} == {"F", "H"}
    assert len(corpus.split("train")) == 140
