"""Wrong answers, and whole answer turns that give them, made by rule: what there always is, whatever a model can write.

UniSD (arXiv 2605.06597) has all wrong demonstrations written by the base model and silently leaves out examples without one.
Here every example has one, and each is scored: it must give an answer, and the answer must be wrong.
"""

import random
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from mixsd_lightning.context import NAMING_FORMATS
from mixsd_lightning.errors import UserError
from mixsd_lightning.evaluation.programs import compiles, extract_program
from mixsd_lightning.evaluation.scoring import EXTRACTORS, is_exact_match, normal
from mixsd_lightning.evaluation.tool_calls import parse_calls, write_calls
from mixsd_lightning.example import Example

PRESCRIBING_FORMATS = (*NAMING_FORMATS, "choice")
"""Answer formats in which it can be said beforehand which wrong answer is to be given."""
_MOST_TRIED = 100


@dataclass(frozen=True)
class WrongDemonstration:
    """What stands in a negative prompt in place of an example's own target, answer and fact."""

    target: str
    """The whole answer turn."""
    answer: str
    """What is found in it: a short answer, a letter, a program, calls."""
    fact: str
    """The fact with the wrong answer in place of the right one; the wrong target where the fact does not say the answer."""
    is_written: bool = False
    """By the model."""


def is_wrong(example: Example, text: str, wrong_answer: str | None = None) -> bool:
    """Whether a text gives an answer to ``example``, and a wrong one: this one, if it is said which.

    A program must be Python and the arguments of calls JSON: a slip of form is not what is wrong.
    """
    answer_format, question = example.answer_format, example.question
    if EXTRACTORS[answer_format](text, question) is None or (answer_format == "code" and not compiles(text)):
        return False
    if answer_format == "tool_calls" and any(call.arguments is None for call in parse_calls(text)):
        return False
    if is_exact_match(text, example.answer, question, answer_format):
        return False
    return wrong_answer is None or is_exact_match(text, wrong_answer, question, answer_format)


def in_canonical_form(example: Example, text: str) -> str:
    """The program or the calls of a text alone, in the form of the corpora's targets; any other text as it is."""
    if example.answer_format == "code" and (program := extract_program(text)) is not None:
        return "```python\n" + program.strip("\n") + "\n```"
    if example.answer_format == "tool_calls" and (calls := parse_calls(text)):
        return write_calls(calls)
    return text


def demonstration(example: Example, target: str, wrong_answer: str | None, is_written: bool = False) -> WrongDemonstration:
    """A wrong answer turn with all that a negative prompt may show."""
    if wrong_answer is None:
        wrong_answer = str(EXTRACTORS[example.answer_format](target, example.question))
    return WrongDemonstration(target, wrong_answer, wrong_fact(example, wrong_answer) or target, is_written)


def wrong_fact(example: Example, wrong_answer: str) -> str | None:
    """The fact with a wrong answer in place of the right one; ``None`` where it does not say the right one."""
    if example.answer_format not in NAMING_FORMATS:
        return None
    fact = _with_answer(example, example.fact, wrong_answer)
    return None if fact == example.fact else fact


class WrongTargets:
    """Wrong demonstrations by rule, out of an example itself and what others answer."""

    def __init__(self, examples: Sequence[Example], seed: int) -> None:
        """
        Args:
            examples: Of which each may lend its answer to others. Their order does not count.
            seed: Decides the draws.
        """
        self._seed = seed
        self._lenders: dict[tuple, list[Example]] = defaultdict(list)
        for example in sorted(examples, key=lambda example: example.id):
            self._lenders[example.answer_format,].append(example)
            self._lenders[_kind(example)].append(example)

    def make(self, example: Example) -> WrongDemonstration:
        """The wrong demonstration of an example, a function of the seed, its id and the set of examples.

        Raises:
            UserError: if there is nothing that could be a wrong answer.
        """
        rng = random.Random(f"{self._seed}|wrong|{example.id}")
        if example.answer_format in PRESCRIBING_FORMATS:
            candidates: Iterator[tuple[str, str | None]] = (
                (turn, answer) for answer in self._wrong_answers(example, rng) for turn in _turns(example, answer)
            )
        else:
            turns = (other.target for other in _some(self._lenders[example.answer_format,], rng))
            candidates = ((turn, None) for turn in (*turns, _spoilt(example)) if turn != example.target)
        found = next((pair for pair in candidates if is_wrong(example, *pair)), None)
        if found is None:
            raise UserError(
                f"--model.contrastive_weight: nothing can be a wrong answer to example '{example.id}' ({example.question[:80]!r}). "
                "Give its record wrong_answers or the corpus more examples, or set the weight to 0."
            )
        return demonstration(example, *found)

    def _wrong_answers(self, example: Example, rng: random.Random) -> Iterator[str]:
        """Its own wrong answers; then those of others, first of others whose answers look alike."""
        own = rng.sample(example.wrong_answers, len(example.wrong_answers))
        keys = (_kind(example), (example.answer_format,))
        lent = (other.answer for key in keys for other in _some(self._lenders[key], rng))
        right = normal(example.answer)
        yield from (answer for answers in (own, lent) for answer in answers if normal(answer) != right)


def _kind(example: Example) -> tuple[str, bool, int]:
    """What answers that could be taken for one another have in common: format, whether there is a digit, number of words."""
    return example.answer_format, any(map(str.isdigit, example.answer)), len(example.answer.split())


def _some(examples: Sequence[Example], rng: random.Random) -> list[Example]:
    """As many as are worth trying, in random order."""
    return rng.sample(examples, min(len(examples), _MOST_TRIED))


def _with_answer(example: Example, text: str, answer: str) -> str:
    """A text with another answer wherever the right one stands as whole words."""
    right = r"\s+".join(map(re.escape, example.answer.split()))
    return re.sub(rf"(?<!\w){right}(?!\w)", lambda _: answer, text, flags=re.IGNORECASE)


def _turns(example: Example, answer: str) -> list[str]:
    """Answer turns that give an answer: the canonical one with it, and a bare one."""
    if example.answer_format == "choice":  # the reasons for the right letter are none for another
        return [f"Answer: {answer}"]
    bare = {"boxed": f"\\boxed{{{answer}}}", "sentence": f"The answer is {answer}.", "short": answer}
    return [_with_answer(example, example.target, answer), bare[example.answer_format]]


def _spoilt(example: Example) -> str:
    """An answer turn that is wrong whatever is asked: the functions do nothing, or no function is called."""
    if example.answer_format == "code":
        names = re.findall(r"^\s*def (\w+)", example.target, flags=re.MULTILINE)
        return "```python\n" + "\n\n".join(f"def {name}(*values):\n    return None" for name in names or ["answer"]) + "\n```"
    return "Action: none\nAction Input: {}"
