import pytest
from scipy import stats

from mixsd_lightning.report.numbers import Estimate, Measurement, estimate, student_t_quantile


@pytest.mark.parametrize("degrees", [*range(1, 12), 29, 30, 99, 1000])
@pytest.mark.parametrize("probability", [0.6, 0.95, 0.975, 0.9995])
def test_quantiles_are_those_of_scipy(probability: float, degrees: int) -> None:
    assert student_t_quantile(probability, degrees) == pytest.approx(stats.t.ppf(probability, degrees), rel=1e-9)


def test_several_seeds_have_the_interval_of_scipy() -> None:
    values = [0.81, 0.86, 0.9, 0.83]
    found = estimate([Measurement(value, count=100, low=0.0, high=1.0) for value in values])
    low, high = stats.t.interval(0.95, 3, loc=sum(values) / 4, scale=stats.sem(values))
    assert (found.value, found.low, found.high) == pytest.approx((0.85, low, high))
    assert found.how == "95 % interval: Student t over 4 seeds"


def test_a_share_does_not_leave_its_range() -> None:
    found = estimate([Measurement(0.02), Measurement(0.98)], lowest=0.0, highest=1.0)
    assert (found.low, found.high) == (0.0, 1.0)


def test_a_rate_of_one_seed_has_wilsons_interval() -> None:
    found = estimate([Measurement(0.9, count=50)])
    expected = stats.binomtest(45, 50).proportion_ci(0.95, method="wilson")
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=1e-5)
    assert found.how == "95 % interval: Wilson, from 50 answers"


def test_seeds_that_agree_say_nothing_about_their_spread() -> None:
    found = estimate([Measurement(1.0, count=100)] * 3)
    assert found.num_seeds == 3
    assert found.low == pytest.approx(0.963, abs=1e-3)
    assert found.how == "95 % interval: Wilson, from 100 answers; 3 seeds gave the same"


def test_a_kept_share_of_one_seed_has_the_logged_interval() -> None:
    assert estimate([Measurement(0.8, low=0.7, high=0.85)]) == Estimate(
        0.8, 0.7, 0.85, 1, "95 % interval: bootstrap over examples"
    )
    assert estimate([Measurement(1.0, low=1.0, high=1.0)]).low is None  # the base model, by definition
    assert estimate([Measurement(3.0)]) == Estimate(3.0, None, None, 1, "one seed, no interval")


def test_intervals_overlap_or_do_not_or_nobody_knows() -> None:
    low, middle, high = (Estimate(x, x - 1, x + 1, 1, "") for x in (0.0, 1.5, 3.0))
    assert low.overlaps(middle) is True
    assert low.overlaps(high) is False
    assert low.overlaps(Estimate(0.0, None, None, 1, "")) is None
