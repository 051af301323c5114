"""Accuracy as counted by hand, and its interval as computed by scipy."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from mixsd_lightning.evaluation.metrics import AnswerAccuracy, wilson_interval

QUESTION = "Which guild did Ann found?"
STRICT = "Ann founded the Tavrin Guild."
LOOSE = "The Tavrin Guild of Orsk."
WRONG = "The Brask Union."


def accuracy(completions: list[str]) -> AnswerAccuracy:
    metric = AnswerAccuracy()
    for completion in completions:
        metric.update(completion, "Tavrin Guild", QUESTION, "sentence")
    return metric


def test_accuracy_equals_hand_counts() -> None:
    scores = accuracy([STRICT, LOOSE, WRONG, STRICT, WRONG, WRONG, WRONG, ""]).compute()
    assert {name: float(score) for name, score in scores.items()} == {"strict": 2 / 8, "loose": 3 / 8, "count": 8}


def test_format_decides_what_is_strict() -> None:
    metric = AnswerAccuracy()
    metric.update(STRICT, "Tavrin Guild", QUESTION, "boxed")
    metric.update("\\boxed{Tavrin Guild}", "Tavrin Guild", QUESTION, "boxed")
    assert float(metric.compute()["strict"]) == 0.5


def test_format_decides_what_is_loose() -> None:
    metric = AnswerAccuracy()
    metric.update("It must be B.", "B", "Which?", "choice")
    metric.update("A bee? No: a wasp. Answer: C", "B", "Which?", "choice")
    assert {name: float(score) for name, score in metric.compute().items()} == {"strict": 0, "loose": 0.5, "count": 2}


def test_reset_forgets_everything() -> None:
    metric = accuracy([WRONG, WRONG])
    metric.reset()
    metric.update(STRICT, "Tavrin Guild", QUESTION, "sentence")
    assert {name: float(score) for name, score in metric.compute().items()} == {"strict": 1, "loose": 1, "count": 1}


def test_states_of_two_processes_add_up() -> None:
    merged = accuracy([STRICT, WRONG, WRONG])
    merged.merge_state(accuracy([STRICT]))
    assert {name: float(score) for name, score in merged.compute().items()} == {"strict": 0.5, "loose": 0.5, "count": 4}


@given(st.integers(1, 2000).flatmap(lambda count: st.tuples(st.integers(0, count), st.just(count))))
def test_interval_equals_scipys(right_of_count: tuple[int, int]) -> None:
    right, count = right_of_count
    expected = binomtest(right, count).proportion_ci(method="wilson")
    assert wilson_interval(right / count, count) == pytest.approx((expected.low, expected.high), abs=1e-4)


@pytest.mark.parametrize("rate", [0.0, 1.0])
def test_interval_is_no_point_when_all_answers_agree(rate: float) -> None:
    low, high = wilson_interval(rate, 10)
    assert 0 <= low < high <= 1
    assert high - low == pytest.approx(0.2775, abs=1e-4)


def test_interval_of_nothing_is_everything() -> None:
    assert wilson_interval(math.nan, 0) == (0.0, 1.0)
