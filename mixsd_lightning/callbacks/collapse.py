"""A warning when rollouts collapse: a student that teaches itself can run into ever shorter or ever more certain answers."""

from typing import Any

from lightning.pytorch import Callback, Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from typing_extensions import override

from mixsd_lightning.errors import require
from mixsd_lightning.modules.base import KnowledgeModule

WATCHED = {"train/entropy": "entropy", "train/completion_length": "length"}


class CollapseAlert(Callback):
    """Warns, once each, when rollouts or the student's entropy along them fall below a share of what they were at the start.

    Both are means over as many training batches as the start has. Methods without rollouts log neither, and nothing happens.
    """

    def __init__(self, share: float = 0.3, num_steps: int = 10) -> None:
        """
        Args:
            share: Warn below this share of the start; 0 never warns.
            num_steps: Training batches that make up the start.
        """
        require("collapse.share", share, 0 <= share < 1, "at least 0 and below 1")
        require("collapse.num_steps", num_steps, num_steps >= 1, "at least 1")
        self.share = share
        self.num_steps = num_steps
        self._recent: dict[str, list[float]] = {tag: [] for tag in WATCHED}
        self._start: dict[str, float] = {}
        self._warned: list[str] = []

    @override
    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: KnowledgeModule,  # type: ignore[override]
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        for tag, recent in self._recent.items():
            if tag not in trainer.callback_metrics:
                continue
            recent.append(float(trainer.callback_metrics[tag]))
            del recent[: -self.num_steps]
            if len(recent) < self.num_steps:
                continue
            mean = sum(recent) / len(recent)
            start = self._start.setdefault(tag, mean)
            if mean < self.share * start and tag not in self._warned:
                self._warned.append(tag)
                rank_zero_warn(
                    f"The {WATCHED[tag]} of the rollouts has fallen from {start:.3g} to {mean:.3g} by step "
                    f"{trainer.global_step}: the student may be collapsing. Look at its completions; a lower "
                    "--model.learning_rate or a frozen teacher helps."
                )

    @override
    def state_dict(self) -> dict[str, Any]:
        return {"recent": self._recent, "start": self._start, "warned": self._warned}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._recent, self._start, self._warned = state_dict["recent"], state_dict["start"], state_dict["warned"]
