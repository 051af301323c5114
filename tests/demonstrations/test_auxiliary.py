"""Which solved examples stand next to a task."""

import os
import random
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from solved import sentence
from torch import Tensor
from torch.nn.functional import normalize

from mixsd_lightning.demonstrations.auxiliary import random_demonstrations, retrieved_demonstrations
from mixsd_lightning.errors import UserError
from mixsd_lightning.example import Example

POOL = [sentence(number) for number in range(20)]


def embeddings(examples: list[Example]) -> Tensor:
    """A random one for each id."""
    rows = [torch.randn(8, generator=torch.Generator().manual_seed(int(example.id[1:]))) for example in examples]
    return normalize(torch.stack(rows), dim=-1)


def drawn(examples: list[Example], num_contexts: int, demos: int) -> list[list[tuple[Example, ...]]]:
    return random_demonstrations(examples, num_contexts, demos, seed=0)


def retrieved(examples: list[Example], num_contexts: int, demos: int) -> list[list[tuple[Example, ...]]]:
    return retrieved_demonstrations(examples, embeddings(examples), num_contexts, demos)


BOTH = pytest.mark.parametrize("choose", [drawn, retrieved])


def ids(contexts: list[tuple[Example, ...]]) -> list[tuple[str, ...]]:
    return [tuple(shown.id for shown in context) for context in contexts]


@BOTH
@pytest.mark.parametrize(("num_contexts", "demos"), [(1, 1), (3, 1), (3, 4), (1, 19), (4, 5)])
def test_others_are_shown_and_no_one_twice_while_there_are_enough(choose: Callable, num_contexts: int, demos: int) -> None:
    for example, contexts in zip(POOL, choose(POOL, num_contexts, demos), strict=True):
        assert [len(context) for context in contexts] == [demos] * num_contexts
        shown = [other.id for context in contexts for other in context]
        assert example.id not in shown
        assert len(set(shown)) == min(num_contexts * demos, len(POOL) - 1)
        assert all(len(set(context)) == demos for context in ids(contexts))


@BOTH
def test_a_pool_of_two_shows_each_to_the_other_in_every_context(choose: Callable) -> None:
    first, second = (ids(contexts) for contexts in choose(POOL[:2], 3, 1))
    assert first == [("s1",)] * 3
    assert second == [("s0",)] * 3


@BOTH
def test_the_order_of_examples_does_not_count(choose: Callable) -> None:
    shuffled = random.Random(1).sample(POOL, len(POOL))
    here, there = (
        {example.id: ids(contexts) for example, contexts in zip(pool, choose(pool, 2, 3), strict=True)}
        for pool in (POOL, shuffled)
    )
    assert here == there


@BOTH
def test_what_would_give_the_answer_away_is_not_shown(choose: Callable) -> None:
    reworded = replace(POOL[0], id="s100", question="Who owns Tower 0?")  # the same fact
    again = replace(POOL[0], id="s101", question=f" {POOL[0].question.upper()}", fact="Something else.")
    pool = [POOL[0], reworded, again, POOL[1], POOL[2]]
    contexts = choose(pool, 1, 2)
    assert {shown.id for shown in contexts[0][0]} == {"s1", "s2"}
    assert {shown.id for shown in contexts[1][0]} <= {"s1", "s2", "s101"}
    assert {shown.id for shown in contexts[2][0]} <= {"s1", "s2", "s100"}


@BOTH
@pytest.mark.parametrize(("size", "demos"), [(1, 1), (2, 2), (5, 5)])
def test_too_few_examples_are_an_error(choose: Callable, size: int, demos: int) -> None:
    with pytest.raises(
        UserError, match=rf"--model.num_contexts .* {size - 1} of the {size} .*--model.demos_per_context {demos}"
    ):
        choose(POOL[:size], 1, demos)


@BOTH
@pytest.mark.parametrize(("num_contexts", "demos", "flag"), [(0, 1, "num_contexts"), (1, 0, "demos_per_context")])
def test_numbers_below_one_are_an_error(choose: Callable, num_contexts: int, demos: int, flag: str) -> None:
    with pytest.raises(UserError, match=f"--model.{flag} must be at least 1, got 0"):
        choose(POOL, num_contexts, demos)


def test_no_examples_have_no_contexts() -> None:
    assert random_demonstrations([], 2, 1, seed=0) == []


def test_draws_differ_by_seed_and_by_example() -> None:
    one, other = (random_demonstrations(POOL, 2, 3, seed) for seed in (0, 1))
    assert one != other
    assert len({tuple(ids(contexts)) for contexts in one}) > len(POOL) // 2


def test_all_others_are_drawn_equally_often() -> None:
    shown = Counter(random_demonstrations(POOL[:5], 1, 1, seed)[0][0][0].id for seed in range(2000))
    assert set(shown) == {"s1", "s2", "s3", "s4"}
    assert all(430 < count < 570 for count in shown.values())  # 500 +- 3.6 standard deviations


def test_the_nearest_come_first_and_the_next_context_goes_on() -> None:
    angles = torch.tensor([0.0, 0.1, 0.3, 0.6, 1.0])
    points = torch.stack([angles.cos(), angles.sin()], dim=1)
    contexts = retrieved_demonstrations(POOL[:5], points, num_contexts=3, demos_per_context=2)
    assert ids(contexts[0]) == [("s1", "s2"), ("s3", "s4"), ("s1", "s2")]  # four others for six places: from the start again
    assert ids(contexts[2]) == [("s1", "s0"), ("s3", "s4"), ("s1", "s0")]


def test_of_equally_near_ones_the_first_by_id_is_shown() -> None:
    points = torch.tensor([[1.0, 0.0]] + [[0.6, 0.8]] * 4)
    assert ids(retrieved_demonstrations(POOL[:5], points, 2, 1)[0]) == [("s1",), ("s2",)]
    nudged = points + torch.tensor([[0.0, 0.0]] * 4 + [[2e-7, 0.0]])  # by less than sums are exact
    assert ids(retrieved_demonstrations(POOL[:5], nudged, 2, 1)[0]) == [("s1",), ("s2",)]


def test_more_examples_than_are_compared_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = retrieved(POOL, 2, 2)
    monkeypatch.setattr("mixsd_lightning.demonstrations.auxiliary._ROWS_AT_ONCE", 3)
    assert retrieved(POOL, 2, 2) == whole


def test_a_large_pool_costs_no_list_for_each_example(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    monkeypatch.setattr(random.Random, "randint", lambda rng, low, high: calls.append(high) or high // 2)
    random_demonstrations(POOL, 2, 1, seed=0)
    # Two draws each, and now and then one more for itself; a shuffle of the pool would take 20.
    assert len(calls) <= 3 * len(POOL)


SCRIPT = """
from solved import sentence
from mixsd_lightning.demonstrations.auxiliary import random_demonstrations
pool = [sentence(number) for number in range(20)]
print([[[shown.id for shown in context] for context in contexts] for contexts in random_demonstrations(pool, 2, 3, 0)])
"""


def test_draws_do_not_depend_on_the_hash_seed() -> None:
    seed = "2" if os.environ.get("PYTHONHASHSEED") == "1" else "1"  # anything but this process's
    path = os.pathsep.join(filter(None, [str(Path(__file__).parent), os.environ.get("PYTHONPATH")]))
    environment = os.environ | {"PYTHONHASHSEED": seed, "PYTHONPATH": path}
    other = subprocess.run([sys.executable, "-c", SCRIPT], env=environment, capture_output=True, check=True, text=True)
    here = [[[shown.id for shown in context] for context in contexts] for contexts in random_demonstrations(POOL, 2, 3, 0)]
    assert other.stdout.strip() == str(here)
