r"""Scoring of free-form answers against a short gold answer. Functions of text alone; programs are run in the sandbox.

Two scores are reported for every answer. *Strict*: the answer that the format's extractor finds equals the gold answer,
case and all; a program passes its tests; calls of functions do what the gold calls do. *Loose*: the gold answer occurs somewhere in
the completion as whole words, whatever its case; its letter in the last line; there is a program at all; the right functions are
called.
"""

import re
from collections.abc import Iterable

from mixsd_lightning.evaluation.choices import extract_choice, mentions_letter
from mixsd_lightning.evaluation.programs import compiles, extract_program, passes
from mixsd_lightning.evaluation.tool_calls import extract_calls, gold_calls, parse_calls, same_calls, same_names

# Words that a sentence may begin with, so that a capital letter says nothing: they are not part of a name.
# fmt: off
_SENTENCE_OPENERS = frozenset({
    "A", "Additionally", "After", "All", "Also", "Although", "An", "And", "Answer", "Any", "Are", "As", "At", "Before",
    "But", "By", "Can", "Could", "Did", "Do", "Does", "During", "Finally", "First", "For", "From", "He", "Hence", "Her",
    "Here", "His", "How", "However", "I", "If", "In", "Is", "It", "Its", "Let", "Many", "Moreover", "My", "Name", "No",
    "Note", "Of", "On", "Once", "Our", "Please", "She", "Since", "So", "Some", "Such", "Sure", "Thank", "That", "The",
    "Their", "Then", "There", "Therefore", "These", "They", "This", "Those", "Though", "Thus", "To", "Was", "We", "What",
    "When", "Where", "Which", "While", "Who", "Why", "Would", "Yes", "You", "Your",
})
# fmt: on
_ARTICLES = frozenset({"a", "an", "the"})
_PUNCTUATION = ".,;:!?()[]\"'“”‘’`*"
"""Around words. A sign or a unit is not among it: -2 is not 2, and 55 % not 55."""
_CAPITALISED_RUN = re.compile(r"[A-Z][A-Za-z]*(?:[ ]+[A-Z][A-Za-z]*)*")


def extract_boxed(completion: str, question: str = "") -> str | None:
    r"""Content of the last ``\boxed{...}`` with balanced braces, stripped; ``None`` where there is none.

    >>> extract_boxed(r"first \boxed{a}, then \boxed{x_{1} + y}.")
    'x_{1} + y'
    """
    found = None
    open_braces: list[int] = []  # where they stand, so that each closing one is paired with its own in a single pass
    for brace in re.finditer("[{}]", completion):
        if brace[0] == "{":
            open_braces.append(brace.start())
        elif open_braces:
            start = open_braces.pop()
            if completion.endswith("\\boxed", 0, start) and (found is None or start > found[0]):
                found = start, brace.start()
    return completion[found[0] + 1 : found[1]].strip() if found else None


def extract_name(completion: str, question: str = "") -> str | None:
    """The name that a short sentence gives: its last run of capitalised words that the question does not contain.

    An answer that goes on to name something else is therefore wrong, even if it mentions the right name first.

    >>> extract_name("The Tavrin Guild employed Jorvane Teskil.", "Who employed Jorvane Teskil?")
    'Tavrin Guild'
    """
    for run in reversed(_CAPITALISED_RUN.findall(completion)):
        words = run.split()
        while words and words[0] in _SENTENCE_OPENERS:
            words.pop(0)
        name = " ".join(words)
        if name and not contains_answer(question, [name]):
            return name
    return None


def extract_short(completion: str, question: str = "") -> str | None:
    r"""The answer of a completion that is asked to be nothing but an answer: its first line that says something.

    >>> extract_short("\nMichio Sugeno.\nHe was an engineer.")
    'Michio Sugeno.'
    """
    return next((line.strip() for line in completion.splitlines() if line.strip()), None)


EXTRACTORS = {
    "boxed": extract_boxed,
    "sentence": extract_name,
    "short": extract_short,
    "choice": extract_choice,
    "code": extract_program,
    "tool_calls": extract_calls,
}
"""How the answer is found in a completion, by answer format: a text, or ``None`` where there is none."""

UNWRITTEN_FORMATS = frozenset({"code", "tool_calls"})
"""Formats whose gold answer is what a completion is checked with, not a text that stands in a right one."""


def is_exact_match(completion: str, answer: str, question: str, answer_format: str) -> bool:
    """Strict score: whether the extracted answer equals ``answer``.

    Apart from surrounding white space they must be the same characters. Of ``code`` the answer is the program that tests what was
    extracted (:func:`~mixsd_lightning.evaluation.programs.passes`), of ``tool_calls`` a list of calls
    (:func:`~mixsd_lightning.evaluation.tool_calls.same_calls`). Models under about 1B answer in a sentence even where
    they are asked for the answer alone; so of ``short`` answers it is enough that the first line begins or ends with ``answer``,
    and case, articles and the punctuation around words do not count.

    >>> is_exact_match("It was founded in 1684.", "1684", "When was it founded?", "short")
    True
    >>> is_exact_match("It was founded in 1684 by Christopher Columbus.", "1684", "When was it founded?", "short")
    False
    """
    if answer_format == "code":
        return passes(completion, answer)
    if answer_format == "tool_calls":
        return same_calls(parse_calls(completion), gold_calls(answer))
    extracted = EXTRACTORS[answer_format](completion, question)
    if extracted is None:
        return False
    if answer_format == "short":
        line, words = f" {normal(extracted)} ", f" {normal(answer)} "
        return line.startswith(words) or line.endswith(words) or normal(completion) == normal(answer)
    return extracted == answer.strip()


def is_loose_match(completion: str, answer: str, answer_format: str) -> bool:
    """Loose score: whether something in a completion is right, even if it is no whole answer in the right form.

    A short answer: it occurs (:func:`contains_answer`). ``choice``: it is the answer, or its letter stands as a capital of its own
    in the last line. ``code``: there is a program that is Python. ``tool_calls``: the right functions are called in order.

    >>> is_loose_match("I think it must be B.", "B", "choice")
    True
    """
    if answer_format == "choice":
        return extract_choice(completion) == answer or mentions_letter(completion, answer)
    if answer_format == "code":
        return compiles(completion)
    if answer_format == "tool_calls":
        return same_names(parse_calls(completion), gold_calls(answer))
    return contains_answer(completion, [answer])


def normal(text: str) -> str:
    """A text without what short answers to the same question may differ in (after SQuAD, arXiv 1606.05250).

    >>> normal('"The  Beatles".')
    'beatles'
    """
    words = [word.strip(_PUNCTUATION) for word in text.casefold().split()]
    return " ".join(word for word in words if word and word not in _ARTICLES) or text.strip().casefold()


def contains_answer(text: str, answers: Iterable[str]) -> bool:
    """Loose score: whether any of ``answers`` occurs in ``text`` as whole words, ignoring case and extra white space.

    >>> contains_answer("That would be  PARIS.", ["Paris", "Lutetia"])
    True
    >>> contains_answer("Parisian", ["Paris"])
    False
    """
    haystack = " ".join(text.split()).casefold()
    for answer in answers:
        needle = re.escape(" ".join(answer.split()).casefold())
        if re.search(rf"(?<!\w){needle}(?!\w)", haystack):
            return True
    return False
