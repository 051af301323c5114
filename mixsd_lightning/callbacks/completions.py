"""A few answers beside their gold, as TensorBoard text."""

from typing import Any

from lightning.pytorch import Callback, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from typing_extensions import override

from mixsd_lightning.data.base import EvalBatch
from mixsd_lightning.markdown import markdown_table
from mixsd_lightning.modules.base import KnowledgeModule


class Completions(Callback):
    """Logs the student's answers to the first questions of each split, beside the gold answers, at each validation."""

    def __init__(self, num_examples: int = 6) -> None:
        """
        Args:
            num_examples: Answers to show of each split.
        """
        self.num_examples = num_examples

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
        if batch_idx > 0:
            return
        pairs = list(zip(batch.examples, outputs, strict=True))[: self.num_examples]
        rows = [(example.question, answer, example.answer) for example, answer in pairs]
        text = markdown_table(("question", "answer", "gold"), rows)
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                logger.experiment.add_text(f"completions/{batch.split}", text, pl_module.completed_steps)
