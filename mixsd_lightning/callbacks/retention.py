"""What training costs: held-out suites, measured on the base model once and on the student at each validation."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.seed import isolate_rng
from transformers import PreTrainedModel
from typing_extensions import override

from mixsd_lightning.disk_cache import cached_tensors
from mixsd_lightning.errors import UserError
from mixsd_lightning.evaluation.suites import SUITES, Score, Suite
from mixsd_lightning.evaluation.suites.base import bootstrap_interval, from_tensors, to_tensors
from mixsd_lightning.models import inference_dtype, weights_fingerprint
from mixsd_lightning.modules.base import KnowledgeModule
from mixsd_lightning.progress import Progress


class Retention(Callback):
    """Logs, at each validation, the score of every suite and the share of the base model's score that is kept.

    Tags: `retention/<suite>` (the score), `retention/<suite>/kept` (1.0 = nothing lost) with the ends of its 95 % bootstrap
    interval over examples (`kept_low`, `kept_high`), `retention/<suite>/<group>` for parts of a suite, and `retention/kept`,
    the mean of the kept shares, with its interval. Agreement with the base model is shown beside them and not averaged in.
    The base model's scores are kept in the user cache.
    """

    def __init__(self, suites: Sequence[str | Suite] = ("probe", "bits_per_byte", "agreement")) -> None:
        """
        Args:
            suites: What to measure: names, or suites with settings of their own (class_path and init_args).
        """
        if unknown := [name for name in suites if isinstance(name, str) and name not in SUITES]:
            raise UserError(f"--retention.suites: there is no suite '{unknown[0]}'; choose from {', '.join(SUITES)}.")
        self.suites: Sequence[Suite] = [SUITES[suite]() if isinstance(suite, str) else suite for suite in suites]
        names = [suite.name for suite in self.suites]
        if twice := [name for name in names if names.count(name) > 1]:
            raise UserError(f"--retention.suites: '{twice[0]}' is there twice; give each suite once.")
        self._base_scores: dict[str, dict[str, Score]] = {}
        self._num_validations = 0

    @override
    def setup(self, trainer: Trainer, pl_module: KnowledgeModule, stage: str) -> None:  # type: ignore[override]
        self.read_data()

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: KnowledgeModule) -> None:  # type: ignore[override]
        self.measure_base(pl_module)

    @override
    def on_validation_start(self, trainer: Trainer, pl_module: KnowledgeModule) -> None:  # type: ignore[override]
        if not self._base_scores:
            self.measure_base(pl_module)

    @override
    def on_validation_epoch_end(self, trainer: Trainer, pl_module: KnowledgeModule) -> None:  # type: ignore[override]
        if trainer.sanity_checking:
            due = self.suites
        else:
            self._num_validations += 1
            is_last = is_last_validation(trainer)
            due = [suite for suite in self.suites if is_last or _is_due(suite, self._num_validations)]
        pl_module.log_dict(self.measure(pl_module, due))

    @override
    def on_test_start(self, trainer: Trainer, pl_module: KnowledgeModule) -> None:  # type: ignore[override]
        self.on_validation_start(trainer, pl_module)

    @override
    def on_test_epoch_end(self, trainer: Trainer, pl_module: KnowledgeModule) -> None:  # type: ignore[override]
        pl_module.log_dict(self.measure(pl_module, self.suites))

    @override
    def state_dict(self) -> dict[str, Any]:
        return {"num_validations": self._num_validations}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._num_validations = state_dict["num_validations"]

    def read_data(self) -> None:
        """Have every suite read its data, so that missing data stop a run at once."""
        for suite in self.suites:
            suite.setup()

    def measure_base(self, pl_module: KnowledgeModule) -> None:
        """Measure the base model, which all later scores are compared with, as far as that has not been done before."""
        encoder = pl_module.encoder
        with (
            isolate_rng(),
            pl_module.base_model() as base,
            Progress("Base model's skills", len(self.suites)) as progress,
        ):
            known = {"weights": weights_fingerprint(base), "tokenizer": encoder.fingerprint()}
            known["dtype"] = str(inference_dtype(base))
            for suite in self.suites:
                suite.base_model = pl_module.base_model
                suite.prepare(base, encoder)

                def compute(suite: Suite = suite, base: PreTrainedModel = base) -> dict[str, Any]:
                    return to_tensors(suite.measure(base, encoder))

                found = cached_tensors("base_scores", {"suite": suite.name, **suite.settings, **known}, compute)
                self._base_scores[suite.name] = from_tensors(found)
                progress.advance()

    def measure(self, pl_module: KnowledgeModule, suites: Sequence[Suite]) -> dict[str, float]:
        """All tags for the student as it is now."""
        tags: dict[str, float] = {}
        shares: list[tuple[float, np.ndarray]] = []
        for suite in self.suites:
            suite.answers = ()
        for suite in suites:
            base_scores = scores = self._base_scores[suite.name]
            if pl_module.completed_steps > 0:  # until then the student is the base model
                with isolate_rng():
                    scores = suite.measure(pl_module.student, pl_module.encoder)
            for tag, score in scores.items():
                tags[f"retention/{tag}"] = score.value
                share = score.kept(base_scores[tag])
                if share is not None:
                    samples = score.resampled_kept(base_scores[tag])
                    shares.append((share, samples))
                    tags |= _with_interval(f"retention/{tag}/kept", share, samples)
        if shares:
            # Suites have examples of their own, so their samples are independent.
            mean = sum(share for share, _ in shares) / len(shares)
            fewest = min(len(samples) for _, samples in shares)
            samples = np.mean([samples[:fewest] for _, samples in shares], axis=0)
            tags |= _with_interval("retention/kept", mean, samples)
        return tags


def is_last_validation(trainer: Trainer) -> bool:
    """Whether a fit will end before it validates again; always true outside of a fit."""
    if trainer.state.fn != TrainerFn.FITTING or trainer.should_stop or 0 < trainer.max_steps <= trainer.global_step:
        return True
    if not trainer.is_last_batch:
        return False
    num_epochs = trainer.check_val_every_n_epoch or 1
    steps_of_epoch = -(-int(trainer.num_training_batches) // trainer.accumulate_grad_batches)
    next_epoch, next_step = trainer.current_epoch + 1 + num_epochs, trainer.global_step + num_epochs * steps_of_epoch
    return 0 < (trainer.max_epochs or 0) < next_epoch or 0 < trainer.max_steps < next_step


def _is_due(suite: Suite, validation: int) -> bool:
    return bool(suite.every_n_validations) and validation % suite.every_n_validations == 0


def _with_interval(tag: str, value: float, samples: np.ndarray) -> dict[str, float]:
    low, high = bootstrap_interval(samples)
    return {tag: value, f"{tag}_low": low, f"{tag}_high": high}
