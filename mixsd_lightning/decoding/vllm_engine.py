"""The mixing process on vLLM (extra ``vllm``), for many facts and large models on a GPU.

vLLM shows no request the logits of another, so two contexts cannot be decoded in lock step. Instead the expert writes a few
tokens ahead, the naive context scores the same tokens in one go, and what agrees with the coins is kept: with ``n`` tokens a
phase, two batched calls give up to ``n`` tokens of every attempt. vLLM's prefix caching holds the prompts.

The transformers engine is the reference. vLLM itself could not be installed where this was written: the tests run this file
on a stand-in that answers the same calls from a transformers model.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any, TypeAlias

import torch

from mixsd_lightning.decoding.attempts import Attempt, Job
from mixsd_lightning.decoding.mixing import AcceptRule, MixingResult, MixingSettings, MixingTask, Statistics
from mixsd_lightning.decoding.sampling import Support, supports
from mixsd_lightning.errors import UserError

LogProbs: TypeAlias = "dict[int, Any]"
"""vLLM's log-probabilities at one position: token id -> object with ``logprob``."""


class VLLMEngine:
    """Runs the process on a ``vllm.LLM`` (:class:`~mixsd_lightning.decoding.mixing.Engine`)."""

    def __init__(
        self,
        llm: Any,
        model_weights: str,
        settings: MixingSettings,
        stop_ids: frozenset[int],
        num_slots: int = 256,
        tokens_per_phase: int = 8,
    ) -> None:
        """
        Args:
            llm: A ``vllm.LLM`` of the base model, made with ``max_logprobs`` of ``top_k`` at least.
            model_weights: Fingerprint of those weights.
            settings: How to mix; above temperature 0 ``top_k`` must not be 0.
            stop_ids: Tokens that end a completion.
            num_slots: Completions in flight at once.
            tokens_per_phase: Tokens that the expert writes ahead.

        Raises:
            UserError: if the settings need all of the vocabulary's probabilities, which vLLM does not give.
        """
        if settings.temperature > 0 and settings.top_k == 0:
            raise UserError("--model.engine vllm needs --model.top_k of at least 1 above temperature 0.")
        self._llm = llm
        self._model_weights = model_weights
        self._settings = settings
        self._stop_ids = stop_ids
        self._num_slots = num_slots
        self._tokens_per_phase = tokens_per_phase
        self._num_kept = settings.top_k if settings.temperature > 0 else 1
        self.statistics = Statistics()

    def identity(self) -> dict[str, Any]:
        """The settings, the stop tokens, and the model with the precision that it runs in."""
        return {
            "model_weights": self._model_weights,
            "precision": f"vllm {self._llm.llm_engine.model_config.dtype}".replace("torch.", ""),
            "stop_ids": sorted(self._stop_ids),
            **asdict(self._settings),
        }

    def generate(self, tasks: Sequence[MixingTask], accept: AcceptRule, max_attempts: int) -> Iterator[MixingResult]:
        """Attempt every task until a completion is accepted or ``max_attempts`` are made."""
        waiting = deque(tasks)
        jobs: list[Job[Attempt]] = []
        while waiting or jobs:
            while waiting and len(jobs) < self._num_slots:
                jobs.append(self._make_job(waiting.popleft(), max_attempts))
            self._run_phase([(job.task, job.running[0]) for job in jobs])
            for job in jobs:
                (attempt,) = job.running
                if attempt.completion.finish_reason:
                    accepted = accept(job.task, attempt.completion)
                    job.end(attempt, accepted)
                    self.statistics.count(attempt.completion, accepted)
                    if job.is_done:
                        assert job.result is not None
                        yield job.result
                    else:
                        job.start()
            jobs = [job for job in jobs if not job.is_done]

    def log_probs(self, prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[int]]) -> list[list[float]]:
        """Log-probability of each token of each completion after its prompt, in nats, at temperature 1."""
        sequences = [[*prompt, *completion] for prompt, completion in zip(prompts, completions, strict=True)]
        outputs = self._call(sequences, max_tokens=1, prompt_logprobs=0)
        return [
            [float(output.prompt_logprobs[len(prompt) + index][token].logprob) for index, token in enumerate(completion)]
            for output, prompt, completion in zip(outputs, prompts, completions, strict=True)
        ]

    def _make_job(self, task: MixingTask, max_attempts: int) -> Job[Attempt]:
        job = Job(task, max_attempts, lambda number: Attempt(task, number, self._settings, self._stop_ids))
        job.start()
        return job

    def _run_phase(self, attempts: Sequence[tuple[MixingTask, Attempt]]) -> None:
        """Have the expert write ahead, the naive context score it, and keep what agrees with the coins."""
        expert_prompts = [[*task.expert_prompt, *attempt.completion.token_ids] for task, attempt in attempts]
        written = self._call(expert_prompts, max_tokens=self._tokens_per_phase, logprobs=self._num_kept)
        drafts = [
            list(output.outputs[0].token_ids)[: self._settings.max_new_tokens - len(attempt.completion.token_ids)]
            for output, (_, attempt) in zip(written, attempts, strict=True)
        ]
        naive_prompts = [
            [*task.naive_prompt, *attempt.completion.token_ids, *draft]
            for (task, attempt), draft in zip(attempts, drafts, strict=True)
        ]
        scored = self._call(naive_prompts, max_tokens=1, prompt_logprobs=self._num_kept)
        for (task, attempt), draft, expert, naive in zip(attempts, drafts, written, scored, strict=True):
            start = len(task.naive_prompt) + len(attempt.completion.token_ids)
            for index, guess in enumerate(draft):
                pair = [self._support(naive.prompt_logprobs[start + index]), self._support(expert.outputs[0].logprobs[index])]
                attempt.extend(pair)
                if attempt.completion.finish_reason or attempt.completion.token_ids[-1] != guess:
                    break

    def _support(self, log_probs: LogProbs) -> Support:
        """What may come next, from the log-probabilities of the most probable tokens (and of one that was given)."""
        ranked = sorted(log_probs, key=lambda token: -log_probs[token].logprob)[: self._num_kept]
        values = torch.tensor([[log_probs[token].logprob for token in ranked]], dtype=torch.float64)
        (support,) = supports(values, self._settings.temperature, 0)
        return Support([ranked[index] for index in support.token_ids], support.cumulative)

    def _call(self, prompts: Sequence[Sequence[int]], **options: Any) -> list[Any]:
        from vllm import SamplingParams

        # Greedy: above temperature 0 our own draws decide, and this is only a guess of what they will take. Stop tokens
        # must come out as tokens, and what follows one is never used.
        parameters = SamplingParams(temperature=0.0, ignore_eos=True, detokenize=False, **options)
        self.statistics.forwards += 1
        self.statistics.evaluated_tokens += sum(map(len, prompts))
        return list(self._llm.generate([{"prompt_token_ids": list(ids)} for ids in prompts], parameters, use_tqdm=False))


def load_llm(model_path: str, top_k: int, trust_remote_code: bool = False) -> Any:
    """A ``vllm.LLM`` of a model folder or Hub id, ready for :class:`VLLMEngine`.

    Raises:
        UserError: if vLLM is not installed.
    """
    try:
        from vllm import LLM
    except ImportError as error:
        raise UserError(
            "--model.engine vllm needs vLLM, which is not installed: pip install 'mixsd_lightning[vllm]', or leave "
            "--model.engine at transformers."
        ) from error
    return LLM(model=model_path, trust_remote_code=trust_remote_code, enable_prefix_caching=True, max_logprobs=max(top_k, 1))
