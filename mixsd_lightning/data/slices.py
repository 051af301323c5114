"""A part of a corpus, for runs that are to be short."""

import random


def random_slice(size: int, limit: int | None, key: str) -> list[int]:
    """Numbers of ``limit`` of ``size`` items, a random choice in rising order; all of them without a limit.

    The choice grows: a larger limit takes the same ones and more.

    Args:
        size: How many items there are.
        limit: How many to take.
        key: Decides the choice.

    >>> random_slice(3, None, "any"), len(random_slice(100, 7, "any"))
    ([0, 1, 2], 7)
    """
    shuffled = random.Random(key).sample(range(size), size)
    return sorted(shuffled[:limit])
