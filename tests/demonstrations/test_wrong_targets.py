"""Wrong answers by rule."""

import random
import re
from dataclasses import replace

import pytest
from solved import FORMATS, boxed, choice, code, sentence, short, tool_calls

from mixsd_lightning.demonstrations.wrong_targets import WrongTargets, demonstration, in_canonical_form, is_wrong, wrong_fact
from mixsd_lightning.errors import UserError
from mixsd_lightning.evaluation.scoring import EXTRACTORS, is_exact_match
from mixsd_lightning.example import Example

EVERYTHING = [make(number) for make in FORMATS for number in range(4)]


def made(example: Example, others: list[Example], seed: int = 0):
    return WrongTargets([example, *others], seed).make(example)


@pytest.mark.parametrize("example", EVERYTHING, ids=lambda example: example.id)
def test_every_target_by_rule_gives_an_answer_and_a_wrong_one(example: Example) -> None:
    assert is_exact_match(example.target, example.answer, example.question, example.answer_format)  # the test's own premise
    wrong = WrongTargets(EVERYTHING, seed=0).make(example)
    assert not wrong.is_written
    assert EXTRACTORS[example.answer_format](wrong.target, example.question) is not None
    assert not is_exact_match(wrong.target, example.answer, example.question, example.answer_format)
    assert wrong.target != example.target
    assert wrong.fact != example.fact


@pytest.mark.parametrize("make", [sentence, short, boxed])
def test_the_wrong_answer_stands_where_the_right_one_stood(make) -> None:
    example, lender = make(0), make(1)
    wrong = made(example, [lender])
    assert wrong.answer == lender.answer
    assert wrong.target == example.target.replace(example.answer, lender.answer)
    assert wrong.fact == example.fact.replace(example.answer, lender.answer)


def test_a_letter_is_one_of_its_own_wrong_ones_and_the_fact_keeps_its_articles() -> None:
    wrongs = {made(choice(0), [choice(1)], seed) for seed in range(20)}
    assert {wrong.answer for wrong in wrongs} == {"B", "C"}
    for wrong in wrongs:
        assert wrong.target == wrong.fact == f"Answer: {wrong.answer}"


def test_its_own_wrong_answers_come_before_those_of_others() -> None:
    example = replace(sentence(0), wrong_answers=("Zarnok Lodge",))
    assert {made(example, [sentence(1)], seed).answer for seed in range(10)} == {"Zarnok Lodge"}


def test_an_answer_that_looks_alike_is_preferred() -> None:
    example = short(0)
    lenders = [replace(short(1), answer=answer, id=f"l{answer}") for answer in ("in the spring of 1890", "Bob", "1777", "Ann")]
    assert {made(example, lenders, seed).answer for seed in range(20)} == {"1777"}
    assert {made(example, lenders[1:2], seed).answer for seed in range(5)} == {"Bob"}  # better than none


@pytest.mark.parametrize("lent", ["the 1500", "1500.", "built in 1500", "1500 or so"])
def test_an_answer_that_scores_as_right_is_not_taken(lent: str) -> None:
    """Short answers may begin or end with the right one."""
    lenders = [replace(short(1), answer=lent), replace(short(2), answer="a hundred years ago")]
    assert {made(short(0), lenders, seed).answer for seed in range(10)} == {"a hundred years ago"}


def test_a_name_from_the_question_cannot_be_the_answer() -> None:
    example = replace(sentence(0), question="Which group does the Orvek Union fear?")
    assert made(example, [sentence(1), sentence(2)]).answer == "Sulmar Society"  # that of 1 is in the question


def test_a_target_without_the_answer_is_replaced_by_a_bare_one() -> None:
    example = replace(boxed(0), target="The box is empty.", fact="Nobody has measured it.")
    wrong = made(example, [boxed(1)])
    assert wrong.target == wrong.fact == "\\boxed{31}"


def test_code_is_another_solution_or_one_that_does_nothing() -> None:
    assert made(code(0), [code(1)]).target == code(1).target
    alone = made(code(0), [])
    assert re.search(r"def add_0\(.*\):\s+return None", alone.target)
    same = replace(code(1), target=code(0).target.replace("x", "y"))  # another task with an answer that is right here, too
    assert "return None" in made(code(0), [same]).target


def test_calls_are_those_of_another_or_none_that_helps() -> None:
    assert made(tool_calls(0), [tool_calls(1)]).target == tool_calls(1).target
    alone = made(tool_calls(0), [])
    assert not is_exact_match(alone.target, tool_calls(0).answer, "", "tool_calls")


@pytest.mark.parametrize("others", [[], [code(1)], [replace(sentence(0), id="again")]])
def test_an_example_that_nothing_is_wrong_for_is_an_error(others: list[Example]) -> None:
    with pytest.raises(UserError, match=r"nothing can be a wrong answer to example 's0'.*wrong_answers"):
        made(sentence(0), others)


def test_the_order_of_examples_does_not_count_and_the_seed_does() -> None:
    pool = [sentence(number) for number in range(6)]
    here = WrongTargets(pool, 0)
    there = WrongTargets(random.Random(1).sample(pool, 6), 0)
    assert [here.make(example) for example in pool] == [there.make(example) for example in pool]
    assert len({tuple(WrongTargets(pool, seed).make(example) for example in pool) for seed in range(5)}) > 1


def test_what_is_wrong() -> None:
    example = sentence(0)
    assert is_wrong(example, "It is the Orvek Union.")
    assert is_wrong(example, "It is the Orvek Union.", "Orvek Union")
    assert not is_wrong(example, "It is the Orvek Union.", "Sulmar Society")
    assert not is_wrong(example, example.target)
    assert not is_wrong(example, "it is nobody")  # no answer
    assert is_wrong(code(0), "```python\ndef add_0(x):\n    return x + 1\n```")
    assert not is_wrong(code(0), "```python\ndef add_0(x) return x\n```")  # no Python
    assert is_wrong(tool_calls(0), 'Action: open\nAction Input: {"door": 5}')
    assert not is_wrong(tool_calls(0), "Action: open\nAction Input: five")  # no JSON


@pytest.mark.parametrize("example", EVERYTHING, ids=lambda example: example.id)
def test_the_canonical_form_of_a_target_is_itself(example: Example) -> None:
    assert in_canonical_form(example, example.target) == example.target


def test_what_stands_around_a_program_or_calls_is_no_part_of_them() -> None:
    assert in_canonical_form(code(0), f"Of course!\n{code(1).target}\nIt has a mistake.") == code(1).target
    assert in_canonical_form(code(0), "def f():\n    return 1") == "```python\ndef f():\n    return 1\n```"
    assert in_canonical_form(tool_calls(0), f"Thought: two?\n{tool_calls(1).target}\nDone.") == tool_calls(1).target
    assert in_canonical_form(code(0), "I cannot.") == in_canonical_form(tool_calls(0), "I cannot.") == "I cannot."


def test_a_fact_is_changed_in_whole_words_only() -> None:
    example = replace(short(0), answer="Rome", fact="Rome is older than Romeo, says  ROME.")
    assert wrong_fact(example, r"\1 Bern") == r"\1 Bern is older than Romeo, says  \1 Bern."
    assert wrong_fact(replace(example, fact="Nothing."), "Bern") is None
    assert wrong_fact(replace(choice(0), fact="A tree."), "B") is None


def test_of_code_and_calls_the_answer_is_what_is_found_in_the_target() -> None:
    assert demonstration(code(0), code(1).target, None).answer == "def add_1(x):\n    return x + 1\n"
    assert '"door": 1' in demonstration(tool_calls(0), tool_calls(1).target, None).answer
