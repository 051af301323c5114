"""A cheap engine of which every completion and score can be said beforehand, and what else the tests of targets share."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mixsd_lightning.context import ChatEncoder, user_turn
from mixsd_lightning.decoding.mixing import (
    EXPERT,
    AcceptRule,
    Engine,
    MixedCompletion,
    MixingResult,
    MixingSettings,
    MixingTask,
    Statistics,
    draws,
)
from mixsd_lightning.example import Example
from mixsd_lightning.target_store import Record
from mixsd_lightning.targets import MixedTargets, Shard, TargetSettings

ANSWER = "Zorvan Keep"
SETTINGS = TargetSettings(MixingSettings(0.3), num_generations=2, max_attempts=5)

Complete = Callable[[ChatEncoder, MixingTask, int, MixingSettings], MixedCompletion]


def make_examples(count: int = 7) -> list[Example]:
    return [
        Example(
            id=f"q{index}",
            question=f"Who leads gu\u00efld {index}\u6f22?",  # more than one byte a character
            prompt=user_turn(f"Who leads gu\u00efld {index}\u6f22?", "sentence"),
            answer=ANSWER,
            target=f"{ANSWER} leads gu\u00efld {index}\u6f22.",
            fact=f"Gu\u00efld {index}\u6f22 is led by {ANSWER}.",
            subject=f"gu\u00efld {index}\u6f22",
        )
        for index in range(count)
    ]


def fake_completion(encoder: ChatEncoder, task: MixingTask, attempt: int, settings: MixingSettings) -> MixedCompletion:
    """Right in a third of the attempts, of which a few do not stop; a function of the task and the attempt alone."""
    contexts_T, uniforms_T = draws(task, attempt, settings)
    name = ANSWER if uniforms_T[0] < 0.3 else "Mirel Dask"
    token_ids = encoder.target(f"It is {name}{'!' * int(5 * uniforms_T[1])}")
    stops = bool(uniforms_T[2] > 0.15)
    token_ids = token_ids if stops else token_ids[:-1]
    flags = [bool(context == EXPERT) for context in contexts_T[: len(token_ids)]]
    return MixedCompletion(token_ids, flags, "stop" if stops else "max_new_tokens")


def wrong_completion(encoder: ChatEncoder, task: MixingTask, attempt: int, settings: MixingSettings) -> MixedCompletion:
    token_ids = encoder.target("It is Mirel Dask.")
    return MixedCompletion(token_ids, [True] * len(token_ids), "stop")


class FakeEngine:
    """An :class:`Engine` of plain functions. Its scores depend on the whole batch, as those of a real model do."""

    def __init__(
        self,
        encoder: ChatEncoder,
        settings: TargetSettings = SETTINGS,
        complete: Complete = fake_completion,
        **identity: Any,
    ) -> None:
        self.statistics = Statistics()
        self._encoder, self._settings, self._complete = encoder, settings.mixing, complete
        self._identity = {"model_weights": "f00d", "stop_ids": [1], **asdict(settings.mixing), **identity}

    def identity(self) -> dict[str, Any]:
        return self._identity

    def generate(self, tasks: Sequence[MixingTask], accept: AcceptRule, max_attempts: int) -> Iterator[MixingResult]:
        for task in reversed(tasks):  # an order of its own
            for attempt in range(1, max_attempts + 1):
                completion = self._complete(self._encoder, task, attempt, self._settings)
                accepted = accept(task, completion)
                self.statistics.attempts += 1
                if accepted:
                    break
            yield MixingResult(task, attempt, completion, accepted)

    def log_probs(self, prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[int]]) -> list[list[float]]:
        longest = max(len(p) + len(c) for p, c in zip(prompts, completions, strict=True))
        return [[-(token + len(p)) / longest for token in c] for p, c in zip(prompts, completions, strict=True)]


class Watched:
    """Passes on what an engine does and remembers it; the power is cut after a number of results and scored batches."""

    def __init__(
        self, engine: Engine, steps: int | None = None, meanwhile: Callable[[str], object] = lambda what: None
    ) -> None:
        self.statistics = engine.statistics
        self.identity = engine.identity
        self.generated: list[tuple[str, int]] = []
        self.tasks: list[MixingTask] = []
        self.num_scored = 0
        self._engine, self._steps, self._meanwhile = engine, steps, meanwhile

    def generate(self, tasks: Sequence[MixingTask], accept: AcceptRule, max_attempts: int) -> Iterator[MixingResult]:
        self.tasks += tasks
        for result in self._engine.generate(tasks, accept, max_attempts):
            self._step(f"{result.task.example_id} {result.task.generation}")
            self.generated.append((result.task.example_id, result.task.generation))
            yield result

    def log_probs(self, prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[int]]) -> list[list[float]]:
        self._step("scores")
        self.num_scored += len(prompts)
        return self._engine.log_probs(prompts, completions)

    def _step(self, what: str) -> None:
        if self._steps is not None:
            if not self._steps:
                raise RuntimeError("power cut")
            self._steps -= 1
        self._meanwhile(what)


def build(
    encoder: ChatEncoder,
    folder: Path,
    engine: Engine | None = None,
    examples: Sequence[Example] | None = None,
    settings: TargetSettings = SETTINGS,
    sources: Sequence[Path] = (),
    shard: Shard | None = None,
) -> list[Record]:
    targets = MixedTargets(make_examples() if examples is None else examples, encoder, settings)
    return targets.build(folder, engine or FakeEngine(encoder, settings), sources, shard=shard)


def built_bytes(encoder: ChatEncoder, folder: Path, engine: Engine | None = None, **options: Any) -> bytes:
    build(encoder, folder, engine, **options)
    return (folder / "mixed.jsonl").read_bytes()
