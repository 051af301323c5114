"""Token-by-token mixtures of two conditionals of one model (MixSD, arXiv 2605.16865, section 3).

At each position a coin picks the *naive* context with probability ``mixing_rate`` and the *expert* context otherwise; the
token comes from the picked conditional alone and is appended to the prefix that both contexts see next. Above temperature
0 this is exact ancestral sampling from ``mixing_rate * p_naive + (1 - mixing_rate) * p_expert``. Attempts whose answer is
wrong are made again with new coins, and the first right one by number is the target.

This file says what the process is; :mod:`mixsd_lightning.decoding.engine` runs it.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import numpy as np

from mixsd_lightning.decoding.sampling import uniform_numbers

NAIVE, EXPERT = 0, 1


@dataclass(frozen=True)
class MixingSettings:
    """What the text of a mixed completion depends on, beside the model and the prompts."""

    mixing_rate: float = 0.3
    temperature: float = 0.0
    top_k: int = 64
    max_new_tokens: int = 48
    seed: int = 42
    protect_answer: bool = False
    """Take the expert's token, whatever the coin says, where it is one of :func:`continuations`."""

    @property
    def is_deterministic(self) -> bool:
        """Whether every attempt at a completion must give the same one."""
        return (self.temperature == 0 or self.top_k == 1) and self.mixing_rate in (0.0, 1.0)


@dataclass(frozen=True)
class MixingTask:
    """One completion that is wanted. Its id and generation alone decide its random numbers."""

    example_id: str
    generation: int
    naive_prompt: Sequence[int]
    expert_prompt: Sequence[int]
    answers: tuple[tuple[int, ...], ...] = ()
    """Encodings of the gold answer, for ``protect_answer``."""


@dataclass
class MixedCompletion:
    """Generated token ids (with the stop token, if there is one) and where they came from."""

    token_ids: list[int] = field(default_factory=list)
    from_expert: list[bool] = field(default_factory=list)
    """For each token, whether the expert context supplied it."""
    finish_reason: str = ""
    """``stop``, ``max_new_tokens`` or ``repetition``."""


class MixingResult(NamedTuple):
    """What became of a task: its first accepted attempt, or its last."""

    task: MixingTask
    attempt: int
    """Number of the attempt, from 1."""
    completion: MixedCompletion
    accepted: bool


AcceptRule = Callable[[MixingTask, MixedCompletion], bool]
"""Whether a completion may become the target of a task."""


@dataclass
class Statistics:
    """What an engine has done so far."""

    attempts: int = 0
    """Attempts that ended, needed or not."""
    accepted: int = 0
    completion_tokens: int = 0
    """Tokens of those attempts."""
    forwards: int = 0
    evaluated_tokens: int = 0
    """Tokens that were run, each under one context; prompts included."""
    guessed: int = 0
    guessed_right: int = 0

    def count(self, completion: MixedCompletion, accepted: bool) -> None:
        """Note an attempt that ended."""
        self.attempts += 1
        self.accepted += accepted
        self.completion_tokens += len(completion.token_ids)


class Engine(Protocol):
    """Anything that runs the process: all engines give the same results, in an order of their own."""

    statistics: Statistics

    def identity(self) -> dict[str, Any]:
        """What the results depend on, beside tasks and accept rule: settings by name, and the model."""
        ...

    def generate(self, tasks: Sequence[MixingTask], accept: AcceptRule, max_attempts: int) -> Iterator[MixingResult]:
        """Attempt every task until a completion is accepted or ``max_attempts`` are made."""
        ...

    def log_probs(self, prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[int]]) -> list[list[float]]:
        """Log-probability of each token of each completion after its prompt, in nats, at temperature 1."""
        ...


def draws(task: MixingTask, attempt: int, settings: MixingSettings) -> tuple[np.ndarray, np.ndarray]:
    """Contexts that the coins of an attempt pick, and a uniform number in [0, 1) for each token's draw.

    Counter-based: both are functions of (seed, example id, generation, attempt, position) and of nothing else, so a target
    does not depend on batch size, order, rank, or on a resumed run. The coins are known before the first token is.
    """
    key = f"{settings.seed}|{task.example_id}|{task.generation}|{attempt}"
    uniforms_T2 = uniform_numbers(key, settings.max_new_tokens, 2)
    return np.where(uniforms_T2[:, 0] < settings.mixing_rate, NAIVE, EXPERT), uniforms_T2[:, 1]


def continuations(answers: Sequence[Sequence[int]], token_ids: Sequence[int]) -> set[int]:
    """Tokens that go on with an answer that the text is in the middle of.

    The text is in the middle of an answer if it ends with a prefix of it, of one token at least.

    >>> continuations([[7, 8, 9]], [1, 7, 8]), continuations([[7, 8, 9]], [7, 8, 1]), continuations([[7, 8, 9]], [])
    ({9}, set(), set())
    """
    return {
        answer[length]
        for answer in answers
        for length in range(1, min(len(answer), len(token_ids) + 1))
        if tuple(token_ids[-length:]) == tuple(answer[:length])
    }


def is_looping(token_ids: Sequence[int], longest_period: int = 16) -> bool:
    """Whether the end of a sequence repeats itself: at least four times over and over at least sixteen tokens.

    >>> is_looping([5, 1, 2, 3] + [1, 2, 3] * 5)
    True
    >>> is_looping([7] * 15)
    False
    """
    for period in range(1, longest_period + 1):
        span = max(4 * period, 16)
        if len(token_ids) < span:
            continue
        tail = token_ids[-span:]
        if all(tail[index] == tail[index - period] for index in range(period, span)):
            return True
    return False
