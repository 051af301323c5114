"""How far the parameters moved, in all directions alike and in those that the base model's behaviour depends on."""

from contextlib import ExitStack

import torch
from lightning.pytorch import Callback, Trainer
from torch import Tensor
from transformers import PreTrainedModel
from typing_extensions import override

from mixsd_lightning.context import ChatEncoder
from mixsd_lightning.errors import require
from mixsd_lightning.evaluation.suites.bits_per_byte import held_out_paragraphs, paragraph_nll
from mixsd_lightning.models import base_parameters, effective_parameters, evaluating
from mixsd_lightning.modules.base import KnowledgeModule
from mixsd_lightning.progress import Progress


class FisherDrift(Callback):
    r"""Logs parameter drift from the base model at each validation.

    With :math:`\Delta = \theta - \theta_0` and the diagonal empirical Fisher information F of the base model on held-out text:

    * `drift/l2` is :math:`\lVert\Delta\rVert`;
    * `drift/fisher` is :math:`\sum_i F_i \Delta_i^2`, to second order twice the KL divergence from the base model per held-out
      sequence, as far as a diagonal can say;
    * `drift/sensitivity` is fisher / l2², the mean sensitivity of the directions that training used.
    """

    def __init__(self, num_sequences: int = 24) -> None:
        """
        Args:
            num_sequences: Held-out paragraphs for the Fisher estimate, at most 24; one backward pass each.
        """
        most = len(held_out_paragraphs())
        require("drift.num_sequences", num_sequences, 1 <= num_sequences <= most, f"between 1 and {most}")
        self.num_sequences = num_sequences
        self._origin: dict[str, Tensor] = {}
        self._fisher: dict[str, Tensor] = {}

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
        pl_module.log_dict(self.measure(pl_module.student))

    @override
    def on_test_start(self, trainer: Trainer, pl_module: KnowledgeModule) -> None:  # type: ignore[override]
        self.on_validation_start(trainer, pl_module)

    @override
    def on_test_epoch_end(self, trainer: Trainer, pl_module: KnowledgeModule) -> None:  # type: ignore[override]
        self.on_validation_epoch_end(trainer, pl_module)

    def prepare(self, pl_module: KnowledgeModule) -> None:
        """Take the base model's parameters and Fisher information; both are kept on the CPU."""
        with pl_module.base_model() as base:
            self._origin = {name: parameter.detach().cpu().clone() for name, parameter in base_parameters(base)}
            self._fisher = diagonal_fisher(base, pl_module.encoder, held_out_paragraphs()[: self.num_sequences])

    @torch.no_grad()
    def measure(self, model: PreTrainedModel) -> dict[str, float]:
        """All tags for a model as it is now."""
        fisher, squared = 0.0, 0.0
        for name, parameter in effective_parameters(model):
            delta_squared = (parameter.cpu().float() - self._origin[name]).square_()
            squared += float(delta_squared.sum(dtype=torch.float64))
            fisher += float(delta_squared.mul_(self._fisher[name]).sum(dtype=torch.float64))
        return {
            "drift/l2": squared**0.5,
            "drift/fisher": fisher,
            "drift/sensitivity": fisher / squared if squared else 0.0,
        }


def diagonal_fisher(model: PreTrainedModel, encoder: ChatEncoder, texts: tuple[str, ...]) -> dict[str, Tensor]:
    r"""Diagonal empirical Fisher information of a model on texts, by parameter name, float32 on the CPU.

    :math:`F_i = \frac1N \sum_n \left(\partial \log p(y_n) / \partial\theta_i\right)^2`, with the gradient of one whole
    sequence squared at a time: squaring the gradient of a batch would be another, much smaller quantity.
    """
    fisher = {
        name: torch.zeros_like(parameter, dtype=torch.float32, device="cpu") for name, parameter in base_parameters(model)
    }
    with ExitStack() as cleanup:
        for name, parameter in base_parameters(model):

            def accumulate(parameter: Tensor, name: str = name) -> None:
                # Taken and freed as soon as it is complete, so that only one gradient is alive at a time.
                assert parameter.grad is not None
                gradient = parameter.grad.detach().cpu().float()
                fisher[name].addcmul_(gradient, gradient, value=1 / len(texts))
                parameter.grad = None

            cleanup.callback(parameter.requires_grad_, parameter.requires_grad)  # LoRA has frozen it
            parameter.requires_grad_(True)
            cleanup.callback(parameter.register_post_accumulate_grad_hook(accumulate).remove)
        cleanup.enter_context(evaluating(model))
        progress = cleanup.enter_context(Progress("Fisher information", len(texts)))
        for text in texts:
            paragraph_nll(model, encoder, text).backward()
            progress.advance()
    return fisher
