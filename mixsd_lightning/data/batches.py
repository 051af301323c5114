"""What a training step gets: sequences with their targets marked, in batches of similar length.

Shapes: B batch, L sequence.
"""

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data.distributed import DistributedSampler
from typing_extensions import Self, override

from mixsd_lightning.decoding.prefix_tree import common_prefix_length

# Batches that are sorted by length together: few enough that an epoch's batches are not those of the last.
_WINDOW = 4


@dataclass(frozen=True)
class TrainItem:
    """One supervised sequence: a prompt and the answer turn to learn, which ends with the end-of-turn token."""

    example_id: str
    prompt_ids: list[int]
    target_ids: list[int]
    base_nlls: list[float] | None = None
    """NLL of each target token under the base model, in nats, where it is known."""

    @property
    def num_tokens(self) -> int:
        """Length of the sequence."""
        return len(self.prompt_ids) + len(self.target_ids)


@dataclass
class TrainBatch:
    """Sequences padded on the right: causal attention hides the padding from them."""

    token_ids_BL: Tensor
    is_target_BL: Tensor
    num_shared: int
    """Tokens that all prompts begin with; the last token of a prompt predicts and is not counted. 0 for a single row."""

    def to(self, device: torch.device, non_blocking: bool = False) -> Self:
        """Move all tensors (Lightning's hook for moving batches)."""
        token_ids_BL = self.token_ids_BL.to(device, non_blocking=non_blocking)
        return type(self)(token_ids_BL, self.is_target_BL.to(device, non_blocking=non_blocking), self.num_shared)


def collate_training(items: Sequence[TrainItem]) -> TrainBatch:
    """Pad items into a :class:`TrainBatch`; without any, one that has no target, for a rank whose share of a batch is empty."""
    items = items or [TrainItem("", [0], [])]
    token_ids = [torch.tensor(item.prompt_ids + item.target_ids) for item in items]
    is_target = [torch.arange(item.num_tokens) >= len(item.prompt_ids) for item in items]
    num_shared = common_prefix_length([item.prompt_ids for item in items]) if len(items) > 1 else 0
    return TrainBatch(pad_sequence(token_ids, True), pad_sequence(is_target, True), num_shared)


class TrainingBatches(DistributedSampler[list[int]]):
    """The batches of an epoch, as lists of indices: in random order, each of items of similar length.

    Seeded by (seed, epoch) and not by the global generator, so that the order survives a resume. Ranks take turns within a
    global batch, so that its items do not depend on their number. All ranks have as many batches; in the last, one may have fewer
    items than another, or none.
    """

    def __init__(
        self,
        lengths: Sequence[int],
        batch_size: int,
        num_replicas: int = 1,
        rank: int = 0,
        seed: int = 0,
        num_uses: int = 1,
        batches_per_use: int = 1,
        num_served: Callable[[], int] = lambda: 0,
    ) -> None:
        """
        Args:
            lengths: Tokens of every item.
            batch_size: Items in a batch, per rank.
            num_replicas: Number of ranks.
            rank: This rank.
            seed: Decides the order.
            num_uses: How often every batch is served.
            batches_per_use: Batches that are served together before they come again.
            num_served: Asked when the first batch of an epoch is: how many of it were served before a resume.
        """
        super().__init__(lengths, num_replicas, rank, seed=seed)  # type: ignore[arg-type]
        self._lengths = lengths
        self._global_batch_size = batch_size * num_replicas
        self._num_uses = num_uses
        self._batches_per_use = batches_per_use
        self._num_served = num_served

    @override
    def __iter__(self) -> Iterator[list[int]]:
        # A generator, so that Lightning has told the epoch and counted on from its checkpoint when this is asked.
        yield from islice(self._epoch(), self._num_served(), None)

    def _epoch(self) -> Iterator[list[int]]:
        rng = random.Random(f"{self.seed}|{self.epoch}")
        order = rng.sample(range(len(self._lengths)), len(self._lengths))
        size = self._global_batch_size
        grouped = [
            index for window in _pieces(order, _WINDOW * size) for index in sorted(window, key=self._lengths.__getitem__)
        ]
        batches = _pieces(grouped, size)
        rest = [batches.pop()] if len(batches[-1]) < size else []
        rng.shuffle(batches)
        batches += rest
        for together in _pieces([batch[self.rank :: self.num_replicas] for batch in batches], self._batches_per_use):
            # What is too little for an optimizer step of its own is served once.
            for _ in range(self._num_uses if len(together) == self._batches_per_use else 1):
                yield from together

    @override
    def __len__(self) -> int:
        num_batches = -(-len(self._lengths) // self._global_batch_size)
        return num_batches + num_batches // self._batches_per_use * self._batches_per_use * (self._num_uses - 1)


class EvaluationBatches(DistributedSampler[list[int]]):
    """All items once and in order, as lists of indices. All ranks have as many batches; the last may be smaller, or empty.

    Lightning's own sampler would serve some items twice.
    """

    def __init__(self, num_items: int, batch_size: int, num_replicas: int = 1, rank: int = 0) -> None:
        """
        Args:
            num_items: How many there are.
            batch_size: Items in a batch, per rank.
            num_replicas: Number of ranks.
            rank: This rank.
        """
        super().__init__(range(num_items), num_replicas, rank, shuffle=False)  # type: ignore[arg-type]
        self._batches = _pieces(list(range(num_items)), batch_size * num_replicas)

    @override
    def __iter__(self) -> Iterator[list[int]]:
        return (batch[self.rank :: self.num_replicas] for batch in self._batches)

    @override
    def __len__(self) -> int:
        return len(self._batches)


def _pieces(items: list, size: int) -> list[list]:
    return [items[start : start + size] for start in range(0, len(items), size)]
