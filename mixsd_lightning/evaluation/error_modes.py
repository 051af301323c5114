"""Why wrong answers are wrong: the error taxonomy of MixSD (arXiv 2605.16865), with entities matched as whole words.

Each wrong answer has one mode, the first that fits.

On the corpus that is taught: *format* (no answer can be found), *cross_entity* (it names something else of the corpus),
*genuine*. On held-out questions: *format*, *leakage* (it names something of the corpus that the question does not),
*collapse* (there is hardly more than the answer, where reasoning or code was asked for), *genuine*.
"""

import re
from collections.abc import Iterable

from mixsd_lightning.context import NAMING_FORMATS
from mixsd_lightning.evaluation.scoring import EXTRACTORS, extract_boxed
from mixsd_lightning.evaluation.suites.base import AnswerForm
from mixsd_lightning.example import Example

INJECTED_MODES = ("format", "cross_entity", "genuine")
HELD_OUT_MODES = ("format", "leakage", "collapse", "genuine")

_FENCE = re.compile(r"```")
_BOX = re.compile(r"\\boxed\{[^{}]*\}")
_ANSWER_LINE = re.compile(r"^[^\w\n]*(?:so |thus |therefore,? )?(?:the )?(?:final )?answer\b.*$", re.IGNORECASE | re.MULTILINE)
# What may stand beside an answer that comes without any reasoning (paper's harness).
_MOST_CHARACTERS, _MOST_NEWLINES = 80, 4


class Entities:
    """Names of a corpus that can be told from ordinary words: of four characters and two words at least.

    Letters, programs and calls name nothing, and what they are about is a topic that any text may touch.
    """

    def __init__(self, examples: Iterable[Example]) -> None:
        naming = [example for example in examples if example.answer_format in NAMING_FORMATS]
        names = {name for example in naming for name in (example.subject, example.answer)}
        self.names = frozenset(_normal(name) for name in names if len(name) >= 4 and len(name.split()) > 1)
        # Longest first, so that a name inside another is not taken for it.
        alternatives = "|".join(re.escape(name) for name in sorted(self.names, key=len, reverse=True))
        self._pattern = re.compile(rf"(?<!\w)(?:{alternatives})(?!\w)") if alternatives else None

    def found_in(self, text: str) -> frozenset[str]:
        """Names in a text, in lower case, whatever case and white space they are written with."""
        return frozenset(self._pattern.findall(_normal(text))) if self._pattern else frozenset()


def injected_mode(completion: str, example: Example, entities: Entities) -> str:
    """Mode of a wrong answer to a question of the corpus that is taught."""
    extracted = EXTRACTORS[example.answer_format](completion, example.question)
    if extracted is None:
        return "format"
    return "cross_entity" if entities.found_in(extracted) - {_normal(example.answer)} else "genuine"


def held_out_mode(completion: str, question: str, form: AnswerForm, entities: Entities) -> str:
    """Mode of a wrong answer to a held-out question.

    Args:
        completion: The answer.
        question: What was asked.
        form: ``boxed``: reasoning and a boxed answer; ``code``: a fenced block of code; ``free``: anything.
        entities: Of the corpus that is taught.
    """
    is_boxed, is_fenced = extract_boxed(completion) is not None, bool(_FENCE.search(completion))
    has_answer = {"boxed": is_boxed, "code": is_boxed or is_fenced, "free": bool(completion.strip())}[form]
    if not has_answer:
        return "format"
    if entities.found_in(completion) - entities.found_in(question):
        return "leakage"
    if form == "code" and not is_fenced:
        return "collapse"
    if form == "boxed":
        rest = _ANSWER_LINE.sub("", _BOX.sub("", completion)).strip()
        if len(rest) <= _MOST_CHARACTERS and rest.count("\n") <= _MOST_NEWLINES:
            return "collapse"
    return "genuine"


def _normal(text: str) -> str:
    return " ".join(text.split()).casefold()
