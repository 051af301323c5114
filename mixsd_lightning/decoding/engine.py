"""The mixing process at full speed: many examples in flight, hardly anything computed twice.

* The coins are drawn first, so it is known which context is needed where. The other is caught up later, in one go.
* An example's attempts form a :class:`PrefixTree`: each pays only for what none before it computed.
* All tokens of a step run in one packed forward (:class:`PrefixCache`); finished examples make room for the next at once.
* A step has a fixed price and a price per token. As long as the first dominates, further attempts at the examples in flight
  and guesses of the next tokens (:class:`NGramIndex`) go along, if the chance that they are needed is worth it.

None of this changes a result: the first accepted attempt *by number* counts, and guesses are checked.
"""

import heapq
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from itertools import groupby
from typing import Any

import torch
from transformers import PreTrainedModel

from mixsd_lightning.decoding.attempts import Attempt, Job
from mixsd_lightning.decoding.attention_plan import Span
from mixsd_lightning.decoding.drafts import NGramIndex
from mixsd_lightning.decoding.log_probs import completion_log_probs
from mixsd_lightning.decoding.mixing import AcceptRule, MixingResult, MixingSettings, MixingTask, Statistics
from mixsd_lightning.decoding.prefix_cache import PrefixCache
from mixsd_lightning.decoding.prefix_tree import Node, PrefixTree, common_prefix_length
from mixsd_lightning.decoding.sampling import supports
from mixsd_lightning.decoding.step_cost import StepCost
from mixsd_lightning.models import inference_dtype, weights_fingerprint
from mixsd_lightning.vocabulary import forbid_suppressed

# Columns of a cache row for what no attempt must have at once: other attempts in progress, guesses, what earlier ones left.
_SPARE_COLUMNS = 128

# Longer completions than this are rare, even where they are allowed: for them the cache grows.
_USUAL_LENGTH = 128


class MixingEngine:
    """Runs the process on a transformers model (:class:`~mixsd_lightning.decoding.mixing.Engine`)."""

    def __init__(
        self,
        model: PreTrainedModel,
        settings: MixingSettings,
        stop_ids: frozenset[int],
        num_slots: int = 32,
        tokens_per_step: float | None = None,
    ) -> None:
        """
        Args:
            model: The base model; it is in eval mode while it runs.
            settings: How to mix.
            stop_ids: Tokens that end a completion.
            num_slots: Completions in flight at once.
            tokens_per_step: Number of tokens that cost as much as the fixed part of a step; what steps cost is measured if
                it is not given. It decides how much is computed on the chance that it is needed (0: nothing).
        """
        self._model = model
        self._settings = settings
        self._stop_ids = stop_ids
        self._num_slots = num_slots
        self._step_cost = None if tokens_per_step is None else StepCost.linear(tokens_per_step)
        # An attempt has keys and values under both contexts.
        self._attempt_columns = 2 * min(settings.max_new_tokens, _USUAL_LENGTH)
        self._passing: list[tuple[Node, int]] = []
        """Nodes and contexts whose supports are too large to keep."""
        self.statistics = Statistics()

    def identity(self) -> dict[str, Any]:
        """The settings, the stop tokens, and the model with the precision that it runs in."""
        return {
            "model_weights": weights_fingerprint(self._model),
            "precision": str(inference_dtype(self._model)).removeprefix("torch."),
            "stop_ids": sorted(self._stop_ids),
            **asdict(self._settings),
        }

    def log_probs(self, prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[int]]) -> list[list[float]]:
        """Log-probability of each token of each completion after its prompt, in nats, at temperature 1."""
        return completion_log_probs(self._model, prompts, completions)

    def generate(self, tasks: Sequence[MixingTask], accept: AcceptRule, max_attempts: int) -> Iterator[MixingResult]:
        """Attempt every task until a completion is accepted or ``max_attempts`` are made; results come as they are ready.

        Neighbouring tasks with the same prompts (generations of one example) share their computations.
        """
        if not tasks:
            return
        waiting = deque(list(group) for _, group in groupby(tasks, key=lambda task: (task.naive_prompt, task.expert_prompt)))
        num_rows = min(self._num_slots, len(waiting))
        # The last row holds what all prompts begin with.
        cache = PrefixCache(self._model, num_rows + 1)
        longest_prompts = max(len(task.naive_prompt) + len(task.expert_prompt) for task in tasks)
        cache.reserve(longest_prompts + self._attempt_columns + _SPARE_COLUMNS)
        shared = self._run_shared_prefix(cache, tasks)
        free_rows = set(range(num_rows))
        in_flight: list[_Example] = []
        while waiting or in_flight:
            while waiting and free_rows and sum(len(example.jobs) for example in in_flight) < self._num_slots:
                row = min(free_rows)
                free_rows.remove(row)
                cache.copy(num_rows, row, range(shared))
                in_flight.append(self._admit(waiting.popleft(), row, shared, max_attempts))
            if not waiting and 2 * len(in_flight) <= cache.num_rows:
                # What is left gets the room of what is done, and its rows stand together.
                cache.keep([example.tree.row for example in in_flight])
                cache.reserve(2 * cache.num_columns)
                for row, example in enumerate(in_flight):
                    example.tree.row = row
            for example in in_flight:
                yield from self._settle(example, accept)
            done = {example.tree.row for example in in_flight if not example.jobs}
            free_rows |= done
            in_flight = [example for example in in_flight if example.jobs]
            if in_flight and not (waiting and done):  # rows that came free are filled first
                self._step(cache, in_flight, accept)

    def _admit(self, tasks: Sequence[MixingTask], row: int, num_cached: int, max_attempts: int) -> "_Example":
        """Give tasks with the same prompts a row of the cache, which has the first columns already."""
        tree = PrefixTree(row, tasks[0].naive_prompt, tasks[0].expert_prompt, num_cached)

        def make_job(task: MixingTask) -> Job[_TreeAttempt]:
            return Job(
                task,
                max_attempts,
                lambda number: _TreeAttempt(task, number, self._settings, self._stop_ids, tree.root),
            )

        return _Example(tree, [make_job(task) for task in tasks], tasks[0].expert_prompt)

    def _run_shared_prefix(self, cache: PrefixCache, tasks: Sequence[MixingTask]) -> int:
        """Run what all prompts begin with, once, in the last row; returns its length."""
        row = cache.num_rows - 1
        if self._step_cost is None:
            self._step_cost = StepCost.measured(cache)
        prompts = [prompt for task in tasks for prompt in (task.naive_prompt, task.expert_prompt)]
        shared = common_prefix_length(prompts)
        if shared:
            self._run(cache, [Span(row, [], range(shared), prompts[0][:shared])])
        return shared

    def _run(self, cache: PrefixCache, spans: Sequence[Span]) -> torch.Tensor:
        self.statistics.forwards += 1
        self.statistics.evaluated_tokens += sum(len(span.columns) for span in spans)
        return forbid_suppressed(self._model, cache.forward(spans))

    def _settle(self, example: "_Example", accept: AcceptRule) -> Iterator[MixingResult]:
        """Bring every attempt to where a forward is needed, starting the next where one was rejected."""
        for job in list(example.jobs):
            ended = True
            while ended and not job.is_done:
                if not job.running:
                    job.start()
                ended = False
                for attempt in list(job.running):
                    if attempt in job.running and not self._follow(attempt):
                        self._end(example, job, attempt, accept)
                        ended = True
            if job.is_done:
                assert job.result is not None
                example.jobs.remove(job)
                yield job.result

    def _follow(self, attempt: "_TreeAttempt") -> list[int]:
        """Go on with an attempt through what is known; returns the contexts that it then waits for (none: it ended)."""
        completion = attempt.completion
        before = len(completion.token_ids)
        missing: list[int] = []
        while not completion.finish_reason and not missing:
            missing = attempt.extend(attempt.node.supports)
            if not missing:
                attempt.node = attempt.node.child(completion.token_ids[-1])
        for guess, token in zip(attempt.guesses, completion.token_ids[before:], strict=False):
            self.statistics.guessed += 1
            self.statistics.guessed_right += guess == token
            if guess != token:
                break
        attempt.guesses.clear()
        return missing

    def _end(self, example: "_Example", job: "Job[_TreeAttempt]", attempt: "_TreeAttempt", accept: AcceptRule) -> None:
        accepted = accept(job.task, attempt.completion)
        job.end(attempt, accepted)
        self.statistics.count(attempt.completion, accepted)
        example.guesses.add(attempt.completion.token_ids)

    def _step(self, cache: PrefixCache, in_flight: "Sequence[_Example]", accept: AcceptRule) -> None:
        """One forward for all attempts in flight, filled up with what may be needed soon."""
        for node, context in self._passing:
            node.supports[context] = None
        assert self._step_cost is not None
        batch = _Batch(self._step_cost)
        for example in in_flight:
            running = [attempt for job in example.jobs for attempt in job.running]
            example.make_room(cache.num_columns, self._attempt_columns, running)
            for attempt in running:
                for context in self._follow(attempt):
                    batch.ask(example, attempt.node, context, can_wait=attempt is not running[0])
        self._attempt_ahead(batch, in_flight, accept)
        self._guess_ahead(batch, in_flight)
        logits_NV = self._run(cache, batch.spans)
        found = supports(logits_NV, self._settings.temperature, self._settings.top_k)
        for (node, context), support in zip(batch.asked, found, strict=True):
            node.supports[context] = support
        is_large = self._settings.temperature > 0 and self._settings.top_k == 0
        self._passing = batch.asked if is_large else []

    def _attempt_ahead(self, batch: "_Batch", in_flight: "Sequence[_Example]", accept: AcceptRule) -> None:
        """Start attempts before those ahead of them are known to fail, the likeliest to be needed first."""
        rejection = (self.statistics.attempts - self.statistics.accepted + 1) / (self.statistics.attempts + 2)
        # An attempt is needed if all that run before it fail.
        candidates = [
            (-(job.rejection(rejection) ** len(job.running)), index, example, job)
            for index, (example, job) in enumerate((example, job) for example in in_flight for job in example.jobs)
        ]
        heapq.heapify(candidates)
        while candidates:
            chance, index, example, job = heapq.heappop(candidates)
            if not batch.pays(-chance):
                return
            if not job.can_start or example.tree.num_columns > example.room:
                continue
            attempt = job.start()
            for context in self._follow(attempt):
                batch.ask(example, attempt.node, context)
            if attempt.completion.finish_reason:
                self._end(example, job, attempt, accept)
            heapq.heappush(candidates, (chance * job.rejection(rejection), index, example, job))

    def _guess_ahead(self, batch: "_Batch", in_flight: "Sequence[_Example]") -> None:
        """Go on with every attempt as similar text went on."""
        rightness = (self.statistics.guessed_right + 5) / (self.statistics.guessed + 10)
        for example in in_flight:
            for job in example.jobs:
                for attempt in job.running:
                    if not batch.pays(rightness):
                        return
                    node, position = attempt.node, len(attempt.completion.token_ids)
                    for token in example.guesses.guess(attempt.completion.token_ids, self._settings.max_new_tokens):
                        position += 1
                        chance = rightness ** (len(attempt.guesses) + 1)
                        if token in self._stop_ids or position == self._settings.max_new_tokens or not batch.pays(chance):
                            break
                        node = node.child(token)
                        if not batch.ask(example, node, int(attempt.contexts_T[position])):
                            break
                        attempt.guesses.append(token)


class _TreeAttempt(Attempt):
    """An attempt and where it stands in its example's tree."""

    def __init__(self, task: MixingTask, number: int, settings: MixingSettings, stop_ids: frozenset[int], root: Node) -> None:
        super().__init__(task, number, settings, stop_ids)
        self.node = root
        self.guesses: list[int] = []
        """Tokens that the last forward took for granted."""


class _Example:
    """Tasks in flight that share their prompts."""

    def __init__(self, tree: PrefixTree, jobs: "list[Job[_TreeAttempt]]", text: Sequence[int]) -> None:
        self.tree = tree
        self.jobs = jobs
        self.guesses = NGramIndex()
        self.guesses.add(text)
        self.room = 0
        """Columns of its row that may be in use after what can wait."""

    def make_room(self, num_columns: int, attempt_columns: int, running: "Sequence[_TreeAttempt]") -> None:
        """See to it that the first of its attempts can always go on.

        Args:
            num_columns: Columns of its row.
            attempt_columns: Columns that an attempt may need.
            running: Its attempts in progress.
        """
        self.room = num_columns - max(0, attempt_columns - self.tree.num_held(running[0].node))
        self.tree.evict(self.room, [attempt.node for attempt in running])
        self.tree.evict(self.room, [running[0].node])


class _Batch:
    """What the next forward will run."""

    def __init__(self, cost: StepCost) -> None:
        self.asked: list[tuple[Node, int]] = []
        self.spans: list[Span] = []
        self._known: set[tuple[Node, int]] = set()
        self._num_tokens = 0
        self._cost = cost

    def ask(self, example: _Example, node: Node, context: int, can_wait: bool = True) -> bool:
        """Have what follows ``node`` under ``context`` computed; returns whether it will be known after the forward."""
        if node.supports[context] is None and (node, context) not in self._known:
            tree = example.tree
            if can_wait and tree.num_columns + tree.num_missing(node, context) > example.room:
                return False
            self._known.add((node, context))
            self.asked.append((node, context))
            self.spans.append(tree.request(node, context))
            self._num_tokens += len(self.spans[-1].columns)
        return True

    def pays(self, chance: float) -> bool:
        """Whether a token that is needed with this probability should run now rather than, perhaps, later."""
        return chance > self._cost.least_chance(self._num_tokens)
