"""Running a token on a chance pays while the fixed price of a forward dominates."""

import pytest
from transformers import PreTrainedModel

from mixsd_lightning.decoding.prefix_cache import PrefixCache
from mixsd_lightning.decoding.step_cost import StepCost


@pytest.mark.parametrize("num_tokens", [0, 1, 10, 1000])
def test_a_linear_cost_asks_for_the_share_of_the_tokens(num_tokens: int) -> None:
    assert StepCost.linear(30.0).least_chance(num_tokens) == pytest.approx(num_tokens / (num_tokens + 30))


def test_without_a_fixed_price_nothing_pays_that_is_not_certain() -> None:
    assert StepCost.linear(0.0).least_chance(1) == 1.0


@pytest.mark.parametrize(
    ("num_tokens", "expected"),
    [
        (3, 0.0),  # as dear as eight
        (8, 8 * 1 / 80),
        (20, 20 * 1 / 92),
        (28, 28 * 2 / 100),
        (48, 48 * 2 / 140),
        (128, 128 * 2 / 300),  # beyond the last point
    ],
)
def test_the_least_chance_is_the_marginal_over_the_mean_price(num_tokens: int, expected: float) -> None:
    cost = StepCost([(8, 80.0), (28, 100.0), (48, 140.0)])
    assert cost.least_chance(num_tokens) == pytest.approx(expected)


def test_a_longer_forward_that_was_faster_counts_as_free() -> None:
    assert StepCost([(8, 80.0), (28, 79.0), (48, 140.0)]).least_chance(20) == 0.0


def test_measuring_gives_a_chance(tiny_model: PreTrainedModel) -> None:
    cost = StepCost.measured(PrefixCache(tiny_model, 2))
    assert all(0 <= cost.least_chance(num_tokens) <= 1 for num_tokens in (1, 8, 100, 10_000))
