"""What TensorBoard shows without being asked: learning beside forgetting."""

from typing import Any

import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from torch.utils.tensorboard.summary import hparams
from torch.utils.tensorboard.writer import SummaryWriter
from typing_extensions import override

from mixsd_lightning.callbacks.figures import pareto_figure
from mixsd_lightning.modules.base import KnowledgeModule

# All of one kind: charts with a margin would stand behind the others, away from what they belong to.
_LAYOUT = {
    "Learning and forgetting": {
        "answers right": ["Multiline", [r"^memorization/(?!.*(_loose|_count)$).*"]],
        "kept of the base model's skills": ["Multiline", [r"^retention/kept(_low|_high)?$"]],
        "kept, by suite": ["Multiline", [r"^retention/[^/]+/kept$"]],
        "distance from the base model (KL, nats a token)": ["Multiline", [r"^retention/agreement_(kl|reverse_kl|jsd)$"]],
        "Fisher-weighted drift": ["Multiline", [r"^drift/fisher$"]],
        "training loss": ["Multiline", [r"^train/loss$"]],
    }
}


class Dashboard(Callback):
    """Lays out TensorBoard's custom scalars, draws memorization against retention, and ends with the hyper-parameters.

    The figure `learnt_and_kept` grows by one point per validation. Hyper-parameters are written once, with the metrics of the
    last validation, so that the HParams page compares finished runs.
    """

    def __init__(self) -> None:
        self._points: list[tuple[int, float, float]] = []
        self._metrics: dict[str, float] = {}

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: KnowledgeModule) -> None:  # type: ignore[override]
        for writer in _writers(trainer):
            writer.add_custom_scalars(_LAYOUT)

    @override
    def on_validation_end(self, trainer: Trainer, pl_module: KnowledgeModule) -> None:  # type: ignore[override]
        metrics = {tag: float(value) for tag, value in trainer.callback_metrics.items()}
        self._metrics = metrics
        corpus = trainer.datamodule  # type: ignore[attr-defined]
        learnt, kept = metrics.get(f"memorization/{corpus.train_split}"), metrics.get("retention/kept")
        step = pl_module.completed_steps
        if learnt is None or kept is None or any(step == seen for seen, _, _ in self._points):
            return
        self._points.append((step, learnt, kept))
        for writer in _writers(trainer):
            writer.add_figure("learnt_and_kept", pareto_figure(self._points), step)
            if pl_module.target_nlls:
                writer.add_histogram("targets/nll_base_of_tokens", torch.tensor(pl_module.target_nlls), step)

    @override
    def on_fit_end(self, trainer: Trainer, pl_module: KnowledgeModule) -> None:  # type: ignore[override]
        settings: dict[str, Any] = {"method": type(pl_module).__name__, **pl_module.hparams}
        corpus = trainer.datamodule  # type: ignore[attr-defined]
        settings |= {f"data/{name}": value for name, value in corpus.hparams.items()}
        plain = {
            name: value if isinstance(value, bool | int | float | str) else str(value)
            for name, value in settings.items()
            if not name.rpartition("/")[2].startswith("_")  # what the command line notes for itself
        }
        final = {
            tag: value for tag, value in self._metrics.items() if tag.startswith(("memorization/", "retention/", "drift/"))
        }
        # Without the writer's own method, which would make a run of its own.
        for writer in _writers(trainer):
            for summary in hparams(plain, final):
                writer._get_file_writer().add_summary(summary)

    @override
    def state_dict(self) -> dict[str, Any]:
        return {"points": self._points}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._points = [tuple(point) for point in state_dict["points"]]


def _writers(trainer: Trainer) -> list[SummaryWriter]:
    """TensorBoard's writers of this rank."""
    if not trainer.is_global_zero:
        return []
    return [logger.experiment for logger in trainer.loggers if isinstance(logger, TensorBoardLogger)]
