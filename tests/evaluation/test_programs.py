"""Programs in answers: found, tested in the sandbox, and each run once."""

from collections.abc import Callable

import pytest

from mixsd_lightning.evaluation import programs
from mixsd_lightning.evaluation.programs import compiles, extract_program, passes
from mixsd_lightning.evaluation.sandbox import Outcome

TESTS = "assert double(3) == 6\nassert double(-1) == -2"


def fenced(code: str) -> str:
    return f"Here it is:\n```python\n{code}\n```\nIt doubles."


@pytest.mark.parametrize(
    ("completion", "code"),
    [
        (fenced("x = 1"), "x = 1\n"),
        ("```\ndouble\n```", "double\n"),
        ("def double(x):\n    return 2 * x", "def double(x):\n    return 2 * x"),
        ("def double(x):\n    return 2 * x\n```\nIt doubles.", "def double(x):\n    return 2 * x\n"),
        ("class A:\n    pass", "class A:\n    pass"),
        ("yes", None),
        ("2 * x", None),
        ("I cannot do that.", None),
        ("def double(x) returns twice x", None),
        ("```python\n\n```", None),
        ("```python\nx = 1", None),
        ("```", None),
        ("", None),
    ],
)
def test_program_is_found(completion: str, code: str | None) -> None:
    assert extract_program(completion) == code


@pytest.mark.parametrize(
    ("completion", "expected"),
    [
        (fenced("def double(x):\n    return x"), True),
        (fenced("def double(x):\n\treturn x"), True),
        ("def double(x):\n    return x", True),
        (fenced("def double(x)"), False),
        (fenced("if x:\n        y\n\tz"), False),
        (fenced("x = '\0'"), False),
        (fenced("(" * 10_000), False),
        (fenced("# nothing"), False),
        ("Twice x.", False),
    ],
)
def test_loosely_a_program_is_python(completion: str, expected: bool) -> None:
    assert compiles(completion) is expected


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("def double(x):\n    return x + x", True),
        ("def double(x):\n    return x", False),
        ("def treble(x):\n    return 3 * x", False),
        ("def double(x:", False),
        ("while True:\n    pass", False),
        ("import sys\nsys.exit(0)", False),
        ("import os\nos._exit(0)", False),
        ("raise SystemExit", False),
        ("def double(x):\n    try:\n        raise KeyboardInterrupt\n    finally:\n        return 2 * x", True),
        ("def double(x):\n    print('passed')\n    return 0", False),
        ("def double(x):\n    return '\ud800'", False),
    ],
)
def test_a_program_passes_if_its_tests_run_to_the_end(code: str, expected: bool) -> None:
    assert passes(fenced(code), TESTS) is expected


def test_an_answer_without_a_program_is_not_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(programs, "run_python", lambda program: pytest.fail("it was run"))
    assert not passes("I cannot do that.", "pass")


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The programs that the sandbox is given."""
    seen: list[str] = []

    def run(program: str) -> Outcome:
        seen.append(program)
        return Outcome("right" in program, "", "")

    monkeypatch.setattr(programs, "run_python", run)
    programs._passes.cache_clear()
    return seen


@pytest.fixture(autouse=True)
def forget() -> Callable[[], None]:
    """What a test says that a program does is not remembered."""
    yield programs._passes.cache_clear  # type: ignore[misc]
    programs._passes.cache_clear()


def test_the_same_program_runs_once(runs: list[str]) -> None:
    assert [passes(fenced("right = 1"), TESTS) for _ in range(3)] == [True] * 3
    assert not passes(fenced("wrong = 1"), TESTS)
    assert passes(fenced("right = 1"), "assert right")
    assert runs == [f"right = 1\n\n{TESTS}\n", f"wrong = 1\n\n{TESTS}\n", "right = 1\n\nassert right\n"]
