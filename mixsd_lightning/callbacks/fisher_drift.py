"""How far the parameters moved, in all directions alike and in those that the base model's behaviour depends on."""

from collections import defaultdict
from collections.abc import Sequence
from typing import get_args

import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor
from transformers import PreTrainedModel
from typing_extensions import override

from mixsd_lightning.callbacks.figures import drift_figure
from mixsd_lightning.disk_cache import cached_tensors
from mixsd_lightning.errors import require
from mixsd_lightning.evaluation.drift import Moved, by_place, moved, place_of
from mixsd_lightning.evaluation.fisher import (
    LabelledSequence,
    Labels,
    Source,
    diagonal_fisher,
    fisher_sequences,
    num_available,
    visit_gradients,
)
from mixsd_lightning.models import base_parameters, effective_parameters, weights_fingerprint
from mixsd_lightning.modules.base import KnowledgeModule
from mixsd_lightning.ranks import rank_and_count, sum_over_ranks
from mixsd_lightning.sharding import is_sharded, local


class FisherDrift(Callback):
    r"""Logs parameter drift from the base model at each validation.

    With :math:`\Delta = \theta - \theta_0` and the diagonal Fisher information F of the base model:

    * `drift/l2` is :math:`\lVert\Delta\rVert`;
    * `drift/fisher` is :math:`\sum_i F_i \Delta_i^2`, to second order twice the KL divergence from the base model per
      sequence, as far as a diagonal can say; `drift/fisher/<kind>` is the part of attention, mlp, embedding and norm;
    * `drift/sensitivity` is fisher / l2², the mean sensitivity of the directions that training used;
    * `drift/quadratic`, if asked for, is the mean of :math:`(g_n \cdot \Delta)^2` over sequences with gradients :math:`g_n`:
      the same with the whole Fisher matrix instead of its diagonal.

    TensorBoard gets a heat map of layers and kinds too. F is kept in the user cache.
    """

    def __init__(
        self,
        num_sequences: int = 24,
        sequences: Source = "held_out",
        labels: Labels = "data",
        quadratic: bool = False,
        device: str = "cpu",
    ) -> None:
        """
        Args:
            num_sequences: For the Fisher estimate, one backward pass each; at most 24 of held_out.
            sequences: `held_out` is paragraphs of English; `answers` is answers to everyday questions.
            labels: `data` (the empirical Fisher) or `sampled` from the base model (the true one).
            quadratic: Also measure `drift/quadratic`: the backward passes again at each validation.
            device: Where F and the base model's parameters are kept: `cpu`, or `model` for wherever the model is.
        """
        for flag, value, choices in (("sequences", sequences, Source), ("labels", labels, Labels)):
            require(f"drift.{flag}", value, value in get_args(choices), f"one of {', '.join(get_args(choices))}")
        require("drift.device", device, device in ("cpu", "model"), "cpu or model")
        most = num_available(sequences)
        require("drift.num_sequences", num_sequences, 1 <= num_sequences <= most, f"between 1 and {most}")
        self.num_sequences = num_sequences
        self.source = sequences
        self.labels = labels
        self.quadratic = quadratic
        self.device = device
        self._origin: dict[str, Tensor] = {}
        self._fisher: dict[str, Tensor] = {}
        self._sequences: list[LabelledSequence] = []

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: KnowledgeModule) -> None:  # type: ignore[override]
        # Needs gradients, so it cannot wait for a validation, which Lightning runs in inference mode.
        self.prepare(pl_module)

    @override
    def on_validation_start(self, trainer: Trainer, pl_module: KnowledgeModule) -> None:  # type: ignore[override]
        if not self._fisher:
            with torch.inference_mode(False), torch.enable_grad():
                self.prepare(pl_module)

    @override
    def on_validation_epoch_end(self, trainer: Trainer, pl_module: KnowledgeModule) -> None:  # type: ignore[override]
        moves = self.moves(pl_module.student)
        pl_module.log_dict(drift_tags(moves))
        if self.quadratic:
            with torch.inference_mode(False), torch.enable_grad():
                pl_module.log("drift/quadratic", self.measure_quadratic(pl_module))
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger) and pl_module.completed_steps:
                step, places = pl_module.completed_steps, by_place(moves)
                logger.experiment.add_figure("drift/fisher_by_layer", drift_figure(places), step)
                per_layer = torch.tensor([move.fisher for place, move in places.items() if place.layer is not None])
                if len(per_layer):
                    logger.experiment.add_histogram("drift/fisher_of_layers", per_layer, step)

    @override
    def on_test_start(self, trainer: Trainer, pl_module: KnowledgeModule) -> None:  # type: ignore[override]
        self.on_validation_start(trainer, pl_module)

    @override
    def on_test_epoch_end(self, trainer: Trainer, pl_module: KnowledgeModule) -> None:  # type: ignore[override]
        self.on_validation_epoch_end(trainer, pl_module)

    def prepare(self, pl_module: KnowledgeModule) -> None:
        """Take the base model's parameters and its Fisher information."""
        with pl_module.base_model() as base, isolate_rng():
            device = base.device if self.device == "model" else torch.device("cpu")
            self._origin = {
                name: local(parameter.detach()).to(device, torch.float32, copy=True)
                for name, parameter in base_parameters(base)
            }
            self._sequences = fisher_sequences(base, pl_module.encoder, self.source, self.labels, self.num_sequences)
            depends_on = {
                "weights": weights_fingerprint(base),
                "sequences": [[sequence.token_ids, sequence.labels] for sequence in self._sequences],
                "part": rank_and_count() if is_sharded(base) else None,
            }
            kept = cached_tensors("fisher", depends_on, lambda: _fisher_of_all_ranks(base, self._sequences))
            # Copied, because a file in memory is read more slowly.
            self._fisher = {name: tensor.to(device, copy=True) for name, tensor in kept.items()}

    @torch.no_grad()
    def moves(self, model: PreTrainedModel) -> dict[str, Moved]:
        """What each parameter of a model adds to drift now."""
        parameters = ((name, local(parameter)) for name, parameter in effective_parameters(model))
        moves = moved(parameters, self._origin, self._fisher)
        if is_sharded(model):
            sums = sum_over_ranks(torch.tensor(list(moves.values()), dtype=torch.float64))
            moves = {name: Moved(*row) for name, row in zip(moves, sums.tolist(), strict=True)}
        return moves

    def measure_quadratic(self, pl_module: KnowledgeModule) -> float:
        r"""Mean of :math:`(g_n \cdot \Delta)^2` over the sequences."""
        deltas = {
            name: local(parameter).to(self._origin[name].device, torch.float32) - self._origin[name]
            for name, parameter in effective_parameters(pl_module.student)
        }
        dots: dict[str, list[float]] = defaultdict(list)

        def add(name: str, gradient: Tensor) -> None:
            delta = deltas[name]
            dots[name].append(float(gradient.to(delta.device, torch.float32).flatten() @ delta.flatten()))

        with pl_module.base_model() as base:
            visit_gradients(base, self._sequences, add)
            dots_N = torch.tensor(list(dots.values()), dtype=torch.float64).sum(0)
            if is_sharded(base):
                dots_N = sum_over_ranks(dots_N)
        return float(dots_N.square().mean())


def drift_tags(moves: dict[str, Moved]) -> dict[str, float]:
    """The tags of a drift."""
    squared = sum(move.squared for move in moves.values())
    fisher = sum(move.fisher for move in moves.values())
    kinds: dict[str, float] = defaultdict(float)
    for name, move in moves.items():
        kinds[f"drift/fisher/{place_of(name).kind}"] += move.fisher
    return {
        "drift/l2": squared**0.5,
        "drift/fisher": fisher,
        "drift/sensitivity": fisher / squared if squared else 0.0,
        **kinds,
    }


def _fisher_of_all_ranks(base: PreTrainedModel, sequences: Sequence[LabelledSequence]) -> dict[str, Tensor]:
    """Ranks with a whole model take turns; ranks with a shard each see the same sequences, whose gradients are averaged."""
    rank, count = rank_and_count()
    if is_sharded(base) or count == 1:
        return diagonal_fisher(base, sequences)
    fisher = diagonal_fisher(base, sequences[rank::count], num_total=len(sequences))
    return {name: sum_over_ranks(tensor) for name, tensor in fisher.items()}
