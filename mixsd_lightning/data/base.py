"""What a corpus is: named splits of examples, and the DataModule that serves them to any method."""

import random
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Protocol

import torch
from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader, Dataset
from typing_extensions import Self, override

from mixsd_lightning.context import EXPERT_CONTEXTS, ChatEncoder, naive_context
from mixsd_lightning.data.batches import EvaluationBatches, TrainingBatches
from mixsd_lightning.errors import UserError, require
from mixsd_lightning.example import Example


class EvalBatch:
    """Examples of one split with their encoded naive prompts, to be answered by generation.

    No dataclass: Lightning rebuilds those to convert what is in them to the trainer's precision, and an example is not to change.
    """

    def __init__(self, split: str, examples: list[Example], prompts: list[list[int]]) -> None:
        self.split = split
        self.examples = examples
        self.prompts = prompts

    def to(self, device: torch.device, **options: bool) -> Self:
        """Nothing to move: prompts are padded when they are decoded."""
        return self


class Item(Protocol):
    """What a method trains on, for one example."""

    @property
    def num_tokens(self) -> int:
        """What it costs, as far as it is known: items of similar cost share a batch."""
        ...


class Method(Protocol):
    """What a DataModule asks of the method that it feeds."""

    encoder: ChatEncoder
    context_window: int
    max_new_tokens: int
    updates_per_batch: int
    """Optimizer steps that are taken on the same items before the next come."""

    def training_items(self, examples: Sequence[Example]) -> Sequence[Item]:
        """What the method trains on."""
        ...

    def collate(self, items: Sequence[Any]) -> Any:
        """Items as the batch that a training step gets."""
        ...


class CorpusDataModule(LightningDataModule, ABC):
    """Base of all corpora: a subclass only says how its splits are made (:meth:`build_splits`)."""

    train_split = "train"
    available_splits: tuple[str, ...] = ("train",)
    default_expert_context = ""
    """How the expert is shown this corpus; by default what suits the answer format."""

    def __init__(
        self,
        batch_size: int = 16,
        eval_batch_size: int = 64,
        eval_splits: Sequence[str] = ("train",),
        max_eval_examples: int | None = None,
        seed: int = 42,
        expert_context: str | None = None,
    ) -> None:
        """
        Args:
            batch_size: Examples in a training batch, per device.
            eval_batch_size: Questions that are answered at once during validation, per device.
            eval_splits: Splits that are answered at each validation; `train` asked again is the memorization test.
            max_eval_examples: Ask at most this many questions of each split (a fixed random choice); all by default.
            seed: Decides the corpus, the choice of evaluation questions and the order of training examples.
            expert_context: How the expert is shown the knowledge; by default what suits the corpus and its answer format.
        """
        super().__init__()
        self.save_hyperparameters()
        require("data.batch_size", batch_size, batch_size >= 1, "at least 1")
        require("data.eval_batch_size", eval_batch_size, eval_batch_size >= 1, "at least 1")
        has_room = max_eval_examples is None or max_eval_examples >= 1
        require("data.max_eval_examples", max_eval_examples, has_room, "at least 1, or left out to ask every question")
        for split in eval_splits:
            if split not in self.available_splits:
                raise UserError(
                    f"--data.eval_splits: {type(self).__name__} has no split '{split}'; choose from "
                    f"{', '.join(self.available_splits)}."
                )
        if expert_context is not None and expert_context not in EXPERT_CONTEXTS:
            raise UserError(
                f"--data.expert_context: there is no '{expert_context}'; choose from {', '.join(EXPERT_CONTEXTS)}."
            )
        self.expert_context = self.default_expert_context if expert_context is None else expert_context
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size
        self.eval_splits = tuple(eval_splits)
        self.max_eval_examples = max_eval_examples
        self.seed = seed
        self._splits: dict[str, list[Example]] = {}

    @abstractmethod
    def build_splits(self, names: Sequence[str]) -> dict[str, list[Example]]:
        """Make the named splits. Deterministic: the same settings give the same examples in the same order."""

    def split(self, name: str) -> list[Example]:
        """The examples of one split.

        Raises:
            UserError: if the split is empty.
        """
        if name not in self._splits:
            built = self.build_splits([name])
            self._splits[name] = [
                replace(example, expert_context=self.expert_context or example.expert_context) for example in built[name]
            ]
        if not self._splits[name]:
            raise UserError(f"--data: the split '{name}' of {type(self).__name__} is empty; enlarge the corpus.")
        return self._splits[name]

    def eval_examples(self, split: str) -> list[Example]:
        """The examples of a split that validation asks."""
        examples = self.split(split)
        if self.max_eval_examples is None or len(examples) <= self.max_eval_examples:
            return examples
        chosen = random.Random(f"{self.seed}|{split}").sample(range(len(examples)), self.max_eval_examples)
        return [examples[index] for index in sorted(chosen)]

    @override
    def prepare_data(self) -> None:
        # Runs before the run folder is made: whatever is wrong with the data or its length is said here.
        method = self._method()
        for example in self.split(self.train_split):
            num_tokens = len(method.encoder.prompt(naive_context(example))) + len(method.encoder.target(example.target))
            self._check_window(example, num_tokens, method.context_window)
        for split in self.eval_splits:
            for example in self.eval_examples(split):
                num_tokens = len(method.encoder.prompt(naive_context(example))) + method.max_new_tokens
                self._check_window(example, num_tokens, method.context_window)

    @override
    def train_dataloader(self) -> DataLoader:
        assert self.trainer is not None
        method = self._method()
        items = method.training_items(self.split(self.train_split))
        if not items:
            raise UserError("There is nothing to train on: no example has a target. Try --model.on_reject gold.")
        progress = self.trainer.fit_loop.epoch_loop.batch_progress
        batches = TrainingBatches(
            [item.num_tokens for item in items],
            self.batch_size,
            self.trainer.world_size,
            self.trainer.global_rank,
            self.seed,
            method.updates_per_batch,
            self.trainer.accumulate_grad_batches,
            lambda: progress.current.ready,
        )
        # A sampler of whole batches: Lightning leaves a DistributedSampler alone and tells it the epoch.
        return DataLoader(_BatchedDataset(items), batch_size=None, sampler=batches, collate_fn=method.collate)

    @override
    def val_dataloader(self) -> list[DataLoader]:
        return [self._eval_dataloader(split) for split in self.eval_splits]

    @override
    def test_dataloader(self) -> list[DataLoader]:
        return self.val_dataloader()

    @override
    def predict_dataloader(self) -> DataLoader:
        return self._eval_dataloader(self.train_split)

    def _eval_dataloader(self, split: str) -> DataLoader:
        encoder = self._method().encoder

        def collate(examples: list[Example]) -> EvalBatch:
            return EvalBatch(split, examples, [encoder.prompt(naive_context(example)) for example in examples])

        assert self.trainer is not None
        examples = self.eval_examples(split)
        batches = EvaluationBatches(len(examples), self.eval_batch_size, self.trainer.world_size, self.trainer.global_rank)
        return DataLoader(_BatchedDataset(examples), batch_size=None, sampler=batches, collate_fn=collate)

    def _method(self) -> Method:
        if self.trainer is None or self.trainer.lightning_module is None:
            raise RuntimeError("A corpus is served through a Trainer: call trainer.fit(method, corpus).")
        return self.trainer.lightning_module  # type: ignore[return-value]

    def _check_window(self, example: Example, num_tokens: int, window: int) -> None:
        if num_tokens > window:
            raise UserError(
                f"The prompt of example '{example.id}' and its answer need {num_tokens} tokens, but the model's window has "
                f"{window}. Shorten the example, lower --model.max_new_tokens, or choose another "
                "--model.model_name_or_path."
            )


class _BatchedDataset(Dataset):
    def __init__(self, items: Sequence) -> None:
        self._items = items

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, indices: list[int] | int) -> list:
        # Lightning's `overfit_batches` goes through single items.
        return [self._items[index] for index in (indices if isinstance(indices, list) else [indices])]
