"""Auxiliary contexts with something left out, so that a teacher does not hang on one wording (UniSD, arXiv 2605.06597).

The published code has this and never calls it. Ours works on what stands before the task while it is still text or a list of
samples: the task itself, the tokens of the chat template and the header of the assistant's turn are not in reach.
"""

import random
from collections.abc import Sequence

from mixsd_lightning.context import ChatEncoder
from mixsd_lightning.example import Example

MIN_TOKENS = 8
"""So many tokens stay, or all of a shorter text."""


def augmentation_rng(seed: int, example_id: str, context: int, step: int) -> random.Random:
    """Random numbers for one context of one example at one step."""
    return random.Random(f"{seed}|augmentation|{example_id}|{context}|{step}")


def drop_tokens(token_ids: Sequence[int], share: float, rng: random.Random) -> list[int]:
    """Token ids without one run of them, a ``share`` of all, at a random place; at least ``MIN_TOKENS`` stay.

    >>> drop_tokens(range(12), 0.25, random.Random(0))
    [0, 1, 2, 3, 4, 5, 9, 10, 11]
    """
    num_dropped = max(0, min(int(share * len(token_ids)), len(token_ids) - MIN_TOKENS))
    start = rng.randint(0, len(token_ids) - num_dropped)
    return [*token_ids[:start], *token_ids[start + num_dropped :]]


def drop_text(text: str, encoder: ChatEncoder, share: float, rng: random.Random) -> str:
    """:func:`drop_tokens` on a text that is to stand before a task (:func:`~.contexts.with_text_before`)."""
    token_ids = encoder.target(text)[:-1]  # without the end of the turn
    kept = drop_tokens(token_ids, share, rng)
    # Where the cut goes through the bytes of a letter, its half is no letter.
    return text if kept == token_ids else encoder.decode(kept).replace("\N{REPLACEMENT CHARACTER}", "")


def drop_demonstrations(demonstrations: Sequence[Example], share: float, rng: random.Random) -> tuple[Example, ...]:
    """Demonstrations without a ``share`` of them, rounded down, in their order."""
    num_kept = len(demonstrations) - int(share * len(demonstrations))
    return tuple(demonstrations[index] for index in sorted(rng.sample(range(len(demonstrations)), num_kept)))
