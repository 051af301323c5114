"""An attempt asks for no more than its next token needs; the first accepted attempt by number is the result."""

from collections.abc import Sequence
from itertools import permutations

import numpy as np
import pytest

from mixsd_lightning.decoding.attempts import Attempt, Job
from mixsd_lightning.decoding.mixing import EXPERT, NAIVE, MixingSettings, MixingTask, draws
from mixsd_lightning.decoding.sampling import Support

STOP = 99
TASK = MixingTask("example", 0, [1], [2])
SETTINGS = MixingSettings(0.5, max_new_tokens=20)


def only(token: int) -> Support:
    """A distribution of one token."""
    return Support(np.array([token]), np.ones(1))


def make_attempt(
    rate: float = 1.0, answers: Sequence[tuple[int, ...]] = (), max_new_tokens: int = 20, protect_answer: bool = True
) -> Attempt:
    task = MixingTask("example", 0, [1], [2], tuple(answers))
    settings = MixingSettings(rate, max_new_tokens=max_new_tokens, protect_answer=protect_answer)
    return Attempt(task, 1, settings, frozenset([STOP]))


def test_every_token_is_from_the_context_of_its_coin() -> None:
    attempt = Attempt(TASK, 3, SETTINGS, frozenset([STOP]))
    contexts_T, _ = draws(TASK, 3, SETTINGS)
    for position, context in enumerate(contexts_T):
        supports: list[Support | None] = [None, None]
        assert attempt.extend(supports) == [context]
        supports[context] = only(position)
        assert attempt.extend(supports) == []
    assert set(contexts_T) == {NAIVE, EXPERT}
    assert attempt.completion.token_ids == list(range(20))
    assert attempt.completion.from_expert == (contexts_T == EXPERT).tolist()
    assert attempt.completion.finish_reason == "max_new_tokens"


def test_every_token_is_drawn_with_its_own_number() -> None:
    attempt = Attempt(TASK, 3, SETTINGS, frozenset())
    support = Support(np.arange(100), np.arange(1, 101) / 100)
    while not attempt.completion.finish_reason:
        assert attempt.extend([support, support]) == []
    assert attempt.completion.token_ids == [int(uniform * 100) for uniform in draws(TASK, 3, SETTINGS)[1]]


@pytest.mark.parametrize(
    ("tokens", "max_new_tokens", "reason"),
    [
        ([STOP], 5, "stop"),
        ([1, STOP], 2, "stop"),  # at the last position, too
        ([1, 2], 2, "max_new_tokens"),
        ([7] * 16, 20, "repetition"),
        ([7] * 16, 16, "repetition"),
    ],
)
def test_why_an_attempt_ends(tokens: list[int], max_new_tokens: int, reason: str) -> None:
    attempt = make_attempt(max_new_tokens=max_new_tokens)
    for token in tokens:
        assert not attempt.completion.finish_reason
        attempt.extend([only(token), None])
    assert (attempt.completion.token_ids, attempt.completion.finish_reason) == (tokens, reason)


def test_in_an_answer_the_expert_is_asked_and_followed_if_it_goes_on() -> None:
    attempt = make_attempt(answers=[(5, 6, 7)])
    attempt.extend([only(5), None])
    assert attempt.extend([None, None]) == [EXPERT, NAIVE]
    assert attempt.extend([only(8), None]) == [EXPERT]
    assert attempt.extend([only(8), only(6)]) == []
    assert attempt.extend([None, only(7)]) == []  # the naive context is not needed then
    assert attempt.extend([None, only(7)]) == [NAIVE]  # the answer is complete
    assert attempt.completion.token_ids == [5, 6, 7]
    assert attempt.completion.from_expert == [False, True, True]


def test_in_an_answer_that_the_expert_leaves_the_coin_decides() -> None:
    attempt = make_attempt(answers=[(5, 6, 7)])
    attempt.extend([only(5), None])
    assert attempt.extend([None, only(9)]) == [NAIVE]
    assert attempt.extend([only(6), only(9)]) == []
    assert (attempt.completion.token_ids, attempt.completion.from_expert) == ([5, 6], [False, False])


@pytest.mark.parametrize(("rate", "protect_answer", "context"), [(1.0, False, NAIVE), (0.0, True, EXPERT)])
def test_where_nothing_is_to_be_protected_one_context_is_enough(rate: float, protect_answer: bool, context: int) -> None:
    attempt = make_attempt(rate, answers=[(5, 6, 7)], protect_answer=protect_answer)
    attempt.extend([only(5), only(5)])
    assert attempt.extend([None, None]) == [context]


@pytest.mark.parametrize("accepted", [set(), {1}, {2}, {3}, {2, 3}, {1, 2, 3}])
def test_the_first_accepted_attempt_by_number_is_the_result(accepted: set[int]) -> None:
    for order in permutations((1, 2, 3)):
        job = Job(TASK, 3, lambda number: Attempt(TASK, number, SETTINGS, frozenset()))
        attempts = {number: job.start() for number in (1, 2, 3)}
        for number in order:
            if attempts[number] in job.running:
                assert not job.is_done
                job.end(attempts[number], number in accepted)
        first = min(accepted, default=3)
        assert job.is_done
        assert job.result == (TASK, first, attempts[first].completion, first in accepted)
        assert job.result.completion is attempts[first].completion


def test_no_attempt_starts_after_the_last_or_after_an_accepted_one() -> None:
    job = Job(TASK, 3, lambda number: Attempt(TASK, number, SETTINGS, frozenset()))
    first, second = job.start(), job.start()
    assert job.can_start
    job.end(second, accepted=True)
    assert job.running == [first]
    assert not job.can_start
    assert not job.is_done  # the first may still be the result
    job.end(first, accepted=False)
    assert job.is_done
    last = Job(TASK, 1, lambda number: Attempt(TASK, number, SETTINGS, frozenset()))
    last.start()
    assert not last.can_start
