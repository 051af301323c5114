"""What training costs: held-out suites, measured on the base model once and on the student at each validation."""

from collections.abc import Sequence

from lightning.pytorch import Callback, Trainer
from typing_extensions import override

from mixsd_lightning.errors import UserError
from mixsd_lightning.evaluation.suites import SUITES, Score, Suite
from mixsd_lightning.modules.base import KnowledgeModule
from mixsd_lightning.progress import Progress


class Retention(Callback):
    """Logs, at each validation, the score of every suite and the share of the base model's score that is kept.

    Tags: `retention/<suite>` (the score), `retention/<suite>/kept` (1.0 = nothing lost) and `retention/kept`, the mean of the
    kept shares. Agreement with the base model is shown beside them and not averaged in.
    """

    def __init__(self, suites: Sequence[str] = ("probe", "bits_per_byte", "agreement")) -> None:
        """
        Args:
            suites: What to measure.
        """
        if unknown := [name for name in suites if name not in SUITES]:
            raise UserError(f"--retention.suites: there is no suite '{unknown[0]}'; choose from {', '.join(SUITES)}.")
        self.suites: Sequence[Suite] = [SUITES[name]() for name in suites]
        self.base_scores: dict[str, Score] = {}

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: KnowledgeModule) -> None:  # type: ignore[override]
        self.measure_base(pl_module)

    @override
    def on_validation_start(self, trainer: Trainer, pl_module: KnowledgeModule) -> None:  # type: ignore[override]
        if not self.base_scores and self.suites:
            self.measure_base(pl_module)

    @override
    def on_validation_epoch_end(self, trainer: Trainer, pl_module: KnowledgeModule) -> None:  # type: ignore[override]
        pl_module.log_dict(self.measure(pl_module))

    @override
    def on_test_start(self, trainer: Trainer, pl_module: KnowledgeModule) -> None:  # type: ignore[override]
        self.on_validation_start(trainer, pl_module)

    @override
    def on_test_epoch_end(self, trainer: Trainer, pl_module: KnowledgeModule) -> None:  # type: ignore[override]
        self.on_validation_epoch_end(trainer, pl_module)

    def measure_base(self, pl_module: KnowledgeModule) -> None:
        """Measure the base model, which all later scores are compared with."""
        with pl_module.base_model() as base, Progress("Base model's skills", len(self.suites)) as progress:
            for suite in self.suites:
                suite.prepare(base, pl_module.encoder)
                self.base_scores.update(suite.measure(base, pl_module.encoder))
                progress.advance()

    def measure(self, pl_module: KnowledgeModule) -> dict[str, float]:
        """All tags for the student as it is now."""
        scores = dict(self.base_scores)
        if pl_module.completed_steps > 0:  # until then the student is the base model
            for suite in self.suites:
                scores.update(suite.measure(pl_module.student, pl_module.encoder))
        tags, kept = {}, []
        for name, score in scores.items():
            tags[f"retention/{name}"] = score.value
            share = score.kept(self.base_scores[name])
            if share is not None:
                kept.append(share)
                tags[f"retention/{name}/kept"] = share
        if kept:
            tags["retention/kept"] = sum(kept) / len(kept)
        return tags
