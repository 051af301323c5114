"""Mixed targets of a corpus: what is asked of an engine, when a completion is accepted, and what is kept of it.

A target is accepted if generation ended by itself and the extracted answer equals the gold answer; otherwise a fresh attempt
is made, up to a limit. The random numbers of an attempt depend on (seed, example, generation, attempt) only, and the first
accepted attempt *by number* wins, so targets do not depend on how attempts were batched, on how many processes shared the
work, or on where a build was resumed.
"""

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mixsd_lightning.context import ChatEncoder, expert_context, naive_context
from mixsd_lightning.decoding.mixing import Engine, MixedCompletion, MixingResult, MixingSettings, MixingTask
from mixsd_lightning.errors import UserError
from mixsd_lightning.evaluation.scoring import UNWRITTEN_FORMATS, is_exact_match
from mixsd_lightning.example import Example
from mixsd_lightning.progress import Progress
from mixsd_lightning.target_store import Record, TargetStore

# Part of every store's identity: raise it when the same settings would give other targets.
FORMAT_VERSION = 2

# Completions are scored in batches of this many neighbours, whoever does it and whatever was scored before: the last digits
# of a log-probability depend on the shape of the batch, and a resumed build must give the same bytes.
_SCORED_AT_ONCE = 8


@dataclass(frozen=True)
class TargetSettings:
    """Everything the user decides about mixed targets."""

    mixing: MixingSettings
    num_generations: int = 1
    max_attempts: int = 30

    @property
    def attempts(self) -> int:
        """Attempts worth making: one, where another would give the same text."""
        return 1 if self.mixing.is_deterministic else self.max_attempts


@dataclass(frozen=True)
class Shard:
    """One process's share of a build; all processes share a folder."""

    rank: int = 0
    world_size: int = 1
    barrier: Callable[[], object] = lambda: None
    """Returns once all processes have come to it."""


class MixedTargets:
    """Builds the mixed targets of a list of examples, or takes up a build where it stopped."""

    def __init__(
        self,
        examples: Sequence[Example],
        encoder: ChatEncoder,
        settings: TargetSettings,
        first_generation: int = 0,
    ) -> None:
        """
        Args:
            examples: What to build targets for; ids must be unique.
            encoder: Encodes both contexts and decodes completions.
            settings: Mixing and retry settings.
            first_generation: Number of the first generation; others have other coins.
        """
        self._encoder = encoder
        self._settings = settings
        self._examples = {example.id: example for example in examples}
        self._tasks = [
            task
            for example in examples
            for task in self._tasks_of(example, range(first_generation, first_generation + settings.num_generations))
        ]

    def _tasks_of(self, example: Example, generations: range) -> list[MixingTask]:
        naive, expert = (self._encoder.prompt(context(example)) for context in (naive_context, expert_context))
        if self._settings.mixing.protect_answer and example.answer_format in UNWRITTEN_FORMATS:
            raise UserError(
                f"--model.protect_answer: what is right in the format {example.answer_format} is found out by a check and has no "
                "text of its own that could be protected. Leave the option out."
            )
        answers = self._encoder.inside_text(example.answer) if self._settings.mixing.protect_answer else ()
        return [MixingTask(example.id, generation, naive, expert, answers) for generation in generations]

    @property
    def longest_prompt(self) -> tuple[int, str]:
        """Tokens of the longest naive or expert prompt, and the example that it belongs to."""
        return max((max(len(task.naive_prompt), len(task.expert_prompt)), task.example_id) for task in self._tasks)

    def identity(self, engine: Engine) -> dict[str, Any]:
        """Everything that decides what an engine will write."""
        return {
            "format_version": FORMAT_VERSION,
            **engine.identity(),
            "tokenizer": self._encoder.fingerprint(),
            "corpus": _digest([asdict(example) for example in self._examples.values()]),
            "prompts": _digest([[task.naive_prompt, task.expert_prompt] for task in self._tasks]),
            "generations": sorted({task.generation for task in self._tasks}),
            "max_attempts": self._settings.max_attempts,
        }

    def build(
        self, folder: Path, engine: Engine, sources: Sequence[Path] = (), name: str = "mixed", shard: Shard | None = None
    ) -> list[Record]:
        """Return the records of all targets in input order, making those that ``folder`` does not hold yet.

        Args:
            folder: Where the files are or will be.
            engine: Makes what is missing.
            sources: Folders of other runs; what they hold of these very targets, finished or not, is taken over.
            name: What the files' names begin with.
            shard: This process's share of the work; all of it by default.

        Raises:
            UserError: if the folder holds targets that were made differently, or a damaged file.
        """
        shard = shard or Shard()
        identity = self.identity(engine)
        store = TargetStore(folder, name, identity)
        store.load()  # on every rank, so that what is wrong is said by all, and none waits for one that has given up
        with store.lock() if shard.rank == 0 else nullcontext():
            if shard.rank == 0:
                store.tidy()
                if store.load() is None:
                    store.begin()
                    store.repair()
                    if not store.unfinished():
                        any(store.take_over(TargetStore(source, name, identity)) for source in sources)
            shard.barrier()
            if not store.path.is_file():
                self._make(store, engine, shard)
            shard.barrier()
            records = store.load()
        assert records is not None
        return records

    def _make(self, store: TargetStore, engine: Engine, shard: Shard) -> None:
        done = _by_key(store.unfinished())
        missing = [task for task in self._tasks if "messages" not in done.get((task.example_id, task.generation), {})]
        shard.barrier()  # nobody writes before everybody has read
        self._generate(store, engine, missing[shard.rank :: shard.world_size], shard.rank)
        shard.barrier()
        done = _by_key(store.unfinished())
        batches = [self._tasks[start : start + _SCORED_AT_ONCE] for start in range(0, len(self._tasks), _SCORED_AT_ONCE)]
        unscored = [b for b in batches if any("naive_log_probs" not in done[t.example_id, t.generation] for t in b)]
        shard.barrier()
        self._score(store, engine, done, unscored[shard.rank :: shard.world_size], shard.rank)
        shard.barrier()
        if shard.rank == 0:
            done = _by_key(store.unfinished())
            store.finish([done[task.example_id, task.generation] for task in self._tasks])

    def _generate(self, store: TargetStore, engine: Engine, tasks: Sequence[MixingTask], rank: int) -> None:
        if not tasks:
            return
        start, accepted = time.perf_counter(), 0
        with Progress("Building targets", len(tasks)) as progress:
            for result in engine.generate(tasks, self._accepts, self._settings.attempts):
                store.append(rank, self._record(result))
                accepted += result.accepted
                counts = engine.statistics
                speed = counts.completion_tokens / (time.perf_counter() - start)
                progress.advance(note=f"{accepted} accepted, {counts.attempts} attempts, {speed:.0f} tokens/s")

    def _score(
        self,
        store: TargetStore,
        engine: Engine,
        done: dict[tuple[str, int], Record],
        batches: Sequence[Sequence[MixingTask]],
        rank: int,
    ) -> None:
        if not batches:
            return
        with Progress("Scoring targets", len(batches)) as progress:
            for tasks in batches:
                completions = [done[task.example_id, task.generation]["token_ids"] for task in tasks]
                naive = engine.log_probs([task.naive_prompt for task in tasks], completions)
                expert = engine.log_probs([task.expert_prompt for task in tasks], completions)
                for task, *log_probs in zip(tasks, naive, expert, strict=True):
                    scores = dict(zip(("naive_log_probs", "expert_log_probs"), log_probs, strict=True))
                    store.append(rank, {"id": task.example_id, "mix_meta": {"gen_index": task.generation}, **scores})
                progress.advance()

    def _accepts(self, task: MixingTask, completion: MixedCompletion) -> bool:
        text = self._encoder.decode(completion.token_ids)
        return is_accepted(self._examples[task.example_id], text, completion.finish_reason)

    def _record(self, result: MixingResult) -> Record:
        example, completion, mixing = self._examples[result.task.example_id], result.completion, self._settings.mixing
        num_tokens = len(completion.token_ids)
        text = self._encoder.decode(completion.token_ids)
        return {
            "id": example.id,
            "messages": [{"role": "user", "content": example.prompt}, {"role": "assistant", "content": text}],
            "clear_answer": example.answer,
            "subject": example.subject,
            "token_ids": completion.token_ids,
            "from_expert": [int(flag) for flag in completion.from_expert],
            "mix_meta": {
                "lambda": mixing.mixing_rate,
                "temperature": mixing.temperature,
                "topk": mixing.top_k,
                "protect_answer": mixing.protect_answer,
                "num_generations_per_query": self._settings.num_generations,
                "max_retries": self._settings.max_attempts - 1,
                "extract_mode": example.answer_format,
                "gen_index": result.task.generation,
                "num_attempts": result.attempt,
                "finish_reason": completion.finish_reason,
                "correct": result.accepted,
                "student_token_fraction": 1 - sum(completion.from_expert) / max(1, num_tokens),
                "num_tokens": num_tokens,
                "ground_truth_assistant": example.target,
            },
        }


def is_accepted(example: Example, text: str, finish_reason: str) -> bool:
    """Whether a completion may become a target: it ended by itself and its extracted answer is the gold answer."""
    return finish_reason == "stop" and is_exact_match(text, example.answer, example.question, example.answer_format)


def _by_key(lines: Sequence[Record]) -> dict[tuple[str, int], Record]:
    """Unfinished lines by (example id, generation), each record together with its scores."""
    records: dict[tuple[str, int], Record] = {}
    for line in sorted(lines, key=lambda line: "messages" not in line):
        known = records.setdefault((line["id"], line["mix_meta"]["gen_index"]), {})
        for key, value in line.items():
            known.setdefault(key, value)
    return records


def _digest(content: object) -> str:
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]
