"""Programs in answers: where they stand, and whether they pass their tests."""

import ast
import functools
import re
import warnings

from mixsd_lightning.evaluation.sandbox import run_python

_BLOCK = re.compile(r"```(?:python3?|py)?[ \t]*\n(.*?)```", re.DOTALL | re.IGNORECASE)
_MOST_PROGRAMS = 4096
"""Outcomes that are remembered: more than one validation asks for."""


def extract_code(answer: str) -> str:
    r"""Code of an answer: its first fenced block of Python; else what stands before a lone fence; else everything.

    >>> extract_code("Here it is:\n```python\nx = 1\n```\nDone.")
    'x = 1\n'
    >>> extract_code("x = 1\n```")
    'x = 1\n'
    """
    block = _BLOCK.search(answer)
    return block.group(1) if block else answer.partition("```")[0]


def extract_program(completion: str, question: str = "") -> str | None:
    r"""Code of a completion that has some: a fenced block, or else a text that is itself a program with a definition in it.

    Anything short may be Python: ``yes`` is an expression. A definition is what tells a bare program from prose.

    >>> extract_program("```python\nx = 1\n```")
    'x = 1\n'
    >>> extract_program("yes")
    """
    code = extract_code(completion)
    if not code.strip():
        return None
    return code if _BLOCK.search(completion) or any(isinstance(node, _DEFINITIONS) for node in statements(code)) else None


_DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)


def statements(code: str) -> list[ast.stmt]:
    """The statements of a program; none where it is no Python."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SyntaxWarning)  # about a model's code, or a data set's
            return ast.parse(code).body
    # Besides syntax errors: null bytes, code that is nested too deep, and surrogates.
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return []


def compiles(completion: str) -> bool:
    """Whether a completion has code that is Python, be it right or wrong."""
    code = extract_program(completion)
    return code is not None and bool(statements(code))


def passes(completion: str, tests: str) -> bool:
    """Whether the code of a completion, with a test program after it, runs to its end in the sandbox.

    Training, validation and its callbacks ask about the same answers: what has run once is not run again.
    """
    code = extract_program(completion)
    return code is not None and _passes(f"{code}\n{tests}\n")


@functools.lru_cache(_MOST_PROGRAMS)
def _passes(program: str) -> bool:
    return run_python(program).passed
