"""Multiple-choice questions whose options have letters, as corpora teach them and suites ask them."""

import random
import string
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from mixsd_lightning.disk_cache import digest
from mixsd_lightning.records import Row


@dataclass(frozen=True)
class LetteredQuestion:
    """A question and its options, as a data set has them."""

    stem: str
    options: tuple[str, ...]
    gold: int
    """Number of the right option, from 0."""
    explanation: str = ""
    """Why it is right; empty where the data set does not say."""
    context: str = ""
    """What to know or to read before."""
    topic: str = ""
    key: str = ""
    """What tells it from other questions; by default its words."""

    @cached_property
    def identity(self) -> str:
        """A short digest of what it is, wherever it stands in its file and however its options are ordered."""
        return digest(self.key or [self.stem, self.context, sorted(self.options)])[:16]

    @property
    def position(self) -> float:
        """A place from 0 to 1 that hangs on the identity alone: by it, data sets without splits are divided."""
        return int(self.identity, 16) / 16**16

    def shuffled(self, seed: int) -> tuple[str, str]:
        """The options as lines with letters, and the letter of the right one.

        Their order is drawn from the seed and the question itself. So no letter is right more often than others, and neither the
        order in which a file has them nor what else is in it changes what is asked.
        """
        options = random.Random(f"{seed}|{self.identity}").sample(sorted(self.options), len(self.options))
        letters = string.ascii_uppercase
        lines = [f"{letter}. {option}" for letter, option in zip(letters, options, strict=False)]
        return "\n".join(lines), letters[options.index(self.options[self.gold])]


def options_of(row: Row, texts: Sequence[str], right: str) -> tuple[tuple[str, ...], int]:
    """The options of a record and the number of the right one.

    Data sets leave options blank or write one twice, which then would have two letters: those are dropped.

    Raises:
        UserError: if fewer than two or more than 26 are left, or none of them is the right one.
    """
    options = tuple(dict.fromkeys(text.strip() for text in texts if text.strip()))
    if not 2 <= len(options) <= len(string.ascii_uppercase):
        raise row.wrong("has no 2 to 26 different options")
    if right.strip() not in options:
        raise row.wrong(f"has an answer that is none of its options: {right[:80]!r}")
    return options, options.index(right.strip())
