"""Extractors find in any text what a slower and plainer search finds, and in what they have found themselves the same again."""

import ast
import json

from fuzz_cases import CLEAN_TEXTS, TEXTS, cases
from hypothesis import example, given
from hypothesis import strategies as st

from mixsd_lightning.evaluation.choices import extract_choice, mentions_letter
from mixsd_lightning.evaluation.programs import compiles, extract_code, extract_program, statements
from mixsd_lightning.evaluation.scoring import EXTRACTORS, extract_boxed, extract_name, extract_short
from mixsd_lightning.evaluation.tool_calls import Call, extract_calls, gold_calls, parse_calls, write_calls

BRACES = st.lists(st.sampled_from(["\\boxed{", "{", "}", "a", "\\boxed", " ", "\\"]), max_size=16).map("".join)
PIECES = st.sampled_from(
    [
        "Answer: ",
        "answer",
        "The answer is ",
        "B",
        "(C)",
        "**D**",
        "\\boxed{A}",
        "\n",
        " ",
        "or",
        "A dog",
        ".",
        ":",
        "`",
        "a",
        "option ",
    ]
)
SENTENCES = st.lists(
    st.sampled_from(["The", "Ann", "Lee", "was", "In", "Paris", "  ", ".", "I", "met", "mcX", "X", "Ö"]), max_size=9
).map(" ".join)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=4,
)
NAMES = st.from_regex(r"[A-Za-z_][A-Za-z_0-9./ -]{0,8}[A-Za-z0-9_]", fullmatch=True)


def slow_boxed(completion: str) -> str | None:
    """By the letter: from every box, the last first, count braces until they are even."""
    marker = "\\boxed{"
    for start in reversed([i for i in range(len(completion)) if completion.startswith(marker, i)]):
        depth = 1
        for end in range(start + len(marker), len(completion)):
            depth += {"{": 1, "}": -1}.get(completion[end], 0)
            if depth == 0:
                return completion[start + len(marker) : end].strip()
    return None


@cases(900)
@given(BRACES | TEXTS)
@example("\\boxed{" * 2000)
def test_the_last_closed_box_is_found(text: str) -> None:
    assert extract_boxed(text) == (None if len(text) > 5000 else slow_boxed(text))


@cases(400)
@given(TEXTS, CLEAN_TEXTS, st.sampled_from(sorted(EXTRACTORS)))
def test_an_extractor_gives_a_text_or_nothing(text: str, question: str, answer_format: str) -> None:
    found = EXTRACTORS[answer_format](text, question)
    assert found is None or isinstance(found, str)
    if found is not None and answer_format not in ("tool_calls", "choice"):
        assert " ".join(found.split()) in " ".join(text.split())  # it was there


@cases(350)
@given(TEXTS | st.lists(PIECES, max_size=8).map("".join))
def test_what_was_extracted_is_extracted_again(text: str) -> None:
    for extract in (extract_short, extract_choice, extract_calls, extract_code):
        found = extract(text)
        if found:
            assert extract(found) == found


@cases(350)
@given(SENTENCES, st.sampled_from(["", "Who is Ann Lee?", "Paris"]))
def test_a_name_is_capitalised_and_new(text: str, question: str) -> None:
    name = extract_name(text, question)
    if name is not None:
        assert all(word[0].isupper() for word in name.split())
        assert name not in question
        assert extract_name(name, question) == name
        assert extract_name(f"{text} and so on", question) == name  # small letters change nothing
    assert extract_name(f"{text}. It is Zorvan Keep.", question) == "Zorvan Keep"


@cases(400)
@given(st.lists(PIECES, max_size=8).map("".join), st.sampled_from("ABCDEFGZ"))
def test_the_last_answer_line_is_the_answer(text: str, letter: str) -> None:
    assert extract_choice(f"{text}\nAnswer: {letter}") == letter
    assert extract_choice(f"{text}\n**Answer:** ({letter})") == letter
    assert extract_choice(letter) == extract_choice(f"({letter.lower()})") == letter
    assert mentions_letter(f"{text}\n{letter}", letter)
    found = extract_choice(text)
    assert found is None or (len(found) == 1 and found in text.upper())


@cases(350)
@given(st.lists(st.builds(Call, NAMES, st.dictionaries(st.text(max_size=4), JSON, max_size=2)), min_size=1, max_size=3))
def test_calls_that_are_written_are_read(calls: list[Call]) -> None:
    assert parse_calls(write_calls(calls)) == calls
    as_json = json.dumps([{"Action": call.name, "Action_Input": call.arguments} for call in calls])
    assert parse_calls(as_json) == calls == gold_calls(as_json)
    extracted = extract_calls(write_calls(calls))
    assert extracted is not None and gold_calls(extracted) == calls


@cases(300)
@given(
    st.lists(
        st.sampled_from(["x = 1\n", "def f():\n    pass\n", "(", "```", "```python\n", "\x00", "é = 2\n", "yes", "\n"]),
        max_size=6,
    ).map("".join)
)
def test_a_program_is_python_or_in_a_fence(text: str) -> None:
    code = extract_program(text)
    if code is not None:
        assert code in text and code.strip()
    if compiles(text):
        assert code is not None
        ast.parse(code)
    fenced = f"```python\n{text.replace('`', '')}\n```"
    assert extract_code(f"Here:\n{fenced}\nDone.") == text.replace("`", "") + "\n"
    assert bool(statements(text)) == _has_statements(text)


def _has_statements(text: str) -> bool:
    try:
        return bool(ast.parse(text).body)
    except (SyntaxError, ValueError):
        return False
