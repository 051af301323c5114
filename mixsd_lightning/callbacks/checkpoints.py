"""Checkpoints that a run goes on from as if it had never stopped."""

import signal
import threading
import time
from typing import Any

import torch
from lightning.fabric.plugins.io import TorchCheckpointIO
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities.exceptions import SIGTERMException
from typing_extensions import override

from mixsd_lightning.checkpoint_io import LAST, CheckpointFiles, put_last, remove
from mixsd_lightning.errors import require
from mixsd_lightning.modules.base import KnowledgeModule
from mixsd_lightning.random_state import random_state, set_random_state
from mixsd_lightning.ranks import gathered, rank_and_count, sum_over_ranks
from mixsd_lightning.run_folder import run_folder

TERMINATED = 128 + 15
"""Exit status of a process that SIGTERM has ended."""


class Checkpoints(Checkpoint):
    """Keeps the last two states of a fit in ``checkpoints/``: ``last.ckpt`` and ``previous.ckpt``.

    A state is saved after a validation, every so many minutes, when the process gets SIGTERM, and at the end. It is always the state
    before the first batch of an optimizer step, with everything behind it done: validation, metrics, teacher, new targets. There a
    resumed run sets the random generators and what Lightning has logged, and is where the first one was.
    """

    def __init__(self, every_n_minutes: float = 10.0, every_n_steps: int = 0, final_weights_only: bool = False) -> None:
        """
        Args:
            every_n_minutes: Save when so much time has passed since the last time; 0 saves after validations alone.
            every_n_steps: Also save every n optimizer steps; 0 does not.
            final_weights_only: Leave the optimizer's state out of the checkpoint of a finished run, which is a third as large then
                and cannot be trained further.
        """
        require("checkpoint.every_n_minutes", every_n_minutes, every_n_minutes >= 0, "at least 0")
        require("checkpoint.every_n_steps", every_n_steps, every_n_steps >= 0, "at least 1, or 0 to save by time alone")
        self.every_n_minutes = every_n_minutes
        self.every_n_steps = every_n_steps
        self.final_weights_only = final_weights_only
        self._is_due = False
        self._is_saving_a_start = False
        self._stops = False
        self._saved_at = 0.0
        self._saved_step = 0
        self._start: dict[str, Any] = {}
        """What to set before the first batch."""

    @override
    def setup(self, trainer: Trainer, pl_module: KnowledgeModule, stage: str) -> None:  # type: ignore[override]
        if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:  # nobody has chosen another
            trainer.strategy.checkpoint_io = CheckpointFiles()

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: KnowledgeModule) -> None:  # type: ignore[override]
        folder = run_folder(trainer) / "checkpoints"  # asks all ranks
        if trainer.is_global_zero:
            for scratch in folder.glob(".*"):  # of a process that was killed
                remove(scratch)

    @override
    def on_train_start(self, trainer: Trainer, pl_module: KnowledgeModule) -> None:  # type: ignore[override]
        self._saved_at, self._saved_step = time.monotonic(), trainer.global_step
        self._is_due = self._stops = False
        if trainer.received_sigterm:
            raise SIGTERMException(TERMINATED)
        if threading.current_thread() is threading.main_thread():
            # In Lightning's place, which would stop where a run cannot go on exactly; it puts back what was there before.
            signal.signal(signal.SIGTERM, self._note_sigterm)

    def _note_sigterm(self, *_: Any) -> None:
        self._stops = True

    @override
    def on_train_batch_start(
        self,
        trainer: Trainer,
        pl_module: KnowledgeModule,  # type: ignore[override]
        batch: Any,
        batch_idx: int,
    ) -> None:
        if self._start:
            self._restore(trainer)
        if batch_idx % trainer.accumulate_grad_batches or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        stops, saves = self._agreed(trainer)
        if saves:
            self._save_start(trainer)
        if stops:
            if trainer.is_global_zero:
                print(f"SIGTERM: saved after step {trainer.global_step}; the same command goes on from there.", flush=True)
            raise SIGTERMException(TERMINATED)

    def _agreed(self, trainer: Trainer) -> tuple[bool, bool]:
        """Whether to stop now, and whether to save; the same on all ranks."""
        step = trainer.global_step
        saves = self._is_due or (self.every_n_steps and step % self.every_n_steps == 0)
        waited = time.monotonic() - self._saved_at
        saves = saves or (self.every_n_minutes and waited >= 60 * self.every_n_minutes) or self._stops
        stopping, saving = sum_over_ranks(torch.tensor([bool(self._stops), bool(saves)]).int()).tolist()
        return stopping > 0, saving > 0 and step > self._saved_step

    @override
    def on_validation_end(self, trainer: Trainer, pl_module: KnowledgeModule) -> None:  # type: ignore[override]
        self._is_due = not trainer.sanity_checking

    @override
    def on_train_end(self, trainer: Trainer, pl_module: KnowledgeModule) -> None:  # type: ignore[override]
        if not trainer.fast_dev_run:  # type: ignore[attr-defined]
            self._save(trainer, self.final_weights_only)

    def _save_start(self, trainer: Trainer) -> None:
        self._is_saving_a_start = True
        try:
            self._save(trainer)
        finally:
            self._is_saving_a_start = False
        self._is_due = False
        self._saved_at, self._saved_step = time.monotonic(), trainer.global_step

    def _save(self, trainer: Trainer, weights_only: bool = False) -> None:
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger) and trainer.is_global_zero:
                logger.experiment.flush()  # a resumed run does not write again what lies before this
        scratch = run_folder(trainer) / "checkpoints" / f".{LAST}.whole"  # asks all ranks
        trainer.save_checkpoint(scratch, weights_only)
        if trainer.is_global_zero:
            put_last(scratch)
        trainer.strategy.barrier()

    @override
    def on_save_checkpoint(
        self,
        trainer: Trainer,
        pl_module: KnowledgeModule,  # type: ignore[override]
        checkpoint: dict[str, Any],
    ) -> None:
        if not self._is_saving_a_start:
            return
        loop = trainer.fit_loop.epoch_loop
        checkpoint["start"] = {
            "random": gathered(random_state()),
            # A tag that is logged at some steps alone stays in the metrics until it is logged again.
            "metrics": {tag: value.detach().clone() for tag, value in trainer.callback_metrics.items()},
            "logged": loop._batches_that_stepped,
        }
        # The batch has been fetched and counted; it will be again.
        progress = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]
        progress["is_last_batch"] = False
        for part in ("total", "current"):
            progress[part]["ready"] = progress[part]["completed"]

    @override
    def on_load_checkpoint(
        self,
        trainer: Trainer,
        pl_module: KnowledgeModule,  # type: ignore[override]
        checkpoint: dict[str, Any],
    ) -> None:
        self._start = checkpoint.get("start", {})

    def _restore(self, trainer: Trainer) -> None:
        start, self._start = self._start, {}
        trainer.callback_metrics.update({tag: torch.as_tensor(value) for tag, value in start["metrics"].items()})
        trainer.fit_loop.epoch_loop._batches_that_stepped = start["logged"]
        rank, count = rank_and_count()
        if len(start["random"]) == count:  # of another number of ranks there is no right one
            set_random_state(start["random"][rank])
