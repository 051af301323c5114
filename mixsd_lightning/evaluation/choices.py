"""The letter that an answer to a lettered multiple-choice question gives.

The last answer wins, since a model may weigh one option before it settles on another. A bare letter counts only where no word
follows it: ``A`` may be the article ("Answer: A dog"). The rule is the same for every letter, because a scorer that is kinder to
some would favour the questions whose answer they are.
"""

import re

# Brackets and bold letters all become (B), and other Markdown goes, so that the patterns below have one form to know.
_WRAPPER = re.compile(r"\\(?:boxed|text|textbf|mathbf|mathrm)\s*(?=\{)")
_BOLD = re.compile(r"(\*\*|__|\*|`)\s*([A-Za-z])[.:)]?\s*\1")
_BRACKETED = re.compile(r"[(\[{<\"'“‘]{1,3}\s*([A-Za-z])\s*[.:]?\s*[)\]}>\"'”’]{1,3}")
_MARKDOWN = re.compile(r"[*_`$]")

_NO_LIST = r"(?!\s*(?:,|/|&|\bor\b|\band\b)\s*\(?(?-i:[A-Z])\b)"
"""No second letter: "A or B" is no answer."""
_ALONE = r"(?![\w+#]|['’-]\w|\.\w\b|[ \t]+(?!(?:because|since|is|was|as|which)\b)\w)"
"""Neither the rest of a word (B12, A's, A.M., C++) nor a word, but for some that cannot follow an article."""
_LETTER = rf"(?:\((?P<bracketed>[A-Z])\)|(?P<bare>(?-i:{{bare}})){_ALONE}){_NO_LIST}"
_SUBJECT = r"(?:(?:the|my|final|correct|right|best)\s+)*(?:answer|(?:correct|right|best)\s+(?:option|choice))"

_LINE = re.compile(
    rf"^[ \t#>-]*{_SUBJECT}\s*(?:\bis\s*)?[:：]\s*(?:(?:option|choice)\s+)?{_LETTER.format(bare='[A-Za-z]')}", re.I | re.M
)
# In running text a small letter may be the article, at which a completion was cut off.
_PHRASE = re.compile(rf"\b{_SUBJECT}\s*(?:\bis\b\s*:?|[:：])\s*(?:(?:option|choice)\s+)?{_LETTER.format(bare='[A-Z]')}", re.I)
_NOTHING_ELSE = re.compile(r"\s*(?:\((?P<bracketed>[A-Z])\)|(?P<bare>[A-Z])[.):]?)[.]?\s*", re.I)


def extract_choice(completion: str, question: str = "") -> str | None:
    r"""The letter of the last answer line; else of the last ``the answer is``; else a completion that is only a letter.

    >>> extract_choice("Answer: A\nNo, whales are mammals.\n**Answer:** (B)")
    'B'
    >>> extract_choice("So the answer is C.")
    'C'
    >>> extract_choice("d)")
    'D'
    >>> extract_choice("Answer: A dog is a mammal.")
    """
    text = _plain(completion)
    found = [*_LINE.finditer(text)] or [*_PHRASE.finditer(text)] or [*filter(None, [_NOTHING_ELSE.fullmatch(text)])]
    return (found[-1]["bracketed"] or found[-1]["bare"]).upper() if found else None


def mentions_letter(completion: str, letter: str) -> bool:
    """Whether a letter stands as a capital of its own in the last line that says something. Before a word it is none.

    >>> mentions_letter("I would go for B.", "B"), mentions_letter("A dog is a mammal.", "A")
    (True, False)
    """
    lines = [line for line in _plain(completion).splitlines() if line.strip()]
    return bool(lines) and re.search(rf"\({letter}\)|(?<!\w){letter}{_ALONE}", lines[-1]) is not None


def _plain(completion: str) -> str:
    text = _BOLD.sub(r"(\2)", _BRACKETED.sub(r"(\1)", _WRAPPER.sub("", completion)))
    return _MARKDOWN.sub("", text)
