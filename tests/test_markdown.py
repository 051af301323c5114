"""Any text in our Markdown is rendered as the text that it is."""

from html.parser import HTMLParser

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from mixsd_lightning.errors import printable
from mixsd_lightning.markdown import code, code_block, markdown_table, plain

RENDER = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"]).render
ODD = ["`", "``", "```", "\\", "|", "[", "](", "<", ">", "&", "&amp;", "*", "_", "~~", "$", "#", "-", "+", "=", "1.", "2)", "\n", " ",
       "    ", "![x](y)", "<!--", "]]>", "<b>", "http://a.b", "a", "é", "\x00", "\ud800", "\u202e", "{{", "---", ":", "!", '"']  # fmt: skip
TEXTS = st.one_of(st.lists(st.sampled_from(ODD), max_size=12).map("".join), st.text(max_size=20))


class Seen(HTMLParser):
    """Tags and texts of rendered Markdown."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.texts: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.texts.append("")

    def handle_data(self, data: str) -> None:
        if self.texts:
            self.texts[-1] += data


@settings(max_examples=400, deadline=None)
@given(TEXTS)
def test_a_paragraph_is_its_text(text: str) -> None:
    seen = Seen(RENDER(f"{plain(text)}\n"))
    if printable(text):
        assert seen.tags == ["p"]
        assert seen.texts[0].rstrip("\n") == printable(text)
    else:
        assert seen.tags == []


@settings(max_examples=300, deadline=None)
@given(TEXTS)
def test_code_is_its_text(text: str) -> None:
    seen = Seen(RENDER(f"Before {code(text)} after.\n"))
    assert seen.tags == ["p", "code"]
    assert seen.texts[1].removesuffix(" after.\n").strip() == printable(text)


@settings(max_examples=300, deadline=None)
@given(TEXTS)
def test_a_block_of_code_is_its_text(text: str) -> None:
    text = text.replace("\x00", "").replace("\ud800", "").replace("\r", "")
    seen = Seen(RENDER(f"{code_block(text, 'yaml')}\n"))
    assert seen.tags == ["pre", "code"]
    assert seen.texts[1].strip() == text.strip()


@settings(max_examples=300, deadline=None)
@given(st.lists(st.lists(TEXTS, min_size=2, max_size=2), min_size=1, max_size=3))
def test_cells_of_a_table_are_their_texts(rows: list[list[str]]) -> None:
    seen = Seen(RENDER(markdown_table(rows[0], rows) + "\n"))
    assert seen.tags == ["table", "thead", "tr", "th", "th", "tbody", *["tr", "td", "td"] * len(rows)]
    cells = [text.strip() for tag, text in zip(seen.tags, seen.texts, strict=True) if tag in ("th", "td")]
    assert cells == [printable(cell) for row in [rows[0], *rows] for cell in row]


@pytest.mark.parametrize(
    "text", ["- a", "+ a", "-", "---", "1. a", "12) a", "=", "# a", "> a", "~~~", "    a", "* * *", "a\n===\nb"]
)
def test_what_begins_a_block_elsewhere_does_not_here(text: str) -> None:
    assert Seen(RENDER(plain(text))).tags == ["p"]
    assert Seen(RENDER(text)).tags != ["p"] or text == "="
