"""Guesses are what followed the last tokens where they were last seen."""

import random
from collections.abc import Sequence

import pytest

from mixsd_lightning.decoding.drafts import NGramIndex


def index_of(*sequences: Sequence[int]) -> NGramIndex:
    index = NGramIndex()
    for sequence in sequences:
        index.add(sequence)
    return index


@pytest.mark.parametrize(
    ("sequences", "token_ids", "expected"),
    [
        ([], [1, 2, 3], []),
        ([[1, 2, 3, 4, 5]], [1, 2], [3, 4, 5]),
        ([[1, 2, 3, 4, 5]], [9, 2, 3], [4, 5]),
        ([[1, 2, 3, 4, 5]], [3, 4, 5], []),  # nothing follows there
        ([[1, 2, 3, 4, 5]], [2, 1], []),
        ([[1, 2, 3]], [2], []),  # one token says too little
        ([[1, 2, 3]], [], []),
        ([[1, 2], [3]], [1, 2], []),  # sequences do not run into one another
        ([[1, 2, 3], [1, 2, 4]], [1, 2], [4]),  # the later sequence
        ([[1, 2, 3, 1, 2, 4]], [1, 2], [4]),  # the later place
        ([[7, 1, 2, 3], [8, 1, 2, 4]], [7, 1, 2], [3]),  # three tokens go before two
        ([[7, 1, 2, 3], [8, 1, 2, 4]], [9, 1, 2], [4]),
    ],
)
def test_guesses_follow_the_longest_latest_match(
    sequences: list[list[int]], token_ids: list[int], expected: list[int]
) -> None:
    assert index_of(*sequences).guess(token_ids, 10) == expected


@pytest.mark.parametrize("length", [0, 1, 2, 5])
def test_no_more_is_guessed_than_asked_for(length: int) -> None:
    assert index_of([1, 2, 3, 4, 5]).guess([1, 2], length) == [3, 4, 5][:length]


def test_guesses_equal_a_search_through_all_text() -> None:
    rng = random.Random(0)
    sequences = [[rng.randrange(3) for _ in range(rng.randrange(8))] for _ in range(40)]
    for count in range(len(sequences)):
        index = index_of(*sequences[:count])
        query = sequences[count]
        places = [
            sequence[end : end + 4]
            for n in (2, 3)
            if len(query) >= n
            for sequence in sequences[:count]
            for end in range(n, len(sequence))
            if sequence[end - n : end] == query[-n:]
        ]
        assert index.guess(query, 4) == (places[-1] if places else [])
