"""Questions with lettered options: an order that hangs on the question alone."""

from collections import Counter
from dataclasses import replace

import pytest

from mixsd_lightning.errors import UserError
from mixsd_lightning.lettered import LetteredQuestion, options_of
from mixsd_lightning.records import Row

BIRD = LetteredQuestion("Which is a bird?", ("duck", "fox", "eel"), 0)
ROW = Row("file, line 3", {}, option="--data")


def test_the_letter_is_that_of_the_right_option() -> None:
    for seed in range(20):
        lines, letter = BIRD.shuffled(seed)
        assert f"{letter}. duck" in lines.splitlines()
        assert sorted(line[:3] for line in lines.splitlines()) == ["A. ", "B. ", "C. "]
        assert sorted(line[3:] for line in lines.splitlines()) == ["duck", "eel", "fox"]


def test_the_order_in_the_file_does_not_matter() -> None:
    other = replace(BIRD, options=("eel", "fox", "duck"), gold=2)
    assert all(other.shuffled(seed) == BIRD.shuffled(seed) for seed in range(20))


def test_every_letter_is_right_equally_often() -> None:
    letters = Counter(replace(BIRD, key=str(number)).shuffled(42)[1] for number in range(3000))
    assert letters.keys() == {"A", "B", "C"}
    assert all(900 < count < 1100 for count in letters.values())
    assert Counter(BIRD.shuffled(seed)[1] for seed in range(300)).keys() == {"A", "B", "C"}


def test_identity_hangs_on_the_words_or_on_the_key() -> None:
    assert replace(BIRD, options=("fox", "duck", "eel"), gold=1).identity == BIRD.identity
    assert replace(BIRD, explanation="It flies.", topic="animals").identity == BIRD.identity
    others = [replace(BIRD, stem="Which is a fish?"), replace(BIRD, options=("duck", "fox")), replace(BIRD, context="A pond.")]
    keyed = replace(BIRD, key="7")
    assert len({question.identity for question in (BIRD, keyed, *others)}) == 5
    assert replace(keyed, stem="Which is a fish?").identity == keyed.identity


def test_positions_are_spread_evenly() -> None:
    positions = [replace(BIRD, key=str(number)).position for number in range(2000)]
    assert all(0 <= position < 1 for position in positions)
    assert Counter(int(10 * position) for position in positions).most_common()[-1][1] > 150


def test_options_that_are_blank_or_twice_there_are_dropped() -> None:
    assert options_of(ROW, ["fox", " duck", "", "fox ", "duck"], "duck") == (("fox", "duck"), 1)


@pytest.mark.parametrize(
    ("texts", "right", "message"),
    [
        (["duck", "duck "], "duck", "has no 2 to 26 different options"),
        ([], "duck", "has no 2 to 26 different options"),
        ([str(number) for number in range(27)], "3", "has no 2 to 26 different options"),
        (["duck", "fox"], "eel", "has an answer that is none of its options: 'eel'"),
        (["duck", "fox"], "", "has an answer that is none of its options: ''"),
    ],
)
def test_options_that_cannot_be_asked_are_refused(texts: list[str], right: str, message: str) -> None:
    with pytest.raises(UserError, match=f"^--data: file, line 3 {message}"):
        options_of(ROW, texts, right)
