"""Training on targets that are there before the first step: the part that SFT and MixSD share."""

from abc import abstractmethod
from collections.abc import Sequence
from itertools import chain

import torch
from torch import Tensor
from typing_extensions import override

from mixsd_lightning.context import naive_context
from mixsd_lightning.data.batches import TrainBatch, TrainItem, collate_training
from mixsd_lightning.example import Example
from mixsd_lightning.modules.base import KnowledgeModule
from mixsd_lightning.progress import Progress
from mixsd_lightning.records import evenly_spaced
from mixsd_lightning.target_likelihood import batch_nll, likelihood_tags, token_nlls

MOST_DESCRIBED = 256
"""Targets that are run through the base model to say how probable all of them are: a pass over a large corpus would take a third of
the time of an epoch."""


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
        if any(item.base_nlls is None for item in items):
            items = evenly_spaced(items, MOST_DESCRIBED)
        unknown = [item for item in items if item.base_nlls is None]
        nlls = [item.base_nlls for item in items if item.base_nlls is not None]
        if unknown:
            with self.base_model() as base, Progress("Likelihood of the targets", len(unknown)) as progress:
                for start in range(0, len(unknown), corpus.batch_size):
                    part = unknown[start : start + corpus.batch_size]
                    nlls += token_nlls(base, part, corpus.batch_size)
                    progress.advance(len(part))
        self.target_statistics |= likelihood_tags(nlls)
        self.target_nlls = list(chain.from_iterable(nlls))

    @override
    def summed_loss(self, batch: TrainBatch) -> tuple[Tensor, Tensor]:
        nll_sum, nll_N = batch_nll(self.student, batch)
        return nll_sum, torch.tensor(len(nll_N), device=nll_sum.device)

    def supervised_item(self, example: Example, target_ids: list[int]) -> TrainItem:
        """A training item: the example's naive prompt with a given answer turn."""
        return TrainItem(example.id, self.encoder.prompt(naive_context(example)), target_ids)
