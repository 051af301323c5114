"""Calls of functions in answers, in the form of ReAct (Yao et al., arXiv 2210.03629) or as JSON."""

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from mixsd_lightning.untrusted import is_too_deep

# "Action Input:" is no action: the colon must follow at once. Models like to set both in bold.
_ACTION = re.compile(r"^[ \t*_>-]*Action[ \t*_]*:[ \t*`]*([^\n]*?)[ \t*`.]*$", re.IGNORECASE | re.MULTILINE)
_INPUT = re.compile(r"^[ \t*_>-]*Action[ _]Input[ \t*_]*:[\s*_`]*(?:json\b)?\s*", re.IGNORECASE | re.MULTILINE)
_DECODER = json.JSONDecoder()


@dataclass(frozen=True)
class Call:
    """One call of a function."""

    name: str
    arguments: dict[str, Any] | None
    """``None`` where they are no JSON object."""


def parse_calls(completion: str) -> list[Call]:
    r"""The calls of a completion, in order: its ``Action:`` and ``Action Input:`` lines; else the first JSON list of calls.

    >>> parse_calls('Thought: two?\nAction: add\nAction Input: {"a": 1}')
    [Call(name='add', arguments={'a': 1})]
    >>> parse_calls('[{"Action": "add", "Action_Input": {"a": 1}}]')
    [Call(name='add', arguments={'a': 1})]
    """
    actions = [match for match in _ACTION.finditer(completion) if match[1]]
    if not actions:
        return next(_json_calls(completion), [])
    ends = [match.start() for match in actions[1:]] + [len(completion)]
    return [Call(action[1], _arguments(completion, action.end(), end)) for action, end in zip(actions, ends, strict=True)]


def extract_calls(completion: str, question: str = "") -> str | None:
    """The calls of a completion as a JSON list; ``None`` where there are none."""
    calls = parse_calls(completion)
    return json.dumps([{"Action": call.name, "Action_Input": call.arguments} for call in calls]) if calls else None


def gold_calls(answer: str) -> list[Call]:
    """The calls of a gold answer, which is a JSON list of ``Action`` and ``Action_Input``."""
    return [Call(call["Action"], call["Action_Input"]) for call in json.loads(answer)]


def write_calls(calls: Sequence[Call]) -> str:
    """Calls in the form of ReAct.

    >>> print(write_calls([Call("add", {"a": 1})]))
    Action: add
    Action Input: {"a": 1}
    """
    return "\n".join(f"Action: {call.name}\nAction Input: {json.dumps(call.arguments, ensure_ascii=False)}" for call in calls)


def same_names(calls: Sequence[Call], gold: Sequence[Call]) -> bool:
    """Whether the same functions are called in the same order."""
    return [call.name for call in calls] == [call.name for call in gold]


def same_calls(calls: Sequence[Call], gold: Sequence[Call]) -> bool:
    """Whether calls do the same: the same names in order, and every argument of the gold calls that is not empty.

    Arguments are compared as text, since models and data sets differ in whether a number is quoted. What the gold call leaves
    empty or does not have is ignored, as in the full accuracy of UniSD's evaluation: an optional argument does no harm.
    """
    return same_names(calls, gold) and all(
        call.arguments is not None
        and all(
            name in call.arguments and _text(call.arguments[name]) == _text(value)
            for name, value in (wanted.arguments or {}).items()
            if value not in ("", None, [], {})
        )
        for call, wanted in zip(calls, gold, strict=True)
    )


def _arguments(completion: str, start: int, end: int) -> dict[str, Any] | None:
    """The JSON object of the input between two actions; what follows it on its line does not matter."""
    match = _INPUT.search(completion, start, end)
    value = _decode(completion, match.end())[0] if match else None
    return value if isinstance(value, dict) else None


def _json_calls(completion: str) -> Iterator[list[Call]]:
    """JSON lists of calls, in order."""
    end = 0
    for match in re.finditer(r"\[\s*\{", completion):
        if match.start() >= end:
            value, after = _decode(completion, match.start())
            end = after if value is not None else end
            if (
                isinstance(value, list)
                and value
                and all(isinstance(v, dict) and isinstance(v.get("Action"), str) for v in value)
            ):
                inputs = [v.get("Action_Input", v.get("Action Input")) for v in value]
                yield [
                    Call(v["Action"].strip(), given if isinstance(given, dict) else None)
                    for v, given in zip(value, inputs, strict=True)
                ]


def _decode(text: str, start: int) -> tuple[Any, int]:
    """The JSON value that begins at a place, and where it ends; ``None`` where there is none."""
    try:
        value, end = _DECODER.raw_decode(text, start)
    except (ValueError, RecursionError):
        return None, start
    return (None, start) if is_too_deep(value) else (value, end)  # what could be read could perhaps not be written again


def _text(value: Any) -> str:
    return value.strip() if isinstance(value, str) else json.dumps(value, sort_keys=True, ensure_ascii=False)
