"""One attempt at a completion, and the attempts at one task: the rules of the process, whoever computes the distributions."""

from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

from mixsd_lightning.decoding.mixing import (
    EXPERT,
    NAIVE,
    MixedCompletion,
    MixingResult,
    MixingSettings,
    MixingTask,
    continuations,
    draws,
    is_looping,
)
from mixsd_lightning.decoding.sampling import Support


class Attempt:
    """One attempt in progress."""

    def __init__(self, task: MixingTask, number: int, settings: MixingSettings, stop_ids: frozenset[int]) -> None:
        self.number = number
        self.completion = MixedCompletion()
        self.contexts_T, self._uniforms_T = draws(task, number, settings)
        self._answers = task.answers if settings.protect_answer else ()
        self._stop_ids = stop_ids

    def extend(self, supports: Sequence[Support | None]) -> list[int]:
        """Append the next token, or return the contexts without which it is not known.

        Args:
            supports: What may come next, by context; ``None`` where that is not known.
        """
        completion, tokens = self.completion, self.completion.token_ids
        context, uniform = int(self.contexts_T[len(tokens)]), float(self._uniforms_T[len(tokens)])
        if context == NAIVE and (protected := continuations(self._answers, tokens)):
            expert = supports[EXPERT]
            if expert is None:
                return [context for context in (EXPERT, NAIVE) if supports[context] is None]
            if expert.pick(uniform) in protected:
                context = EXPERT
        support = supports[context]
        if support is None:
            return [context]
        tokens.append(support.pick(uniform))
        completion.from_expert.append(context == EXPERT)
        if tokens[-1] in self._stop_ids:
            completion.finish_reason = "stop"
        elif is_looping(tokens):
            completion.finish_reason = "repetition"
        elif len(tokens) == len(self.contexts_T):
            completion.finish_reason = "max_new_tokens"
        return []


# As many failures as this say as much about a task as all other tasks do.
_PRIOR_WEIGHT = 2

AttemptType = TypeVar("AttemptType", bound=Attempt)


class Job(Generic[AttemptType]):
    """A task with its attempts in progress; the first accepted one by number is its result."""

    def __init__(self, task: MixingTask, max_attempts: int, make_attempt: Callable[[int], AttemptType]) -> None:
        self.task = task
        self.running: list[AttemptType] = []
        self.result: MixingResult | None = None
        self._make_attempt = make_attempt
        self._num_started = 0
        self._num_rejected = 0
        self._last = max_attempts
        """No attempt after this one matters."""

    @property
    def can_start(self) -> bool:
        """Whether another attempt may matter."""
        return self._num_started < self._last

    @property
    def is_done(self) -> bool:
        """Whether the result is final."""
        return not self.running and not self.can_start

    def rejection(self, usual: float) -> float:
        """Chance that an attempt at this task fails: the usual one at first, and the higher the more have failed."""
        return (self._num_rejected + _PRIOR_WEIGHT * usual) / (self._num_rejected + _PRIOR_WEIGHT)

    def start(self) -> AttemptType:
        """Begin the next attempt."""
        self._num_started += 1
        self.running.append(self._make_attempt(self._num_started))
        return self.running[-1]

    def end(self, attempt: AttemptType, accepted: bool) -> None:
        """Note how an attempt ended."""
        self.running.remove(attempt)
        self._num_rejected += not accepted
        if accepted or attempt.number == self._last:
            self._last = attempt.number
            self.result = MixingResult(self.task, attempt.number, attempt.completion, accepted)
            self.running = [other for other in self.running if other.number < self._last]
