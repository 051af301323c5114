"""Training batches hold what went in, are of similar length, and come in an order of (seed, epoch) alone."""

from collections.abc import Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mixsd_lightning.data.batches import EvaluationBatches, TrainingBatches, TrainItem, collate_training

TOKEN_IDS = st.lists(st.integers(1, 3), min_size=1, max_size=5)
ITEMS = st.lists(st.builds(TrainItem, st.just("x"), TOKEN_IDS, TOKEN_IDS), min_size=1, max_size=4)


def epoch_of(batches: TrainingBatches, epoch: int = 0) -> list[list[int]]:
    batches.set_epoch(epoch)
    return list(batches)


def test_sequences_are_padded_on_the_right() -> None:
    batch = collate_training([TrainItem("a", [1, 2, 3], [4]), TrainItem("b", [1, 5], [6, 7, 8])])
    assert batch.token_ids_BL.tolist() == [[1, 2, 3, 4, 0], [1, 5, 6, 7, 8]]
    assert batch.is_target_BL.tolist() == [[False, False, False, True, False], [False, False, True, True, True]]
    assert batch.num_shared == 1


@given(ITEMS)
def test_a_batch_holds_what_went_in(items: list[TrainItem]) -> None:
    batch = collate_training(items)
    for row, item in enumerate(items):
        assert batch.token_ids_BL[row, : item.num_tokens].tolist() == item.prompt_ids + item.target_ids
        assert batch.token_ids_BL[row][batch.is_target_BL[row]].tolist() == item.target_ids


@given(ITEMS)
def test_shared_tokens_are_the_same_in_all_rows_and_predict_no_target(items: list[TrainItem]) -> None:
    batch = collate_training(items)
    shared = batch.token_ids_BL[:, : batch.num_shared]
    assert torch.equal(shared, shared[:1].expand_as(shared))
    assert not batch.is_target_BL[:, : batch.num_shared + 1].any()
    if len(items) == 1:
        assert batch.num_shared == 0


def test_moving_a_batch_moves_every_tensor() -> None:
    moved = collate_training([TrainItem("a", [1], [2]), TrainItem("b", [1, 2], [2])]).to(torch.device("meta"))
    assert moved.token_ids_BL.device.type == moved.is_target_BL.device.type == "meta"


@given(st.lists(st.integers(1, 50), min_size=1, max_size=40), st.integers(1, 7), st.integers(1, 3))
def test_every_item_is_served_once_and_every_rank_has_as_many_batches(
    lengths: list[int], batch_size: int, num_ranks: int
) -> None:
    served = [epoch_of(TrainingBatches(lengths, batch_size, num_ranks, rank)) for rank in range(num_ranks)]
    assert len({len(batches) for batches in served}) == 1
    assert sorted(index for batches in served for batch in batches for index in batch) == list(range(len(lengths)))
    sizes = [[len(batch) for batch in batches] for batches in served]
    assert all(size == batch_size for of_rank in sizes for size in of_rank[:-1])
    last = [of_rank[-1] for of_rank in sizes]
    assert max(last) - min(last) <= 1
    assert max(last) == last[0] > 0
    assert len(served[0]) == len(TrainingBatches(lengths, batch_size, num_ranks, 0))


@given(st.integers(1, 40), st.integers(1, 7), st.integers(1, 3))
def test_every_question_is_asked_once_and_in_order(num_items: int, batch_size: int, num_ranks: int) -> None:
    served = [list(EvaluationBatches(num_items, batch_size, num_ranks, rank)) for rank in range(num_ranks)]
    assert {len(batches) for batches in served} == {len(EvaluationBatches(num_items, batch_size, num_ranks))}
    together = [sorted(index for batch in batches for index in batch) for batches in zip(*served, strict=True)]
    assert [index for batch in together for index in batch] == list(range(num_items))
    assert all(len(batch) <= batch_size for batches in served for batch in batches)
    assert all(served[0])  # what is shown of a split is the first rank's


def test_a_rank_without_items_has_a_batch_without_targets() -> None:
    batch = collate_training([])
    assert batch.token_ids_BL.shape == (1, 1)
    assert not batch.is_target_BL.any()


def test_a_global_batch_does_not_depend_on_the_number_of_ranks() -> None:
    lengths = [index * 7 % 13 for index in range(24)]
    alone = epoch_of(TrainingBatches(lengths, 6))
    shared = [epoch_of(TrainingBatches(lengths, 3, 2, rank)) for rank in range(2)]
    for whole, *parts in zip(alone, *shared, strict=True):
        assert sorted(whole) == sorted(parts[0] + parts[1])


def test_batches_are_of_similar_length() -> None:
    lengths = [index % 16 for index in range(64)]
    batches = epoch_of(TrainingBatches(lengths, 16))
    spreads = [max(lengths[i] for i in batch) - min(lengths[i] for i in batch) for batch in batches]
    assert max(spreads) < 6


def spread(batches: Sequence[Sequence[int]]) -> set[frozenset[int]]:
    return {frozenset(batch) for batch in batches}


def test_the_order_depends_on_seed_and_epoch_alone() -> None:
    lengths = [index % 5 for index in range(30)]
    first = epoch_of(TrainingBatches(lengths, 4, seed=1), 3)
    torch.manual_seed(99)
    assert epoch_of(TrainingBatches(lengths, 4, seed=1), 3) == first
    for other in (epoch_of(TrainingBatches(lengths, 4, seed=2), 3), epoch_of(TrainingBatches(lengths, 4, seed=1), 4)):
        assert spread(other) != spread(first)  # other batches, not only another order of them


@pytest.mark.parametrize("batches_per_use", [1, 2, 3])
def test_batches_that_are_used_again_come_together(batches_per_use: int) -> None:
    lengths = [1] * 10
    once = epoch_of(TrainingBatches(lengths, 2))
    batches = TrainingBatches(lengths, 2, num_uses=3, batches_per_use=batches_per_use)
    again = epoch_of(batches)
    pieces = [once[start : start + batches_per_use] for start in range(0, 5, batches_per_use)]
    # A last piece that is too short for an optimizer step is served once.
    uses = [3 if len(piece) == batches_per_use else 1 for piece in pieces]
    assert again == [batch for piece, count in zip(pieces, uses, strict=True) for _ in range(count) for batch in piece]
    assert len(batches) == len(again)
