"""What the mixing process is: its random numbers, the tokens it protects, where it ends repetition."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import chisquare

from mixsd_lightning.decoding.mixing import (
    EXPERT,
    NAIVE,
    MixingSettings,
    MixingTask,
    continuations,
    draws,
    is_looping,
)

TASK = MixingTask("example", 0, [1], [2])
SETTINGS = MixingSettings(mixing_rate=0.4, max_new_tokens=300)


def fingerprint(task: MixingTask, attempt: int, settings: MixingSettings) -> bytes:
    contexts_T, uniforms_T = draws(task, attempt, settings)
    return contexts_T.tobytes() + uniforms_T.tobytes()


@pytest.mark.parametrize("max_new_tokens", [1, 2, 3, 48, 299])
def test_draws_do_not_depend_on_how_many_are_drawn(max_new_tokens: int) -> None:
    longest = draws(TASK, 1, SETTINGS)
    shorter = draws(TASK, 1, replace(SETTINGS, max_new_tokens=max_new_tokens))
    for numbers, all_numbers in zip(shorter, longest, strict=True):
        assert np.array_equal(numbers, all_numbers[:max_new_tokens])


def test_draws_depend_on_nothing_else() -> None:
    task = replace(TASK, naive_prompt=[5, 6], expert_prompt=[], answers=((1, 2),))
    settings = replace(SETTINGS, temperature=1.0, top_k=3, protect_answer=True)
    assert fingerprint(task, 1, settings) == fingerprint(TASK, 1, SETTINGS)


def test_draws_differ_between_seeds_ids_generations_and_attempts() -> None:
    keys = [(s, i, g, a) for s in (0, 1, 11) for i in ("a", "b", "a|1") for g in (0, 1, 11) for a in (1, 2, 11)]
    drawn = {
        fingerprint(MixingTask(example_id, generation, [1], [2]), attempt, MixingSettings(seed=seed, max_new_tokens=2))
        for seed, example_id, generation, attempt in keys
    }
    assert len(drawn) == len(keys)


def test_draws_never_change() -> None:
    # Golden: other numbers would silently give other targets for the same settings.
    contexts_T, uniforms_T = draws(MixingTask("train-0", 0, [1], [2]), 1, MixingSettings(mixing_rate=0.5, max_new_tokens=2))
    assert contexts_T.tolist() == [NAIVE, EXPERT]
    assert uniforms_T.tolist() == [0.39304901482847265, 0.8623009276778826]


@pytest.mark.parametrize(("rate", "context"), [(0.0, EXPERT), (1.0, NAIVE)])
def test_pure_rates_leave_nothing_to_the_coins(rate: float, context: int) -> None:
    assert set(draws(TASK, 1, replace(SETTINGS, mixing_rate=rate))[0].tolist()) == {context}


@pytest.mark.parametrize("rate", [0.1, 0.3, 0.7])
def test_coins_follow_the_rate_whatever_the_uniform_number(rate: float) -> None:
    settings = MixingSettings(mixing_rate=rate, max_new_tokens=40)
    drawn = [draws(replace(TASK, example_id=f"example-{index}"), 1, settings) for index in range(500)]
    contexts, uniforms = (np.concatenate(numbers) for numbers in zip(*drawn, strict=True))
    assert (uniforms >= 0).all() and (uniforms < 1).all()
    observed = np.histogram2d(contexts, uniforms, bins=[[-0.5, 0.5, 1.5], np.linspace(0, 1, 11)])[0]
    expected = len(uniforms) / 10 * np.array([[rate], [1 - rate]]) * np.ones((2, 10))
    assert chisquare(observed.ravel(), expected.ravel()).pvalue > 0.01


def test_draws_of_neighbouring_positions_and_attempts_are_unrelated() -> None:
    uniforms = np.stack([draws(TASK, attempt, SETTINGS)[1] for attempt in range(1, 101)])
    for first, second in ((uniforms[:, :-1], uniforms[:, 1:]), (uniforms[:-1], uniforms[1:])):
        cells = np.histogram2d(first.ravel(), second.ravel(), bins=10, range=[[0, 1], [0, 1]])[0]
        assert chisquare(cells.ravel()).pvalue > 0.01


@pytest.mark.parametrize(
    ("answers", "token_ids", "expected"),
    [
        ([], [1, 2], set()),
        ([()], [1, 2], set()),
        ([(7,)], [7], set()),  # already complete
        ([(7, 8, 9)], [], set()),  # the first token is never one of them
        ([(7, 8, 9)], [7], {8}),
        ([(7, 8, 9)], [1, 7, 8], {9}),
        ([(7, 8, 9)], [7, 8, 9], set()),
        ([(7, 8, 9)], [7, 8, 1], set()),
        ([(7, 8, 9)], [8], set()),
        ([(7, 8, 9)], [7, 1, 8], set()),
        ([(7, 8, 9), (7, 5), (8, 6, 1)], [7], {8, 5}),
        ([(7, 8, 9), (8, 6, 1)], [7, 8], {9, 6}),  # in the middle of both
        ([(7, 7, 9)], [7, 7], {7, 9}),  # a new beginning or the end
    ],
)
def test_continuations(answers: list[tuple[int, ...]], token_ids: list[int], expected: set[int]) -> None:
    assert continuations(answers, token_ids) == expected


@pytest.mark.parametrize(
    ("token_ids", "looping"),
    [
        ([], False),
        ([7] * 15, False),
        ([7] * 16, True),
        ([1, 2] * 7 + [1], False),
        ([1, 2] * 8, True),
        ([1, 2, 3] * 5, False),
        ([1, 2, 3] * 5 + [1], True),
        ([1, 2, 3, 4] * 4, True),
        ([1, 2, 3, 4, 5] * 3 + [1, 2, 3, 4], False),
        ([1, 2, 3, 4, 5] * 4, True),
        (list(range(16)) * 4, True),
        ((list(range(16)) * 4)[1:], False),
        (list(range(17)) * 8, False),
        ([7] * 30 + [8], False),
        ([9, 8] + [7] * 16, True),
        ([7] * 8 + [8] + [7] * 15, False),
        (list(range(100)), False),
    ],
)
def test_is_looping(token_ids: list[int], looping: bool) -> None:
    assert is_looping(token_ids) is looping


def test_is_looping_heeds_the_longest_period() -> None:
    assert is_looping([1, 2, 3] * 8, longest_period=3)
    assert not is_looping([1, 2, 3] * 8, longest_period=2)


@pytest.mark.parametrize(
    ("settings", "deterministic"),
    [
        (MixingSettings(0.0, 0.0), True),
        (MixingSettings(1.0, 0.0), True),
        (MixingSettings(0.5, 0.0), False),
        (MixingSettings(0.0, 1.0), False),
        (MixingSettings(0.0, 1.0, top_k=1), True),
        (MixingSettings(0.5, 1.0, top_k=1), False),
        (MixingSettings(1.0, 1.0, top_k=0), False),
    ],
)
def test_only_settings_without_chance_are_deterministic(settings: MixingSettings, deterministic: bool) -> None:
    assert settings.is_deterministic is deterministic
