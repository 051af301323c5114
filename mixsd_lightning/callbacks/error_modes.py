"""Why answers are wrong, counted at each validation."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from typing_extensions import override

from mixsd_lightning.callbacks.retention import Retention
from mixsd_lightning.data.base import EvalBatch
from mixsd_lightning.evaluation.error_modes import (
    HELD_OUT_MODES,
    INJECTED_MODES,
    Entities,
    held_out_mode,
    injected_mode,
)
from mixsd_lightning.evaluation.scoring import is_exact_match
from mixsd_lightning.markdown import markdown_table
from mixsd_lightning.modules.base import KnowledgeModule
from mixsd_lightning.ranks import sum_over_ranks

Wrong = tuple[str, str, str]
"""Mode, question, answer."""


class ErrorModes(Callback):
    """Logs `errors/<split or suite>/<mode>`: the share of all answers that is wrong in a certain way.

    Modes: see :mod:`mixsd_lightning.evaluation.error_modes`. TensorBoard shows examples of each as text. Suites are read from
    the retention callback, whenever it has measured them.
    """

    def __init__(self, num_examples: int = 3) -> None:
        """
        Args:
            num_examples: Wrong answers of each mode to show.
        """
        self.num_examples = num_examples
        self._entities: Entities | None = None
        self._counts: dict[str, int] = {}
        self._wrong: dict[str, list[Wrong]] = {}

    @override
    def on_validation_epoch_start(self, trainer: Trainer, pl_module: KnowledgeModule) -> None:  # type: ignore[override]
        corpus = trainer.datamodule  # type: ignore[attr-defined]
        self._entities = Entities(corpus.split(corpus.train_split))
        self._counts = dict.fromkeys(corpus.eval_splits, 0)
        self._wrong = {split: [] for split in corpus.eval_splits}

    @override
    def on_validation_batch_end(  # type: ignore[override]
        self,
        trainer: Trainer,
        pl_module: KnowledgeModule,
        outputs: Any,
        batch: EvalBatch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        assert self._entities is not None
        for example, answer in zip(batch.examples, outputs, strict=True):
            self._counts[batch.split] += 1
            if not is_exact_match(answer, example.answer, example.question, example.answer_format):
                mode = injected_mode(answer, example, self._entities)
                self._wrong[batch.split].append((mode, example.question, answer))

    @override
    def on_validation_epoch_end(self, trainer: Trainer, pl_module: KnowledgeModule) -> None:  # type: ignore[override]
        for split, wrong in self._wrong.items():
            numbers = [self._counts[split], *(sum(row[0] == mode for row in wrong) for mode in INJECTED_MODES)]
            total, *counts = sum_over_ranks(torch.tensor(numbers, dtype=torch.float64)).tolist()
            shares = {mode: count / max(1, total) for mode, count in zip(INJECTED_MODES, counts, strict=True)}
            self._report(trainer, pl_module, split, shares, wrong)
        assert self._entities is not None
        for suite in next((c.suites for c in trainer.callbacks if isinstance(c, Retention)), ()):  # type: ignore[attr-defined]
            if suite.answers:
                wrong = [
                    (held_out_mode(a.completion, a.question, suite.answer_form, self._entities), a.question, a.completion)
                    for a in suite.answers
                    if not a.is_right
                ]
                shares = {m: sum(row[0] == m for row in wrong) / len(suite.answers) for m in HELD_OUT_MODES}
                self._report(trainer, pl_module, suite.name, shares, wrong)

    def _report(
        self, trainer: Trainer, pl_module: KnowledgeModule, name: str, shares: Mapping[str, float], wrong: Sequence[Wrong]
    ) -> None:
        pl_module.log_dict({f"errors/{name}/{mode}": share for mode, share in shares.items()})
        examples: dict[str, list[Wrong]] = defaultdict(list)
        for row in wrong:
            examples[row[0]].append(row)
        shown = [row for rows in examples.values() for row in rows[: self.num_examples]]
        if not shown:
            return
        text = markdown_table(("mode", "question", "answer"), shown)
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                logger.experiment.add_text(f"errors/{name}", text, pl_module.completed_steps)

    @override
    def on_test_epoch_start(self, trainer: Trainer, pl_module: KnowledgeModule) -> None:  # type: ignore[override]
        self.on_validation_epoch_start(trainer, pl_module)

    @override
    def on_test_batch_end(self, *args: Any, **kwargs: Any) -> None:
        self.on_validation_batch_end(*args, **kwargs)

    @override
    def on_test_epoch_end(self, trainer: Trainer, pl_module: KnowledgeModule) -> None:  # type: ignore[override]
        self.on_validation_epoch_end(trainer, pl_module)
