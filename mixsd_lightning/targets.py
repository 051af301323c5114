"""Mixed targets: generate them, verify the answer, retry, and keep them in a file that survives a kill.

A target is accepted if generation ended by itself and the extracted answer equals the gold answer; otherwise a fresh attempt
is made, up to a limit. The random numbers of an attempt depend on (seed, example, generation, attempt) only, and the first
accepted attempt *by number* wins, so targets do not depend on how attempts were batched or on where a build was resumed.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from filelock import FileLock

from mixsd_lightning.context import ChatEncoder, expert_context, naive_context
from mixsd_lightning.decoding.mixing import MixedCompletion, MixingRequest, MixingSettings
from mixsd_lightning.evaluation.scoring import is_exact_match
from mixsd_lightning.example import Example
from mixsd_lightning.progress import Progress

MixingEngine = Callable[[Sequence[MixingRequest]], list[MixedCompletion]]
"""Generates one completion for each request, in order."""

# Part of every content hash: raise it when the same settings would give other targets.
FORMAT_VERSION = 1


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


@dataclass
class _Work:
    """One (example, generation) in progress."""

    example: Example
    generation: int
    naive_prompt: list[int]
    expert_prompt: list[int]
    next_attempt: int = 1


class MixedTargets:
    """Builds the mixed targets of a list of examples, or takes up a build where it stopped."""

    def __init__(
        self, examples: Sequence[Example], encoder: ChatEncoder, settings: TargetSettings, model_fingerprint: str
    ) -> None:
        """
        Args:
            examples: What to build targets for; ids must be unique.
            encoder: Encodes both contexts and decodes completions.
            settings: Mixing and retry settings.
            model_fingerprint: Tells base models apart (:func:`mixsd_lightning.models.weights_fingerprint`).
        """
        self._encoder = encoder
        self._settings = settings
        self._works = [
            _Work(example, generation, encoder.prompt(naive_context(example)), encoder.prompt(expert_context(example)))
            for example in examples
            for generation in range(settings.num_generations)
        ]
        content = [FORMAT_VERSION, asdict(settings), model_fingerprint]
        content += [[asdict(work.example), work.generation, work.naive_prompt, work.expert_prompt] for work in self._works]
        self.content_hash = hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]
        """Names the file: equal for builds that must give equal targets."""

    @property
    def file_name(self) -> str:
        """Name of the finished file."""
        return f"mixed-{self.content_hash}.jsonl"

    @property
    def longest_prompt(self) -> int:
        """Tokens of the longest naive or expert prompt."""
        return max(max(len(work.naive_prompt), len(work.expert_prompt)) for work in self._works)

    def build(self, folder: Path, engine: MixingEngine, batch_size: int, sources: Sequence[Path] = ()) -> list[dict[str, Any]]:
        """Return the records of all targets in input order, generating those that ``folder`` does not hold yet.

        Finished records are appended to ``<file name>.partial``; when all are there the file gets its name by an atomic
        rename. A second process that builds the same file waits for the first.

        Args:
            folder: Where the file is or will be.
            engine: Generates what is missing.
            batch_size: Attempts in flight at once.
            sources: Folders of other runs; what they hold of these very targets, finished or not, is taken over.
        """
        folder.mkdir(parents=True, exist_ok=True)
        final = folder / self.file_name
        with FileLock(folder / f".{self.file_name}.lock"):
            if not final.is_file():
                self._take_over(final, sources)
            if not final.is_file():
                self._build_file(final, engine, batch_size)
        return _parse(final.read_bytes())

    def _take_over(self, final: Path, sources: Sequence[Path]) -> None:
        if finished := [path for source in sources if (path := source / final.name).is_file()]:
            write_atomically(final, finished[0].read_bytes())
            return
        partial = _partial(final)
        candidates = [path for source in sources if (path := _partial(source / final.name)).is_file()]
        if candidates and not partial.is_file():
            write_atomically(partial, max(candidates, key=lambda path: path.stat().st_size).read_bytes())

    def _build_file(self, final: Path, engine: MixingEngine, batch_size: int) -> None:
        partial = _partial(final)
        records = _read_whole_lines(partial)
        missing = [work for work in self._works if (work.example.id, work.generation) not in records]
        if missing:
            accepted = sum(record["mix_meta"]["correct"] for record in records.values())
            with (
                partial.open("a", encoding="utf-8") as file,
                Progress("Building targets", len(self._works), completed=len(records)) as progress,
            ):
                for record in self._generate(missing, engine, batch_size):
                    records[record["id"], record["mix_meta"]["gen_index"]] = record
                    file.write(json.dumps(record, ensure_ascii=False) + "\n")
                    file.flush()
                    accepted += record["mix_meta"]["correct"]
                    progress.advance(f"{accepted} accepted")
        ordered = [records[work.example.id, work.generation] for work in self._works]
        write_atomically(final, "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in ordered).encode())
        partial.unlink(missing_ok=True)

    def _generate(self, works: list[_Work], engine: MixingEngine, batch_size: int) -> Iterator[dict[str, Any]]:
        waiting = [replace(work) for work in reversed(works)]  # counting attempts must not reach the next build
        active: list[_Work] = []
        while waiting or active:
            while waiting and len(active) < batch_size:
                active.append(waiting.pop())
            # Where few are left, each gets several attempts at once instead of leaving slots empty.
            attempts_each = batch_size // len(active)
            requests = [
                MixingRequest(work.example.id, work.generation, attempt, work.naive_prompt, work.expert_prompt)
                for work in active
                for attempt in self._next_attempts(work, attempts_each)
            ]
            completions = iter(zip(requests, engine(requests), strict=True))
            unfinished = []
            for work in active:
                attempts = [next(completions) for _ in self._next_attempts(work, attempts_each)]
                record = self._first_accepted(work, attempts)
                work.next_attempt += len(attempts)
                if record is None:
                    unfinished.append(work)
                else:
                    yield record
            active = unfinished

    def _next_attempts(self, work: _Work, count: int) -> range:
        return range(work.next_attempt, min(work.next_attempt + count, self._settings.attempts + 1))

    def _first_accepted(self, work: _Work, attempts: Sequence[tuple[MixingRequest, MixedCompletion]]) -> dict[str, Any] | None:
        for request, completion in attempts:
            text = self._encoder.decode(completion.token_ids)
            accepted = is_accepted(work.example, text, completion.finish_reason)
            if accepted or request.attempt == self._settings.attempts:
                return self._record(work.example, request, completion, text, accepted)
        return None

    def _record(
        self, example: Example, request: MixingRequest, completion: MixedCompletion, text: str, accepted: bool
    ) -> dict[str, Any]:
        mixing = self._settings.mixing
        num_tokens = len(completion.token_ids)
        return {
            "id": example.id,
            "messages": [{"role": "user", "content": example.prompt}, {"role": "assistant", "content": text}],
            "clear_answer": example.answer,
            "subject": example.subject,
            "token_ids": completion.token_ids,
            "mix_meta": {
                "lambda": mixing.mixing_rate,
                "temperature": mixing.temperature,
                "topk": mixing.top_k,
                "num_generations_per_query": self._settings.num_generations,
                "max_retries": self._settings.max_attempts - 1,
                "extract_mode": example.answer_format,
                "gen_index": request.generation,
                "num_attempts": request.attempt,
                "finish_reason": completion.finish_reason,
                "correct": accepted,
                "student_token_fraction": 1 - sum(completion.from_expert) / max(1, num_tokens),
                "num_tokens": num_tokens,
                "ground_truth_assistant": example.target,
            },
        }


def is_accepted(example: Example, text: str, finish_reason: str) -> bool:
    """Whether a completion may become a target: it ended by itself and its extracted answer is the gold answer."""
    return finish_reason == "stop" and is_exact_match(text, example.answer, example.question, example.answer_format)


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file so that it is, at any moment, either absent (or old) or complete."""
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with scratch.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        scratch.replace(path)
    finally:
        scratch.unlink(missing_ok=True)


def _read_whole_lines(partial: Path) -> dict[tuple[str, int], dict[str, Any]]:
    """Records of an unfinished file by (example id, generation), after cutting off a line that a kill left torn."""
    if not partial.is_file():
        return {}
    content = partial.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    if len(whole) < len(content):
        with partial.open("rb+") as file:
            file.truncate(len(whole))
    return {(record["id"], record["mix_meta"]["gen_index"]): record for record in _parse(whole)}


def _parse(content: bytes) -> list[dict[str, Any]]:
    # Split as bytes: text may hold other characters that count as line ends.
    return [json.loads(line) for line in content.split(b"\n") if line]


def _partial(final: Path) -> Path:
    return final.with_name(f"{final.name}.partial")
