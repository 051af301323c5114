"""What a held-out suite is, and what it gives."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from mixsd_lightning.context import ChatEncoder

NUM_RESAMPLES = 1000

AnswerForm = Literal["free", "boxed", "code"]


@dataclass(frozen=True)
class Score:
    """One measured number: the weighted mean of what was found for each example."""

    values: Sequence[float]
    weights: Sequence[float] | None = None
    """Of the examples in the mean; by default they are alike."""
    higher_is_better: bool = True
    has_kept_share: bool = True
    """Whether the share of the base model's score that is left is meaningful; agreement with the base has none."""

    @property
    def value(self) -> float:
        """The mean."""
        return float(np.average(self.values, weights=self.weights))

    def kept(self, base: "Score") -> float | None:
        """Share of the base model's score that is left, 1.0 = nothing lost; ``None`` where there is nothing to lose."""
        better, reference = (self.value, base.value) if self.higher_is_better else (base.value, self.value)
        return better / reference if self.has_kept_share and reference else None

    def resampled_kept(self, base: "Score") -> np.ndarray:
        """The kept share in 1000 bootstrap samples of the examples, the same ones for both models.

        Samples in which the base model has nothing to lose are left out.
        """
        generator = np.random.default_rng(0)
        size = len(self.values)
        counts_RN = generator.multinomial(size, np.full(size, 1 / size), NUM_RESAMPLES)

        def means(score: Score) -> np.ndarray:
            weights_N = np.ones(size) if score.weights is None else np.asarray(score.weights)
            return np.asarray(counts_RN @ (weights_N * score.values) / (counts_RN @ weights_N))

        better_R, reference_R = (means(self), means(base)) if self.higher_is_better else (means(base), means(self))
        return better_R[reference_R > 0] / reference_R[reference_R > 0]


def bootstrap_interval(samples: np.ndarray) -> tuple[float, float]:
    """95 % interval of bootstrap samples."""
    low, high = np.quantile(samples, [0.025, 0.975])
    return float(low), float(high)


@dataclass(frozen=True)
class Answer:
    """What a model answered to one question of a suite."""

    question: str
    completion: str
    is_right: bool


class Suite(ABC):
    """A held-out measurement. ``prepare`` runs once on the base model, ``measure`` on every model."""

    name: str
    answer_form: AnswerForm = "free"
    """How its questions ask for an answer."""
    base_model: Callable[[], AbstractContextManager[PreTrainedModel]]
    """Gives the base model while another is measured; whoever measures sets it. With LoRA it is the measured model itself, which
    is itself again afterwards."""
    answers: Sequence[Answer] = ()
    """What the model said when it was last measured, of suites that ask questions."""

    def __init__(self, every_n_validations: int = 1) -> None:
        """
        Args:
            every_n_validations: Measure at every n-th validation and at the last; 0 is at the last alone.
        """
        self.every_n_validations = every_n_validations

    @property
    def settings(self) -> dict[str, Any]:
        """What scores depend on beside the model: JSON values."""
        return {}

    def setup(self) -> None:
        """Read whatever data it needs. Called before a run writes anything, so that data that are missing stop it here."""

    def prepare(self, base: PreTrainedModel, encoder: ChatEncoder) -> None:
        """Compute what later measurements compare with; most suites need nothing."""

    @abstractmethod
    def measure(self, model: PreTrainedModel, encoder: ChatEncoder) -> dict[str, Score]:
        """Scores of ``model`` by tag: the suite's name, ``name_part``, or ``name/group`` for a part of its examples.

        Leaves mode, weights and RNG as they were.
        """


def by_group(name: str, values: Sequence[float], groups: Sequence[str]) -> dict[str, Score]:
    """Score of a suite and, where there are several groups of examples, of each of them.

    A group's kept share would be mostly noise, so it has none.
    """
    scores = {name: Score(values)}
    if len(set(groups)) > 1:
        for group in sorted(set(groups)):
            part = [value for value, of in zip(values, groups, strict=True) if of == group]
            scores[f"{name}/{group.replace(' ', '_')}"] = Score(part, has_kept_share=False)
    return scores


def to_tensors(scores: Mapping[str, Score]) -> dict[str, Tensor]:
    """Scores in the form in which they are kept on disk."""
    tensors = {}
    for tag, score in scores.items():
        weights = np.ones(len(score.values)) if score.weights is None else score.weights
        tensors[tag] = torch.tensor(np.array([score.values, weights]), dtype=torch.float64)
        tensors[f"{tag}?"] = torch.tensor([score.higher_is_better, score.has_kept_share])
    return tensors


def from_tensors(tensors: Mapping[str, Tensor]) -> dict[str, Score]:
    """The inverse of :func:`to_tensors`."""
    return {
        tag: Score(*values.tolist(), *tensors[f"{tag}?"].tolist()) for tag, values in tensors.items() if not tag.endswith("?")
    }
