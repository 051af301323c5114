"""Which solved examples a teacher is shown next to a task: others drawn at random, or those with the nearest questions.

Both follow UniSD (arXiv 2605.06597, agreement contexts). Ours is that an example that asks the same question or teaches the same
fact is never shown, which would give the answer away, and that nothing hangs on the order of the examples.

Shapes: N examples, B of them at a time, H width of an embedding.
"""

import random
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice

import torch
from torch import Tensor

from mixsd_lightning.errors import UserError, require
from mixsd_lightning.example import Example

Contexts = list[list[tuple[Example, ...]]]
"""Demonstrations by example and context."""

_ROWS_AT_ONCE = 256


def random_demonstrations(examples: Sequence[Example], num_contexts: int, demos_per_context: int, seed: int) -> Contexts:
    """Demonstrations drawn at random for every context of every example.

    An example's draw is a function of the seed, its id and the set of examples. Contexts of an example share demonstrations only
    if there are not enough.

    Args:
        examples: Training examples, which serve one another as demonstrations.
        num_contexts: Contexts of each example.
        demos_per_context: Demonstrations in each.
        seed: Decides the draws.

    Raises:
        UserError: if there are too few examples with other questions.
    """
    pool = _Pool(examples, num_contexts, demos_per_context)
    return pool.contexts(
        _shuffled(len(examples), random.Random(f"{seed}|demonstrations|{example.id}")) for example in pool.examples
    )


def retrieved_demonstrations(
    examples: Sequence[Example], embeddings_NH: Tensor, num_contexts: int, demos_per_context: int
) -> Contexts:
    """The nearest examples by cosine: the first context has the nearest ones, the second the next, and so on.

    Args:
        examples: Training examples, which serve one another as demonstrations.
        embeddings_NH: An embedding of length 1 for each
            (:func:`~mixsd_lightning.demonstrations.embedding.sentence_embeddings`).
        num_contexts: Contexts of each example.
        demos_per_context: Demonstrations in each. Where there are not enough for all contexts, the nearest come again.

    Raises:
        UserError: if there are too few examples with other questions.
    """
    pool = _Pool(examples, num_contexts, demos_per_context)
    return pool.contexts(_nearest_first(pool, embeddings_NH))


class _Pool:
    """Examples in the order of their ids, and what must not be shown next to what."""

    def __init__(self, examples: Sequence[Example], num_contexts: int, demos_per_context: int) -> None:
        require("model.num_contexts", num_contexts, num_contexts >= 1, "at least 1")
        require("model.demos_per_context", demos_per_context, demos_per_context >= 1, "at least 1")
        self.num_contexts = num_contexts
        self.demos_per_context = demos_per_context
        self.order = sorted(range(len(examples)), key=lambda index: examples[index].id)
        self.examples = [examples[index] for index in self.order]
        self._rows: dict[tuple[str, str], set[int]] = defaultdict(set)
        for row, example in enumerate(self.examples):
            for key in _what_gives_away(example):
                self._rows[key].add(row)

    def excluded(self, row: int) -> set[int]:
        """Rows that would give away the answer of this one: itself among them."""
        return set().union(*(self._rows[key] for key in _what_gives_away(self.examples[row])))

    def contexts(self, candidates: Iterable[Iterable[int]]) -> Contexts:
        """The first allowed candidates of every row, dealt to its contexts, in the order in which the examples were given."""
        size = self.demos_per_context
        contexts: Contexts = [[] for _ in self.order]
        for row, (index, rows) in enumerate(zip(self.order, candidates, strict=True)):
            excluded = self.excluded(row)
            if (num_others := len(self.order) - len(excluded)) < size:
                raise UserError(
                    f"--model.num_contexts needs solved samples, and next to example '{self.examples[row].id}' {num_others} of "
                    f"the {len(self.order)} training examples may be shown (other question, other fact), fewer than "
                    f"--model.demos_per_context {size}. Give more examples, or lower it."
                )
            allowed = (self.examples[other] for other in rows if other not in excluded)
            shown = list(islice(allowed, self.num_contexts * size))
            # Two samples in one context are never the same, even where contexts have to share.
            contexts[index] = [
                tuple(shown[place % len(shown)] for place in range(start, start + size))
                for start in range(0, self.num_contexts * size, size)
            ]
        return contexts


def _what_gives_away(example: Example) -> list[tuple[str, str]]:
    keys = [("question", " ".join(example.question.split()).casefold())]
    return [*keys, ("fact", example.fact)] if example.fact else keys


def _shuffled(num: int, rng: random.Random) -> Iterator[int]:
    """The numbers below ``num`` in random order, for as long as they are asked for: a draw takes the same time in any pool."""
    moved: dict[int, int] = {}  # Fisher-Yates on a list that is not there
    for last in range(num - 1, -1, -1):
        place = rng.randint(0, last)
        yield moved.get(place, place)
        moved[place] = moved.pop(last, last)


def _nearest_first(pool: _Pool, embeddings_NH: Tensor) -> Iterator[list[int]]:
    embeddings_NH = embeddings_NH[pool.order]
    num = min(pool.num_contexts * pool.demos_per_context, len(pool.order))
    for first in range(0, len(pool.order), _ROWS_AT_ONCE):
        # Rounded, so that equal texts are ties in spite of the order of sums. The first by id wins a tie.
        similarity_BN = (embeddings_NH[first : first + _ROWS_AT_ONCE] @ embeddings_NH.T * 1e6).round()
        for row, similarity_N in enumerate(similarity_BN, first):
            similarity_N[list(pool.excluded(row))] = -torch.inf
            least = similarity_N.topk(num).values[-1]
            near = (similarity_N >= least).nonzero()[:, 0]
            yield near[similarity_N[near].argsort(descending=True, stable=True)].tolist()
