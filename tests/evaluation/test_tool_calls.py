"""Calls in answers: how they are read, and when they do what the gold calls do."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mixsd_lightning.evaluation.tool_calls import (
    Call,
    extract_calls,
    gold_calls,
    parse_calls,
    same_calls,
    same_names,
    write_calls,
)

ADD = Call("add", {"a": 1})
STOP = Call("stop", {})
NAMES = st.text("abcXYZ_", min_size=1, max_size=8)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(st.characters(exclude_categories=["Cs"]), max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3),
    max_leaves=6,
)
CALLS = st.lists(st.builds(Call, NAMES, st.dictionaries(NAMES, VALUES, max_size=3)), min_size=1, max_size=4)


@pytest.mark.parametrize(
    ("completion", "calls"),
    [
        ('Action: add\nAction Input: {"a": 1}', [ADD]),
        (
            'Thought: first add.\nAction: add\nAction Input: {"a": 1}\nThought: then stop.\nAction: stop\nAction Input: {}',
            [ADD, STOP],
        ),
        ('Action: add\nAction Input: {"a": 1}\nObservation: 2\n\nAction: stop\nAction_Input: {}', [ADD, STOP]),
        ('**Action:** `add`\n**Action Input:** {"a": 1}', [ADD]),
        ('action: add\naction input: {"a": 1}', [ADD]),
        ('Action: add\nAction Input:\n```json\n{\n  "a": 1\n}\n```', [ADD]),
        ('Action: add\nAction Input: {"a": 1} and that is all', [ADD]),
        ('Action: add\nAction Input: {"a": {"b": [1, {"c": "}"}]}}', [Call("add", {"a": {"b": [1, {"c": "}"}]}})]),
        ('[{"Action": "add", "Action_Input": {"a": 1}}, {"Action": "stop", "Action_Input": {}}]', [ADD, STOP]),
        ('I call [two]:\n```json\n[{"Action": "add", "Action Input": {"a": 1}}]\n```', [ADD]),
        ('{"calls": [{"Action": "add", "Action_Input": {"a": 1}}]}', [ADD]),
        # Names without arguments that can be read.
        ("Action: add\nAction Input: {a: 1}", [Call("add", None)]),
        ('Action: add\nAction Input: {"a": 1', [Call("add", None)]),
        ('Action: add\nAction Input: "a"', [Call("add", None)]),
        ("Action: add", [Call("add", None)]),
        ('Action: add\nAction: stop\nAction Input: {"a": 1}', [Call("add", None), Call("stop", {"a": 1})]),
        ('[{"Action": "add", "Action_Input": "a"}]', [Call("add", None)]),
        # None.
        ('Action Input: {"a": 1}', []),
        ("Action:", []),
        ("I would take action: add it.", []),
        ("[1, 2, [3]]", []),
        ('[{"name": "add"}]', []),
        ("[" * 10_000, []),
        ("", []),
    ],
)
def test_calls_are_read(completion: str, calls: list[Call]) -> None:
    assert parse_calls(completion) == calls
    found = extract_calls(completion)
    assert (found is None) == (not calls)
    assert calls == (gold_calls(found) if found else [])


@given(CALLS)
def test_what_is_written_is_read_again(calls: list[Call]) -> None:
    assert parse_calls(f"Thought: so.\n{write_calls(calls)}\nDone.") == calls
    as_json = json.dumps([{"Action": call.name, "Action_Input": call.arguments} for call in calls])
    assert parse_calls(as_json) == calls
    assert same_calls(calls, calls)


@pytest.mark.parametrize(
    ("given", "gold", "expected"),
    [
        ({"a": 1}, {"a": 1}, True),
        ({"a": "1"}, {"a": 1}, True),
        ({"a": 1}, {"a": "1"}, True),
        ({"a": True}, {"a": "true"}, True),
        ({"a": " x "}, {"a": "x"}, True),
        ({"a": [1, 2]}, {"a": [1, 2]}, True),
        ({"a": {"c": 1, "b": 2}}, {"a": {"b": 2, "c": 1}}, True),
        ({"a": 2}, {"a": 1}, False),
        ({"a": "X"}, {"a": "x"}, False),
        ({"a": [2, 1]}, {"a": [1, 2]}, False),
        ({}, {"a": 1}, False),
        ({}, {"a": 0}, False),
        ({}, {"a": False}, False),
        (None, {"a": 1}, False),
        (None, {}, False),
        # What the gold call has no value for does not matter.
        ({"a": 1, "b": 2}, {"a": 1}, True),
        ({"a": 1, "b": 2}, {"a": 1, "b": ""}, True),
        ({"a": 1}, {"a": 1, "b": "", "c": None, "d": [], "e": {}}, True),
        ({}, {}, True),
    ],
)
def test_arguments_are_compared_as_text(given: dict[str, Any] | None, gold: dict[str, Any], expected: bool) -> None:
    assert same_calls([Call("f", given)], [Call("f", gold)]) is expected


@pytest.mark.parametrize(
    ("calls", "names", "whole"),
    [
        ([ADD, STOP], True, True),
        ([Call("add", {"a": 2}), STOP], True, False),
        ([STOP, ADD], False, False),
        ([ADD], False, False),
        ([ADD, STOP, STOP], False, False),
        ([Call("Add", {"a": 1}), STOP], False, False),
        ([], False, False),
    ],
)
def test_names_and_their_order_count(calls: list[Call], names: bool, whole: bool) -> None:
    assert same_names(calls, [ADD, STOP]) is names
    assert same_calls(calls, [ADD, STOP]) is whole
