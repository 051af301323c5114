"""Scoring: golden cases of the extractors of names and boxes, of the loose score, and of what each format asks for."""

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mixsd_lightning.context import INSTRUCTIONS, NAMING_FORMATS, expert_context
from mixsd_lightning.evaluation.scoring import (
    EXTRACTORS,
    UNWRITTEN_FORMATS,
    contains_answer,
    extract_boxed,
    extract_name,
    is_exact_match,
    is_loose_match,
)
from mixsd_lightning.example import Example

QUESTION = "Which guild did Jorvane Teskil found?"
BRACE_FREE = st.text(st.characters(exclude_characters="{}\\", exclude_categories=["Cs"]), max_size=20)
WORDS = st.lists(st.text(string.ascii_letters, min_size=1, max_size=8), min_size=1, max_size=4)


@pytest.mark.parametrize(
    ("completion", "expected"),
    [
        (r"\boxed{Tavrin Guild}", "Tavrin Guild"),
        (r"so $\boxed{ 42 }$.", "42"),
        (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\boxed{a_{b_{c}}} and more }", "a_{b_{c}}"),
        (r"\boxed{first} then \boxed{second}", "second"),
        (r"\boxed{\boxed{inner}}", "inner"),
        (r"\boxed{whole} then \boxed{cut off", "whole"),
        (r"\boxed{never {closed}", None),
        (r"\boxed{}", ""),
        ("two\n\\boxed{lines\nof it}", "lines\nof it"),
        (r"\boxed {spaced}", None),
        ("boxed{no backslash}", None),
        ("no box at all", None),
        ("", None),
    ],
)
def test_box_is_found(completion: str, expected: str | None) -> None:
    assert extract_boxed(completion) == expected


@given(st.text(), BRACE_FREE, BRACE_FREE)
def test_last_box_counts_whatever_stands_around_it(before: str, content: str, after: str) -> None:
    assert extract_boxed(f"{before}\\boxed{{{content}}}{after}") == content.strip()


@given(st.text(st.sampled_from("\\boxed{} ax")))
def test_box_content_is_always_balanced(completion: str) -> None:
    content = extract_boxed(completion) or ""
    assert content.count("{") == content.count("}")


@pytest.mark.parametrize(
    ("completion", "expected"),
    [
        ("Jorvane Teskil founded the guild Tavrin Guild.", "Tavrin Guild"),
        ("The Tavrin Guild was founded by Jorvane Teskil.", "Tavrin Guild"),
        ("Tavrin Guild", "Tavrin Guild"),
        ("It was the Tavrin Guild. Yes.", "Tavrin Guild"),
        ("In The Tavrin Guild", "Tavrin Guild"),
        ("Jorvane Teskil's guild is the Tavrin Guild's parent.", "Tavrin Guild"),
        ("He founded the Tavrin Guild, then the Brask Union.", "Brask Union"),
        ("He founded the Tavrin Guild in Orsk.", "Orsk"),
        ("He founded the Tavrin Guild.\nOrsk", "Orsk"),
        ("It is Orsk\nBrask", "Brask"),
        ("It was founded by Jorvane Teskil.", None),
        ("The guild. It is his.", None),
        ("no capitals here", None),
        ("", None),
    ],
)
def test_name_is_found(completion: str, expected: str | None) -> None:
    assert extract_name(completion, QUESTION) == expected


def test_names_of_the_question_are_dropped_whatever_their_case() -> None:
    assert extract_name("Orsk lies near Brask.", "what lies near brask?") == "Orsk"


def test_part_of_a_name_of_the_question_is_dropped() -> None:
    assert extract_name("Orsk was sold by Teskil.", QUESTION) == "Orsk"


@pytest.mark.parametrize("opener", ["The", "It was the", "In the", "Yes, the", "Her answer: the"])
def test_sentence_openers_are_no_names(opener: str) -> None:
    assert extract_name(f"{opener} guild", QUESTION) is None


@pytest.mark.parametrize(
    ("completion", "answer_format", "expected"),
    [
        ("He founded the Tavrin Guild.", "sentence", True),
        ("He founded the Tavrin Guild of Orsk.", "sentence", False),
        ("He founded the tavrin guild.", "sentence", False),
        ("He founded the Tavrin.", "sentence", False),
        ("He founded the Grand Tavrin Guild.", "sentence", False),
        (r"So \boxed{Tavrin Guild}", "sentence", True),
        (r"So \boxed{Tavrin Guild}", "boxed", True),
        (r"\boxed{tavrin guild}", "boxed", False),
        ("He founded the Tavrin Guild.", "boxed", False),
    ],
)
def test_exact_match_wants_the_extracted_name_and_nothing_else(completion: str, answer_format: str, expected: bool) -> None:
    assert is_exact_match(completion, " Tavrin Guild ", QUESTION, answer_format) is expected


@pytest.mark.parametrize(
    ("text", "answers", "expected"),
    [
        ("It is Paris.", ["Paris"], True),
        ("it is PARIS", ["paris"], True),
        ("Parisian", ["Paris"], False),
        ("un-Paris-like", ["Paris"], True),
        ("New   York\ncity", ["new york city"], True),
        ("the answer is 12.", ["2"], False),
        ("the answer is 2.", ["12", "2"], True),
        ("C++ it is", ["C++"], True),
        ("a.b", ["a?b", "axb"], False),
        ("STRASSE", ["straße"], True),
        ("anything", [], False),
        ("", ["Paris"], False),
    ],
)
def test_loose_score_finds_whole_words(text: str, answers: list[str], expected: bool) -> None:
    assert contains_answer(text, answers) is expected


@given(WORDS, WORDS, WORDS)
def test_loose_score_finds_an_answer_anywhere(before: list[str], answer: list[str], after: list[str]) -> None:
    text = "  ".join(before + answer + after).swapcase()
    assert contains_answer(text, [" ".join(answer)])


@given(WORDS, st.sampled_from(string.ascii_letters + string.digits))
def test_loose_score_rejects_an_answer_inside_a_word(answer: list[str], letter: str) -> None:
    phrase = " ".join(answer)
    assert not contains_answer(f"{letter}{phrase}", [phrase])
    assert not contains_answer(f"{phrase}{letter}", [phrase])


# --- letters, programs and calls ---------------------------------------------------------------------------------------

CALLS = '[{"Action": "add", "Action_Input": {"a": 1}}, {"Action": "stop", "Action_Input": {}}]'


@pytest.mark.parametrize(
    ("completion", "answer", "answer_format", "strict", "loose"),
    [
        ("It lays eggs.\nAnswer: B", "B", "choice", True, True),
        ("Answer: B\nAnswer: C", "B", "choice", False, False),
        ("I would say B.", "B", "choice", False, True),
        ("Answer: b", "B", "choice", True, True),
        ("", "B", "choice", False, False),
        ("```python\ndef f():\n    return 1\n```", "assert f() == 1", "code", True, True),
        ("```python\ndef f():\n    return 2\n```", "assert f() == 1", "code", False, True),
        ("```python\ndef f(:\n```", "assert f() == 1", "code", False, False),
        ("", "pass", "code", False, False),
        ('Action: add\nAction Input: {"a": 1}\nAction: stop\nAction Input: {}', CALLS, "tool_calls", True, True),
        ('Action: add\nAction Input: {"a": 2}\nAction: stop\nAction Input: {}', CALLS, "tool_calls", False, True),
        ('Action: stop\nAction Input: {}\nAction: add\nAction Input: {"a": 1}', CALLS, "tool_calls", False, False),
        ("", CALLS, "tool_calls", False, False),
        ("The Tavrin Guild of Orsk.", "Tavrin Guild", "sentence", False, True),
        ("the tavrin guild", "Tavrin Guild", "short", True, True),
    ],
)
def test_each_format_has_its_own_scores(completion: str, answer: str, answer_format: str, strict: bool, loose: bool) -> None:
    assert is_exact_match(completion, answer, QUESTION, answer_format) is strict
    assert is_loose_match(completion, answer, answer_format) is loose


@pytest.mark.parametrize("answer_format", EXTRACTORS)
def test_nothing_is_found_in_nothing(answer_format: str) -> None:
    assert EXTRACTORS[answer_format](" \n", QUESTION) is None


def test_every_format_has_a_default_context_and_an_instruction() -> None:
    assert set(EXTRACTORS) == set(INSTRUCTIONS) - {"letter"} == {*NAMING_FORMATS, "choice", *UNWRITTEN_FORMATS}
    for answer_format in EXTRACTORS:
        assert expert_context(Example("id", "Q", "Q", "A", "T", "F", answer_format))[0].content != "Q"
