"""Contexts with something left out."""

import random

import pytest
from solved import sentence

from mixsd_lightning.context import ChatEncoder
from mixsd_lightning.demonstrations.augmentation import (
    augmentation_rng,
    drop_demonstrations,
    drop_text,
    drop_tokens,
)
from mixsd_lightning.demonstrations.contexts import demonstrations_text, with_text_before


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("seed", range(20))
def test_one_run_of_tokens_is_left_out(share: float, seed: int) -> None:
    tokens = list(range(100))
    kept = drop_tokens(tokens, share, random.Random(seed))
    gone = sorted(set(tokens) - set(kept))
    assert len(gone) == int(share * 100)
    assert gone == list(range(gone[0], gone[0] + len(gone)))
    assert kept == sorted(kept)


def test_the_place_is_anywhere() -> None:
    gone = [set(range(12)) - set(drop_tokens(range(12), 0.25, random.Random(seed))) for seed in range(200)]
    assert set().union(*gone) == set(range(12))


@pytest.mark.parametrize(("length", "share", "kept"), [(0, 0.5, 0), (8, 1.0, 8), (9, 1.0, 8), (100, 1.0, 8), (10, 0.1, 9)])
def test_some_tokens_always_stay(length: int, share: float, kept: int) -> None:
    assert len(drop_tokens(range(length), share, random.Random(0))) == kept


def test_nothing_is_left_out_at_share_0(encoder: ChatEncoder) -> None:
    rng = random.Random(0)
    tokens, text, shown = list(range(50)), "  Two  spaces,\n\ta tab, <|im_end|> ", (sentence(0), sentence(1))
    assert drop_tokens(tokens, 0, rng) == tokens
    assert drop_text(text, encoder, 0, rng) == text
    assert drop_demonstrations(shown, 0, rng) == shown


def test_the_task_and_the_frame_of_the_chat_survive(encoder: ChatEncoder) -> None:
    example, text = sentence(0), demonstrations_text([sentence(1), sentence(2)])
    shortened = drop_text(text, encoder, 0.5, random.Random(3))
    assert len(shortened) < 0.6 * len(text)
    full, short = (encoder.prompt(with_text_before(example, before)) for before in (text, shortened))
    assert len(short) < len(full)
    header = encoder.tokenizer("<|im_start|>user\n", add_special_tokens=False)["input_ids"]
    ending = encoder.tokenizer(f"{example.prompt}<|im_end|>\n<|im_start|>assistant\n", add_special_tokens=False)["input_ids"]
    assert short[: len(header)] == header
    assert short[-len(ending) :] == ending


def test_a_cut_through_a_letter_leaves_no_half_of_it(encoder: ChatEncoder) -> None:
    for seed in range(20):
        shortened = drop_text("ä" * 40, encoder, 21 / 80, random.Random(seed))  # of 80 bytes
        assert shortened == "ä" * 29


@pytest.mark.parametrize(("share", "kept"), [(0.0, 4), (0.24, 4), (0.5, 2), (0.99, 1), (1.0, 0)])
def test_demonstrations_are_left_out_whole_and_stay_in_order(share: float, kept: int) -> None:
    shown = [sentence(number) for number in range(4)]
    left = drop_demonstrations(shown, share, random.Random(0))
    assert len(left) == kept
    assert list(left) == [example for example in shown if example in left]


def test_any_demonstration_may_be_left_out() -> None:
    shown = [sentence(number) for number in range(3)]
    left = {drop_demonstrations(shown, 0.7, random.Random(seed)) for seed in range(30)}
    assert left == {(example,) for example in shown}


def test_no_demonstrations_are_none() -> None:
    assert drop_demonstrations([], 0.5, random.Random(0)) == ()


def test_random_numbers_hang_on_every_part_of_their_key() -> None:
    keys = [(0, "a", 0, 0), (1, "a", 0, 0), (0, "b", 0, 0), (0, "a", 1, 0), (0, "a", 0, 1)]
    first = [augmentation_rng(*key).random() for key in keys]
    assert len(set(first)) == len(keys)
    assert first == [augmentation_rng(*key).random() for key in keys]
