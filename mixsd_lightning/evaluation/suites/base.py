"""What a held-out suite is."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

from transformers import PreTrainedModel

from mixsd_lightning.context import ChatEncoder


@dataclass(frozen=True)
class Score:
    """One measured number."""

    value: float
    higher_is_better: bool = True
    has_kept_share: bool = True
    """Whether the share of the base model's score that is left is meaningful; agreement with the base has none."""

    def kept(self, base: "Score") -> float | None:
        """Share of the base model's score that is left, 1.0 = nothing lost; ``None`` where there is nothing to lose."""
        better, reference = (self.value, base.value) if self.higher_is_better else (base.value, self.value)
        return better / reference if self.has_kept_share and reference else None


class Suite(ABC):
    """A held-out measurement. ``prepare`` runs once on the base model, ``measure`` on every model."""

    name: str

    def prepare(self, base: PreTrainedModel, encoder: ChatEncoder) -> None:
        """Compute what later measurements compare with; most suites need nothing."""

    @abstractmethod
    def measure(self, model: PreTrainedModel, encoder: ChatEncoder) -> dict[str, Score]:
        """Scores of ``model`` by tag (the suite's name, or ``name_part``). Leaves mode, weights and RNG as they were."""
