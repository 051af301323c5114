"""Scores of any text: they end, agree with slower ways to say the same, and do not hang on what should not matter."""

import re

from fuzz_cases import CLEAN_TEXTS, TEXTS, cases
from hypothesis import assume, example, given
from hypothesis import strategies as st

from mixsd_lightning.evaluation.error_modes import HELD_OUT_MODES, INJECTED_MODES, Entities, held_out_mode, injected_mode
from mixsd_lightning.evaluation.scoring import EXTRACTORS, contains_answer, is_exact_match, is_loose_match, normal
from mixsd_lightning.evaluation.tool_calls import Call, same_calls, same_names
from mixsd_lightning.example import Example

WORDS = st.lists(
    st.sampled_from(["Paris", "PARIS", "paris", "a", "the", "is", "New", "York", "2", "né", "É"]), max_size=6
).map(" ".join)
GOLD = {"code": "assert True", "tool_calls": '[{"Action": "f", "Action_Input": {"a": 1}}]', "choice": "B"}
ARGUMENTS = st.dictionaries(
    st.sampled_from("abc"), st.sampled_from([1, "1", 1.0, None, "", [], [1], {"x": 1}, True]), max_size=3
)
CALLS = st.lists(st.builds(Call, st.sampled_from("fg"), st.none() | ARGUMENTS), max_size=3)


@cases(750)
@given(TEXTS, CLEAN_TEXTS.filter(str.strip), CLEAN_TEXTS, st.sampled_from(sorted({*EXTRACTORS} - {"code"})))
def test_any_answer_has_scores(completion: str, answer: str, question: str, answer_format: str) -> None:
    gold = GOLD.get(answer_format, answer)
    strict = is_exact_match(completion, gold, question, answer_format)
    loose = is_loose_match(completion, gold, answer_format)
    assert isinstance(strict, bool) and isinstance(loose, bool)
    if answer_format in ("choice", "tool_calls", "boxed") and strict and (answer_format != "boxed" or gold.strip()):
        assert loose
    # White space around an answer is no part of it.
    assert is_exact_match(f"\n{completion} \n", gold, question, answer_format) == strict


@cases(350)
@given(CLEAN_TEXTS.filter(str.strip), CLEAN_TEXTS)
def test_an_answer_is_right_in_its_own_form(answer: str, question: str) -> None:
    assert is_exact_match(answer, answer, question, "short")
    assert is_exact_match(f" {answer}\n", answer, question, "short")
    # Braces that are paired in the answer do not matter, whatever stands before the box.
    if _is_balanced(answer) and "\\boxed{" not in answer:
        assert is_exact_match(f"So }}{question}\n\\boxed{{{answer}}}.", answer, question, "boxed")


def _is_balanced(text: str) -> bool:
    depth = 0
    for letter in text:
        depth += {"{": 1, "}": -1}.get(letter, 0)
        if depth < 0:
            return False
    return depth == 0


@cases(350)
@given(CLEAN_TEXTS.filter(str.strip), CLEAN_TEXTS.filter(str.strip))
def test_two_short_answers_are_the_same_either_way(one: str, other: str) -> None:
    assume(len(one.splitlines()) == len(other.splitlines()) == 1)
    if normal(one) == normal(other):
        assert is_exact_match(one, other, "", "short") and is_exact_match(other, one, "", "short")


@cases(350)
@given(TEXTS)
@example("İ")
def test_normal_form_is_a_form(text: str) -> None:
    assert normal(normal(text)) == normal(text)
    assert normal(f" {text}\n") == normal(text)


@cases(450)
@given(WORDS, WORDS.filter(bool))
def test_containment_is_that_of_words(text: str, answer: str) -> None:
    words, sought = text.casefold().split(), answer.casefold().split()
    expected = any(words[start : start + len(sought)] == sought for start in range(len(words)))
    assert contains_answer(text, [answer]) is expected
    assert contains_answer(text.upper(), ["nothing", answer.lower()]) is expected
    assert contains_answer(text.replace(" ", " \n\t"), [answer.replace(" ", "  ")]) is expected
    assert not contains_answer("".join(text.split()) + "x", [answer + "y"])


@cases(300)
@given(CALLS, CALLS)
def test_calls_are_compared_one_by_one(given_calls: list[Call], gold: list[Call]) -> None:
    is_same = same_calls(given_calls, gold)
    assert not is_same or same_names(given_calls, gold)
    alone = [same_calls([one], [other]) for one, other in zip(given_calls, gold, strict=False)]
    assert is_same == (len(given_calls) == len(gold) and all(alone))
    assert same_calls(gold, gold) == all(call.arguments is not None for call in gold)


@cases(300)
@given(TEXTS, st.lists(CLEAN_TEXTS, min_size=4, max_size=4), st.sampled_from(sorted({*EXTRACTORS} - {"code"})))
def test_every_wrong_answer_has_a_mode(completion: str, texts: list[str], answer_format: str) -> None:
    question, answer, subject, other = texts
    examples = [
        Example("a", question, question, answer, answer, answer, answer_format, subject),
        Example("b", question, question, other, other, other, "short", subject),
    ]
    entities = Entities(examples)
    assert injected_mode(completion, examples[0], entities) in INJECTED_MODES
    for form in ("boxed", "code", "free"):
        assert held_out_mode(completion, question, form, entities) in HELD_OUT_MODES
    # A name is found exactly where it stands as words.
    for name in entities.names:
        assert (name in entities.found_in(f"so {name} is")) or any(
            name in longer and name != longer for longer in entities.names
        )
    assert all(re.search(re.escape(name), " ".join(completion.split()).casefold()) for name in entities.found_in(completion))
