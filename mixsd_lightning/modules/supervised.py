"""Training on targets that are there before the first step: the part that SFT and MixSD share."""

from abc import abstractmethod
from collections.abc import Sequence
from contextlib import nullcontext

import torch
from torch import Tensor
from transformers import PreTrainedModel
from typing_extensions import override

from mixsd_lightning.context import naive_context
from mixsd_lightning.data.batches import TrainBatch, TrainItem, collate_training
from mixsd_lightning.example import Example
from mixsd_lightning.losses.chunked import summed_token_loss
from mixsd_lightning.losses.nll import TokenNLL
from mixsd_lightning.models import evaluating
from mixsd_lightning.modules.base import KnowledgeModule
from mixsd_lightning.target_states import output_head, target_states, target_tokens


class SupervisedModule(KnowledgeModule):
    """NLL of given answer turns, the end-of-turn token included, and of nothing else."""

    @override
    @abstractmethod
    def training_items(self, examples: Sequence[Example]) -> list[TrainItem]:
        """The supervised sequences that the student is trained on."""

    @override
    def collate(self, items: Sequence[TrainItem]) -> TrainBatch:
        return collate_training(items)

    @override
    def on_fit_start(self) -> None:
        super().on_fit_start()
        corpus = self.trainer.datamodule  # type: ignore[attr-defined]
        self.describe_items(self.training_items(corpus.split(corpus.train_split)))

    def describe_items(self, items: Sequence[TrainItem]) -> None:
        """Note what is being taught: which examples, and how probable their targets are under the base model."""
        corpus = self.trainer.datamodule  # type: ignore[attr-defined]
        self.taught_ids = {item.example_id for item in items}
        unknown = [item for item in items if item.base_nll is None]
        known_nll = sum(item.base_nll for item in items if item.base_nll is not None)
        num_tokens = sum(len(item.target_ids) for item in items)
        with self.base_model() if unknown else nullcontext() as base:
            nll = known_nll + (self.summed_nll(base, unknown, corpus.batch_size) if base else 0.0)
        self.target_statistics["targets/nll_base"] = nll / max(1, num_tokens)

    @override
    def summed_loss(self, batch: TrainBatch) -> tuple[Tensor, Tensor]:
        return self.batch_nll(self.student, batch)

    @staticmethod
    def batch_nll(model: PreTrainedModel, batch: TrainBatch) -> tuple[Tensor, Tensor]:
        """Summed NLL of the targets of a batch, in nats, and their number."""
        nll_sum, nll_N = summed_token_loss(target_states(model, batch), output_head(model), TokenNLL(target_tokens(batch)))
        return nll_sum, torch.tensor(len(nll_N), device=nll_sum.device)

    @torch.no_grad()
    def summed_nll(self, model: PreTrainedModel, items: Sequence[TrainItem], batch_size: int) -> float:
        """NLL of training targets under ``model`` and the naive prompt, in nats."""
        total = 0.0
        with evaluating(model):
            for start in range(0, len(items), batch_size):
                batch = collate_training(items[start : start + batch_size]).to(self.device)
                total += float(self.batch_nll(model, batch)[0])
        return total

    def supervised_item(self, example: Example, target_ids: list[int]) -> TrainItem:
        """A training item: the example's naive prompt with a given answer turn."""
        return TrainItem(example.id, self.encoder.prompt(naive_context(example)), target_ids)
