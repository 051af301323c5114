"""JSON and YAML that others may have written, as plain values: texts, numbers, lists and dicts. Nothing in them is run or opened.

What a file of a few lines could blow up (nesting, references to references) is refused before it can.
"""

import json
from pathlib import Path
from typing import Any

import yaml
from typing_extensions import override

from mixsd_lightning.errors import UserError

DEEPEST = 64
"""Lists and dicts within one another."""
_MOST_VALUES = 100_000
_LONGEST_YAML = 500_000


def parse_json(text: str) -> Any:
    """A JSON value.

    >>> parse_json('{"a": [1]}')
    {'a': [1]}

    Raises:
        ValueError: if it is none, or is nested more than :data:`DEEPEST` times.
    """
    try:
        value = json.loads(text)
    except RecursionError:
        raise ValueError(_TOO_DEEP) from None
    # To count is faster than to look, and nearly always enough.
    if text.count("[") + text.count("{") > DEEPEST and is_too_deep(value):
        raise ValueError(_TOO_DEEP)
    return value


_TOO_DEEP = f"it is nested more than {DEEPEST} times"


def is_too_deep(value: Any) -> bool:
    """Whether lists and dicts are nested more than :data:`DEEPEST` times, level by level, so that no depth is too much to ask."""
    level = [value]
    for _ in range(DEEPEST + 1):
        inner = [one.values() if isinstance(one, dict) else one for one in level if isinstance(one, list | dict)]
        if not inner:
            return False
        level = [one for values in inner for one in values]
    return True


def read_yaml(path: Path) -> Any:
    """The plain values of a YAML file; keys are texts, and so is what only YAML has, such as dates.

    Raises:
        UserError: if it cannot be read, asks for an object of Python, or is larger than settings can be.
    """
    try:
        with path.open(encoding="utf-8") as file:
            text = file.read(_LONGEST_YAML + 1)
        if len(text) > _LONGEST_YAML:
            raise ValueError(f"it is longer than {_LONGEST_YAML} characters")
        return plain_values(_ShallowLoader(text).get_single_data())
    # Besides its own errors, the parser lets out those of numbers, dates and keys that are none.
    except (
        OSError,
        ValueError,
        TypeError,
        AttributeError,
        LookupError,
        OverflowError,
        RecursionError,
        yaml.YAMLError,
    ) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{path} cannot be read: {reason}. Mend it.") from error


class _ShallowLoader(yaml.SafeLoader):
    """Stops at :data:`DEEPEST`, long before Python does."""

    _depth = 0

    @override
    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self._depth > DEEPEST:
            raise ValueError(_TOO_DEEP)
        self._depth += 1
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node


def plain_values(value: Any) -> Any:
    """A copy that JSON could hold: tuples are lists, keys are texts, and so are dates.

    Raises:
        ValueError: if there is anything else in it, it is nested too deep, or holds too many values (a few that refer to one
            another are enough for that).
    """
    budget = _MOST_VALUES

    def copy(value: Any, depth: int) -> Any:
        nonlocal budget
        budget -= 1
        if budget < 0:
            raise ValueError(f"it holds more than {_MOST_VALUES} values")
        if depth > DEEPEST:
            raise ValueError(_TOO_DEEP)
        if isinstance(value, dict):
            return {str(copy(key, DEEPEST)): copy(item, depth + 1) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [copy(item, depth + 1) for item in value]
        if isinstance(value, int) and value.bit_length() > 1023:
            raise ValueError("it holds a number that is too large")
        if value is None or isinstance(value, int | float):
            return value
        if type(value).__module__ == "datetime":
            return str(value)
        if not isinstance(value, str):
            raise ValueError(f"it holds a value of type {type(value).__name__}, which no setting is")
        value.encode()  # half of a surrogate pair could not be written again
        return str(value)

    return copy(value, 0)
