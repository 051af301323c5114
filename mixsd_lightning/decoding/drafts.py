"""Guesses of what comes next, from text at hand: where the last tokens have occurred before, they may go on alike.

A guess never changes a result. It only lets one forward check several positions at once.
"""

from collections.abc import Sequence

_LENGTHS = (3, 2)


class NGramIndex:
    """Where the n-grams of some token sequences were last seen."""

    def __init__(self) -> None:
        self._sequences: list[Sequence[int]] = []
        self._seen: dict[tuple[int, ...], tuple[int, int]] = {}

    def add(self, token_ids: Sequence[int]) -> None:
        """Add a sequence; later ones go before earlier ones."""
        number = len(self._sequences)
        self._sequences.append(token_ids)
        for length in _LENGTHS:
            for end in range(length, len(token_ids)):
                self._seen[tuple(token_ids[end - length : end])] = number, end

    def guess(self, token_ids: Sequence[int], length: int) -> list[int]:
        """Up to ``length`` tokens that may follow ``token_ids``; none where its end was never seen.

        >>> index = NGramIndex()
        >>> index.add([5, 1, 2, 3, 4])
        >>> index.guess([9, 1, 2], 2)
        [3, 4]
        """
        for n in _LENGTHS:
            if len(token_ids) >= n and (found := self._seen.get(tuple(token_ids[-n:]))):
                number, end = found
                return list(self._sequences[number][end : end + length])
        return []
