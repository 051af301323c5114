"""How many cases are generated, and what they are made of.

The cases are the same in every run of the suite. ``MIXSD_FUZZ=20`` tries others, twenty times as many.
"""

import os
from collections.abc import Callable
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

NUM_CASES: dict[str, int] = {}
"""Test -> cases, of all tests that were imported."""
_FACTOR = int(os.environ.get("MIXSD_FUZZ", "1"))


def cases(number: int) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """A decorator: the test takes so many generated cases."""

    def count(test: Callable[..., None]) -> Callable[..., None]:
        NUM_CASES[f"{test.__module__}.{test.__name__}"] = number
        chosen = settings(
            max_examples=number * _FACTOR,
            deadline=None,
            derandomize=_FACTOR == 1,
            database=None,
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large],
        )
        return chosen(test)

    return count


ODD_TEXTS = (
    "", " ", "\n", "\r\n", "\t", "\x00", "\x1c", "\x85", "\u2028", "\u200b", "\ufeff", "\ud800", "\udfff", "İ", "ß", "ǅ", "ſ", "é", "é",
    "٣", "²", "名", "🦆", "<|im_end|>", "<|im_start|>", "{", "}", "{}", "{{", "}}", "[", "]", "\\", "\\boxed{", "\\boxed{a}", "`", "```",
    "```python\n", "**", "$", "|", ",", '"', "'", "(A)", "A", "B", "a", "the", "The", "Answer:", "answer is", "Action:", "Action Input:",
    '{"a": 1}', '[{"Action": "f"}]', "def f(): pass", "Ann", "Ann Lee", "Who?", "-2", "1e999", "NaN", "_", ".", ":", "#", "or", "!!int",
)  # fmt: skip
TEXTS = st.one_of(st.lists(st.sampled_from(ODD_TEXTS), max_size=10).map("".join), st.text(max_size=12))
"""Half of them of pieces that mean something to our readers, half of any letters."""
CLEAN_TEXTS = TEXTS.map(lambda text: text.encode(errors="ignore").decode())
"""Without halves of surrogate pairs, which no file in UTF-8 and no tokenizer gives."""
ODD_VALUES: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 3, 2**70, 10**400, 0.5, -0.0, 1e308, float("nan"), float("inf"), "", " ", "a", "0", "1", "A", "true",
    "{0.__class__}", "<|im_end|>", "\x00", "é\u2028", "x" * 30_000, "|", "a|b", "()", "{", '{"a": 1}', "[" * 70 + "]" * 70, [], [[]],
    [None], [""], ["a"], ["a", "b"], ["a", 1], {}, {"": ""}, {"a": 1}, {"a": {"b": []}}, [{}], [{"Action": 1}], [{"Action": "f"}],
    [{"label": "A", "text": "a"}], {"str": 1}, {"role": "user", "content": "a"}, [{"role": "user"}], "\\boxed{a}",
)  # fmt: skip
VALUES = st.one_of(st.sampled_from(ODD_VALUES), CLEAN_TEXTS, st.integers(-5, 5))
"""What may stand in a field of a record or a setting."""


def mutated(draw: st.DrawFn, value: Any, times: int = 1) -> Any:
    """A copy of a JSON value with something in it replaced, left out, renamed or doubled."""
    for _ in range(times):
        value = _mutated_once(draw, value)
    return value


def _mutated_once(draw: st.DrawFn, value: Any) -> Any:
    if isinstance(value, dict) and value and draw(st.integers(0, 5)):
        key = draw(st.sampled_from(sorted(value)))
        copy = dict(value)
        match draw(st.sampled_from(["inside", "inside", "inside", "remove", "rename", "add"])):
            case "inside":
                copy[key] = _mutated_once(draw, value[key])
            case "remove":
                del copy[key]
            case "rename":
                copy[draw(CLEAN_TEXTS)] = copy.pop(key)
            case "add":
                copy[draw(CLEAN_TEXTS)] = draw(VALUES)
        return copy
    if isinstance(value, list) and value and draw(st.integers(0, 5)):
        index = draw(st.integers(0, len(value) - 1))
        match draw(st.sampled_from(["inside", "inside", "inside", "remove", "double"])):
            case "inside":
                return [*value[:index], _mutated_once(draw, value[index]), *value[index + 1 :]]
            case "remove":
                return [*value[:index], *value[index + 1 :]]
            case "double":
                return [*value, value[index]]
    if isinstance(value, str) and draw(st.integers(0, 2)):
        index = draw(st.integers(0, len(value)))
        return value[:index] + draw(CLEAN_TEXTS) + value[index + draw(st.integers(0, 5)) :]
    return draw(VALUES)
