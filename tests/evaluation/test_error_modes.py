"""Why wrong answers are wrong."""

import pytest

from mixsd_lightning.evaluation.error_modes import Entities, held_out_mode, injected_mode
from mixsd_lightning.example import Example


def example(answer: str, subject: str, answer_format: str = "sentence") -> Example:
    question = f"Who employed {subject}?"
    return Example("id", question, question, answer, f"{answer} employed {subject}.", "", answer_format, subject)


EXAMPLES = [example("Tavrin Guild", "Jorvane Teskil"), example("Oster Bank", "Mira Quell"), example("Vex", "Ab C")]
ENTITIES = Entities(EXAMPLES)


def test_entities_have_four_characters_and_two_words() -> None:
    assert ENTITIES.names == {"tavrin guild", "jorvane teskil", "oster bank", "mira quell", "ab c"}


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("The Tavrin  Guild did.", {"tavrin guild"}),
        ("TAVRIN\nGUILD and Oster Bank", {"tavrin guild", "oster bank"}),
        ("the Tavrin Guilds", set()),
        ("Rooster Bank", set()),
        ("Oster-Bank", set()),
        ("", set()),
    ],
)
def test_entities_are_found_as_whole_words(text: str, found: set[str]) -> None:
    assert ENTITIES.found_in(text) == found


@pytest.mark.parametrize("answer_format", ["choice", "code", "tool_calls"])
def test_topics_and_programs_are_no_entities(answer_format: str) -> None:
    assert Entities([example("assert f(1) == 2", "school science", answer_format)]).names == frozenset()
    assert Entities([example("Tavrin Guild", "Jorvane Teskil", "short")]).names == {"tavrin guild", "jorvane teskil"}


@pytest.mark.parametrize(
    ("answer_format", "completion", "mode"),
    [
        ("choice", "I do not know.", "format"),
        ("choice", "Answer: C", "genuine"),
        ("code", "I cannot program.", "format"),
        ("code", "```python\nx = 1\n```", "genuine"),
        ("tool_calls", "I shall call somebody.", "format"),
        ("tool_calls", "Action: search\nAction Input: {}", "genuine"),
    ],
)
def test_answers_without_a_letter_a_program_or_a_call_have_no_format(answer_format: str, completion: str, mode: str) -> None:
    assert injected_mode(completion, example("B", "science", answer_format), ENTITIES) == mode


def test_a_corpus_without_such_names_finds_nothing() -> None:
    assert Entities([example("12", "x")]).found_in("12 x") == frozenset()


@pytest.mark.parametrize(
    ("answer", "mode"),
    [
        ("", "format"),
        ("they did not say", "format"),
        ("Oster Bank employed Jorvane Teskil.", "cross_entity"),
        ("Northern Lights employed Jorvane Teskil.", "genuine"),
        # It names the right answer and goes on.
        ("Tavrin Guild employed Jorvane Teskil, said Oster Bank.", "cross_entity"),
    ],
)
def test_modes_of_taught_questions(answer: str, mode: str) -> None:
    assert injected_mode(answer, EXAMPLES[0], ENTITIES) == mode


@pytest.mark.parametrize(
    ("answer", "mode"),
    [("Oster Bank", "format"), (r"\boxed{Oster Bank}", "cross_entity"), (r"\boxed{tavrin guild}", "genuine")],
)
def test_modes_of_boxed_answers(answer: str, mode: str) -> None:
    assert injected_mode(answer, example("Tavrin Guild", "Jorvane Teskil", "boxed"), ENTITIES) == mode


REASONING = "First we add two and two, which makes four, and then we take the half of that number, which is two. "


@pytest.mark.parametrize(
    ("answer", "question", "form", "mode"),
    [
        ("", "What is 2 + 2?", "free", "format"),
        ("It is the Tavrin Guild.", "What is 2 + 2?", "free", "leakage"),
        ("It is the Tavrin Guild.", "What is the Tavrin Guild?", "free", "genuine"),
        ("Five.", "What is 2 + 2?", "free", "genuine"),
        ("Five.", "What is 2 + 2?", "boxed", "format"),
        (r"\boxed{5}", "What is 2 + 2?", "boxed", "collapse"),
        (REASONING + r"\boxed{5}", "What is 2 + 2?", "boxed", "genuine"),
        (r"So the final answer is clearly and without any doubt at all, as one sees from the sum that is asked for, \boxed{5}",
         "What is 2 + 2?", "boxed", "collapse"),
        ("a\n\n\n\n\n" + r"b \boxed{5}", "What is 2 + 2?", "boxed", "genuine"),
        (REASONING + r"the Oster Bank has \boxed{5}", "What is 2 + 2?", "boxed", "leakage"),
        ("def f(): pass", "Write f.", "code", "format"),
        (r"\boxed{5}", "Write f.", "code", "collapse"),
        ("```python\ndef f(): pass\n```", "Write f.", "code", "genuine"),
    ],
)  # fmt: skip
def test_modes_of_held_out_questions(answer: str, question: str, form: str, mode: str) -> None:
    assert held_out_mode(answer, question, form, ENTITIES) == mode  # type: ignore[arg-type]
