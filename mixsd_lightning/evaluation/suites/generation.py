"""Suites that ask problems in a chat and score what the model answers."""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from transformers import PreTrainedModel
from typing_extensions import override

from mixsd_lightning.context import ChatEncoder, Message
from mixsd_lightning.decoding.generation import Sampling, roll_out
from mixsd_lightning.errors import UserError, require
from mixsd_lightning.evaluation.suites.base import Answer, Score, by_group
from mixsd_lightning.evaluation.suites.data_suite import DataSuite
from mixsd_lightning.models import stop_token_ids, window_of
from mixsd_lightning.progress import Progress


@dataclass(frozen=True)
class Problem:
    """What is asked, and what the answer is scored against."""

    question: str
    gold: Any
    """JSON values."""
    group: str = ""
    instruction: str = ""
    shots: tuple[str, ...] = ()
    """Solved problems that stand before the question."""

    def message(self, num_shots: int) -> Message:
        """The user turn, with the last ``num_shots`` of the solved problems."""
        parts = (self.instruction, *self.shots[len(self.shots) - num_shots :], self.question)
        return Message("user", "\n\n".join(part for part in parts if part))


class GenerationSuite(DataSuite[Problem]):
    """Problems asked one by one, each in a chat of one user turn; the score is the share of right answers, also by group.

    With several samples of each problem it is the mean over all of them (avg@k). A sample is a function of the model and the
    problem alone, so two models are compared under the same random numbers.
    """

    default_max_new_tokens: int

    def __init__(
        self,
        data_dir: str | None = None,
        limit: int = 0,
        max_new_tokens: int | None = None,
        num_samples: int = 1,
        temperature: float = 0.0,
        batch_size: int = 32,
        every_n_validations: int = 0,
    ) -> None:
        """
        Args:
            data_dir: Folder with the data set's files; by default it comes from the Hugging Face Hub.
            limit: Ask so many problems, at even distances in the data set; 0 asks all.
            max_new_tokens: Longest answer, in tokens; by default what suits the suite.
            num_samples: Answers to each problem, whose scores are averaged.
            temperature: Of sampling; 0 takes the most probable token.
            batch_size: Answers in progress at once.
            every_n_validations: Measure at every n-th validation and at the last; 0 is at the last alone.

        Raises:
            UserError: if a number is out of range, or several samples are asked for that could not differ.
        """
        super().__init__(limit, batch_size, every_n_validations)
        self.data_dir = data_dir
        self.max_new_tokens = self.default_max_new_tokens if max_new_tokens is None else max_new_tokens
        self.num_samples = num_samples
        self.temperature = temperature
        flag = f"retention.suites: {self.name}"
        require(f"{flag}.max_new_tokens", max_new_tokens, self.max_new_tokens >= 1, "at least 1")
        require(f"{flag}.num_samples", num_samples, num_samples >= 1, "at least 1")
        require(f"{flag}.temperature", temperature, temperature >= 0, "at least 0")
        can_differ = num_samples == 1 or temperature > 0
        require(f"{flag}.temperature", temperature, can_differ, f"above 0 for {num_samples} samples to differ")

    @abstractmethod
    def score(self, problems: Sequence[Problem], answers: Sequence[str]) -> list[float]:
        """Score of each answer to its problem: 1 if it is right, 0 if it is wrong."""

    @property
    @override
    def settings(self) -> dict[str, Any]:
        sampling = {"num_samples": self.num_samples, "temperature": self.temperature}
        return {**super().settings, "max_new_tokens": self.max_new_tokens, **sampling}

    @override
    def measure(self, model: PreTrainedModel, encoder: ChatEncoder) -> dict[str, Score]:
        answers = self._answer(model, encoder)
        asked = [problem for problem in self.examples for _ in range(self.num_samples)]
        scores = self.score(asked, answers)
        self.answers = [Answer(p.question, text, score == 1) for p, text, score in zip(asked, answers, scores, strict=True)]
        means = np.reshape(scores, (-1, self.num_samples)).mean(axis=1).tolist()
        return by_group(self.name, means, [problem.group for problem in self.examples])

    def _answer(self, model: PreTrainedModel, encoder: ChatEncoder) -> list[str]:
        """All answers, those to the same problem side by side."""
        prompts = self._prompts(model, encoder)
        stop_ids = stop_token_ids(model, encoder.end_of_turn_id)
        # Similar lengths together, so that little of a batch is padding.
        order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
        size = max(1, self.batch_size // self.num_samples)
        texts: dict[int, list[str]] = {}
        batches = [order[start : start + size] for start in range(0, len(order), size)]
        with Progress(f"Answering {self.name}", len(batches)) as progress:
            for batch in batches:
                completions = roll_out(
                    model,
                    [prompts[index] for index in batch],
                    [f"{self.name}|{index}" for index in batch],
                    Sampling(self.temperature),
                    num_rollouts=self.num_samples,
                    max_new_tokens=self.max_new_tokens,
                    stop_ids=stop_ids,
                    batch_size=self.batch_size,
                )
                for index, samples in zip(batch, completions, strict=True):
                    texts[index] = [encoder.decode(sample.token_ids) for sample in samples]
                progress.advance()
        return [text for index in range(len(prompts)) for text in texts[index]]

    def _prompts(self, model: PreTrainedModel, encoder: ChatEncoder) -> list[list[int]]:
        """Prompts that leave room for an answer: solved problems that do not fit are left out, from the first on."""
        window = window_of(model.config)
        prompts, num_cut = [], 0
        for problem in self.examples:
            for num_shots in range(len(problem.shots), -1, -1):
                prompt = encoder.prompt([problem.message(num_shots)])
                if len(prompt) + self.max_new_tokens <= window:
                    break
            else:
                raise UserError(
                    f"--retention.suites: a problem of {self.name} has {len(prompt)} tokens, and with an answer of "
                    f"{self.max_new_tokens} it does not fit the model's window of {window}. Lower max_new_tokens, or leave "
                    "the suite out."
                )
            num_cut += num_shots < len(problem.shots)
            prompts.append(prompt)
        if num_cut:
            rank_zero_warn(
                f"{self.name}: {num_cut} of {len(prompts)} prompts do not fit the model's window of {window} tokens and go "
                "without some of their solved problems."
            )
        return prompts
