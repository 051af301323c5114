"""``metrics.jsonl``: one line per validation, readable by anything."""

import json

from lightning.pytorch import Callback, Trainer
from typing_extensions import override

from mixsd_lightning.modules.base import KnowledgeModule
from mixsd_lightning.run_folder import run_folder

METRICS_FILE = "metrics.jsonl"
PREFIXES = ("memorization/", "retention/", "drift/", "targets/", "errors/", "train/", "resources/")


class MetricsFile(Callback):
    """Appends the metrics of each validation to ``metrics.jsonl`` in the run folder, under their TensorBoard tags.

    Lightning's sanity check, when it runs over all the data (`num_sanity_val_steps: -1`), is the validation before training:
    it is written, and sent to the loggers, as step 0.
    """

    @override
    def on_validation_end(self, trainer: Trainer, pl_module: KnowledgeModule) -> None:  # type: ignore[override]
        metrics = {tag: float(value) for tag, value in trainer.callback_metrics.items() if tag.startswith(PREFIXES)}
        if trainer.sanity_checking:
            is_whole = trainer.num_sanity_val_steps == float("inf")
            if not is_whole or pl_module.completed_steps:
                return
            for logger in trainer.loggers:
                logger.log_metrics(metrics, step=0)
        folder = run_folder(trainer)  # asks all ranks
        if trainer.is_global_zero and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            folder.mkdir(parents=True, exist_ok=True)  # without a logger, nobody else has made it
            line = {"step": pl_module.completed_steps, "epoch": trainer.current_epoch, **metrics}
            with (folder / METRICS_FILE).open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")

    @override
    def on_test_end(self, trainer: Trainer, pl_module: KnowledgeModule) -> None:  # type: ignore[override]
        self.on_validation_end(trainer, pl_module)
