"""Texts from outside in Markdown, where they set nothing: no HTML, no link, no picture, no formula, no heading."""

import re
from collections.abc import Iterable, Sequence

from mixsd_lightning.errors import printable

_BEGINS_A_BLOCK = re.compile(r"^(?=-[\s-]|-$|\+\s|\+$|=)|^(\d{1,9})(?=[.)](?:\s|$))")


def plain(text: str) -> str:
    r"""A text on one line that is shown as it stands, whatever is in it.

    >>> plain("<b>a_b</b>")
    '&lt;b&gt;a\\_b&lt;/b&gt;'
    """
    escaped = re.sub(r"([\\`*_{}\[\]|~$#])", r"\\\1", printable(text))
    escaped = _BEGINS_A_BLOCK.sub(r"\1\\", escaped)
    return escaped.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def code(text: str) -> str:
    """A text on one line set as code.

    >>> code("a`b")
    '`` a`b ``'
    """
    text = printable(text)
    fence = _fence(text, 1)
    return f"{fence} {text} {fence}" if "`" in text or not text else f"{fence}{text}{fence}"


def code_block(text: str, language: str) -> str:
    """Lines of code in a fence that nothing in them closes."""
    fence = _fence(text, 3)
    return f"{fence}{language}\n{text.rstrip()}\n{fence}"


def markdown_table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table; headings and cells may hold anything."""
    lines = ["| " + " | ".join(map(plain, line)) + " |" for line in (headings, *rows)]
    return "\n".join([lines[0], "|" + "---|" * len(headings), *lines[1:]])


def _fence(text: str, shortest: int) -> str:
    """More backticks than stand anywhere in a row."""
    longest = max(map(len, re.findall("`+", text)), default=0)
    return "`" * max(shortest, longest + 1)
