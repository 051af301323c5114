"""Any corpus is served the same way: padded, bounded, reproducible, and checked before training."""

from collections.abc import Sequence
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch import Trainer

from mixsd_lightning.context import ChatEncoder, naive_context
from mixsd_lightning.data.base import CorpusDataModule
from mixsd_lightning.data.batches import TrainBatch, TrainItem, collate_training
from mixsd_lightning.errors import UserError
from mixsd_lightning.example import Example


class Numbers(CorpusDataModule):
    """``size`` examples in each of two splits."""

    available_splits = ("train", "test")
    size = 20

    def build_splits(self, names: Sequence[str]) -> dict[str, list[Example]]:
        return {
            name: [
                Example(f"{name}-{n}", f"What is {n}?", f"What is {n}?", str(n), f"It is {n}.", "") for n in range(self.size)
            ]
            for name in names
        }


class FakeMethod:
    """Just what a corpus asks of a method."""

    def __init__(self, encoder: ChatEncoder, context_window: int = 100, max_new_tokens: int = 10) -> None:
        self.encoder = encoder
        self.context_window = context_window
        self.max_new_tokens = max_new_tokens
        self.updates_per_batch = 1

    def training_items(self, examples: Sequence[Example]) -> list[TrainItem]:
        return [TrainItem(example.id, [1], [int(example.answer)]) for example in examples]

    def collate(self, items: Sequence[TrainItem]) -> TrainBatch:
        return collate_training(items)


def serve(corpus: CorpusDataModule, method: object) -> CorpusDataModule:
    corpus.trainer = SimpleNamespace(  # type: ignore[assignment]
        lightning_module=method,
        world_size=1,
        global_rank=0,
        accumulate_grad_batches=1,
        fit_loop=Trainer(accelerator="cpu", logger=False, enable_checkpointing=False).fit_loop,
    )
    return corpus


def ids(examples: Sequence[Example]) -> list[str]:
    return [example.id for example in examples]


def training_order(corpus: CorpusDataModule) -> list[int]:
    return [number for batch in corpus.train_dataloader() for number in batch.token_ids_BL[batch.is_target_BL].tolist()]


def test_all_examples_are_asked_by_default() -> None:
    assert ids(Numbers().eval_examples("test")) == [f"test-{n}" for n in range(20)]


def test_asked_examples_are_bounded_and_in_order() -> None:
    corpus = Numbers(max_eval_examples=5)
    asked = corpus.eval_examples("test")
    assert len(set(ids(asked))) == 5
    assert asked == [example for example in corpus.split("test") if example in asked]


def test_a_bound_above_the_size_asks_everything() -> None:
    assert len(Numbers(max_eval_examples=21).eval_examples("test")) == 20


def test_asked_examples_are_the_same_every_time() -> None:
    assert Numbers(max_eval_examples=5).eval_examples("test") == Numbers(max_eval_examples=5).eval_examples("test")


def test_asked_examples_depend_on_the_seed() -> None:
    by_seed = {tuple(ids(Numbers(max_eval_examples=5, seed=seed).eval_examples("test"))) for seed in range(5)}
    assert len(by_seed) > 1


def test_asked_examples_do_not_depend_on_global_randomness() -> None:
    torch.manual_seed(1)
    first = Numbers(max_eval_examples=5).eval_examples("test")
    torch.manual_seed(2)
    assert Numbers(max_eval_examples=5).eval_examples("test") == first


def test_empty_corpus_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Numbers, "size", 0)
    with pytest.raises(UserError, match="split 'train' of Numbers is empty"):
        Numbers().split("train")


@pytest.mark.parametrize(
    ("options", "flag"),
    [
        ({"batch_size": 0}, "--data.batch_size"),
        ({"eval_batch_size": 0}, "--data.eval_batch_size"),
        ({"max_eval_examples": 0}, "--data.max_eval_examples"),
        ({"eval_splits": ["train", "dev"]}, "--data.eval_splits"),
    ],
)
def test_bad_option_is_refused_by_name(options: dict, flag: str) -> None:
    with pytest.raises(UserError, match=flag):
        Numbers(**options)


def test_unknown_split_is_told_the_known_ones() -> None:
    with pytest.raises(UserError, match="no split 'dev'; choose from train, test"):
        Numbers(eval_splits=["dev"])


def test_a_window_that_just_fits_is_accepted(encoder: ChatEncoder) -> None:
    corpus = Numbers()
    needed = max(
        len(encoder.prompt(naive_context(example)) + encoder.target(example.target)) for example in corpus.split("train")
    )
    serve(corpus, FakeMethod(encoder, context_window=needed, max_new_tokens=1)).prepare_data()


def test_training_example_longer_than_the_window_is_named(encoder: ChatEncoder) -> None:
    corpus = Numbers()
    first_with_two_digits = corpus.split("train")[10]
    needed = len(encoder.prompt(naive_context(first_with_two_digits)) + encoder.target(first_with_two_digits.target))
    with pytest.raises(UserError, match=f"'train-10' and its answer need {needed} tokens, .* has {needed - 1}"):
        serve(corpus, FakeMethod(encoder, context_window=needed - 1, max_new_tokens=1)).prepare_data()


def test_question_without_room_for_its_answer_is_named(encoder: ChatEncoder) -> None:
    method = FakeMethod(encoder, context_window=100, max_new_tokens=99)
    with pytest.raises(UserError, match=r"'test-0'.*--model\.max_new_tokens"):
        serve(Numbers(eval_splits=["test"]), method).prepare_data()


def test_one_epoch_trains_on_every_example_once(encoder: ChatEncoder) -> None:
    order = training_order(serve(Numbers(batch_size=6), FakeMethod(encoder)))
    assert sorted(order) == list(range(20))
    assert order != list(range(20))


def test_training_order_hangs_on_the_seed_alone(encoder: ChatEncoder) -> None:
    torch.manual_seed(1)
    first = training_order(serve(Numbers(), FakeMethod(encoder)))
    torch.manual_seed(2)
    assert training_order(serve(Numbers(), FakeMethod(encoder))) == first
    assert training_order(serve(Numbers(seed=7), FakeMethod(encoder))) != first


def test_nothing_to_train_on_is_refused(encoder: ChatEncoder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FakeMethod, "training_items", lambda self, examples: [])
    with pytest.raises(UserError, match=r"--model\.on_reject gold"):
        serve(Numbers(), FakeMethod(encoder)).train_dataloader()


def test_validation_serves_each_split_with_its_naive_prompts(encoder: ChatEncoder) -> None:
    corpus = serve(Numbers(eval_splits=["test", "train"], eval_batch_size=15), FakeMethod(encoder))
    batches = [list(loader) for loader in corpus.val_dataloader()]
    assert [[(batch.split, len(batch.examples)) for batch in split] for split in batches] == [
        [("test", 15), ("test", 5)],
        [("train", 15), ("train", 5)],
    ]
    last = batches[0][1]
    assert last.prompts == [encoder.prompt(naive_context(example)) for example in last.examples]


def test_a_corpus_alone_says_that_it_needs_a_trainer() -> None:
    with pytest.raises(RuntimeError, match="Trainer"):
        Numbers().prepare_data()
