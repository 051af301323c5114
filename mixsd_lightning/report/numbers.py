"""Means over seeds and their 95 % intervals."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from mixsd_lightning.evaluation.metrics import wilson_interval


@dataclass(frozen=True)
class Measurement:
    """A number of one run, with what is known about its uncertainty."""

    value: float
    count: int = 0
    """Of a rate: over how many answers. 0: not a rate, or not known."""
    low: float | None = None
    high: float | None = None
    """Ends of the bootstrap interval that the run has logged."""


@dataclass(frozen=True)
class Estimate:
    """A number of a setting: the mean over its seeds."""

    value: float
    low: float | None
    high: float | None
    """Ends of the 95 % interval; None where there is none."""
    num_seeds: int
    how: str
    """Where the interval comes from, in words; says so where there is none."""

    @property
    def has_interval(self) -> bool:
        """Whether there is an interval."""
        return self.low is not None

    def overlaps(self, other: "Estimate") -> bool | None:
        """Whether two intervals have a point in common; None where one of them is missing."""
        if self.low is None or self.high is None or other.low is None or other.high is None:
            return None
        return self.low <= other.high and other.low <= self.high


def estimate(measurements: Sequence[Measurement], lowest: float = -math.inf, highest: float = math.inf) -> Estimate:
    """Mean over seeds with a 95 % interval.

    * Several seeds: mean ± t · s / √n with n - 1 degrees of freedom (Student 1908, "The probable error of a mean"), cut off at
      ``lowest`` and ``highest``. It covers what a new seed changes.
    * One seed, or seeds that agree to the last bit, about whose spread they say nothing: for rates the score interval of
      Wilson (1927) from the number of answers of one run; for kept shares the bootstrap interval that the run has logged
      (Efron 1979). It covers what other questions would change.

    Args:
        measurements: One of each seed, at least one.
        lowest: Least possible value.
        highest: Largest possible value.
    """
    values = [measurement.value for measurement in measurements]
    number, mean = len(values), statistics.fmean(values)
    if len(set(values)) > 1:
        half = student_t_quantile(0.975, number - 1) * statistics.stdev(values) / math.sqrt(number)
        low, high = max(lowest, mean - half), min(highest, mean + half)
        return Estimate(mean, low, high, number, f"95 % interval: Student t over {number} seeds")
    mean, first = values[0], measurements[0]  # not rounded
    same = f"; {number} seeds gave the same" if number > 1 else ""
    if first.count:
        low, high = wilson_interval(mean, first.count)
        return Estimate(mean, low, high, number, f"95 % interval: Wilson, from {first.count} answers{same}")
    if first.low is not None and first.high is not None and first.low < first.high:
        return Estimate(mean, first.low, first.high, number, f"95 % interval: bootstrap over examples{same}")
    return Estimate(mean, None, None, number, f"{number} seeds gave the same" if number > 1 else "one seed, no interval")


def student_t_quantile(probability: float, degrees: int) -> float:
    """Quantile of Student's t distribution.

    >>> round(student_t_quantile(0.975, 2), 3)
    4.303

    Args:
        probability: Above 0.5 and below 1.
        degrees: Degrees of freedom, at least 1.
    """
    assert 0.5 < probability < 1 <= degrees
    # The share within ±t rises with the angle of t: bisected until nothing moves any more.
    inside, low, high = 2 * probability - 1, 0.0, math.pi / 2
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if _share_within(middle, degrees) < inside else (low, middle)
    return math.tan(low) * math.sqrt(degrees)


def _share_within(angle: float, degrees: int) -> float:
    """Probability of -t to t, where t = √degrees · tan(angle): a finite sum for whole degrees of freedom.

    Abramowitz and Stegun (1964), Handbook of Mathematical Functions, 26.7.3 and 26.7.4.
    """
    sine, cosine = math.sin(angle), math.cos(angle)
    is_odd = degrees % 2
    term, total = (cosine if is_odd else 1.0), 0.0
    for index in range((degrees - is_odd) // 2):
        total += term
        numerator = 2 * index + (2 if is_odd else 1)
        term *= cosine * cosine * numerator / (numerator + 1)
    return 2 / math.pi * (angle + sine * total) if is_odd else sine * total
