"""The training loop that all methods share, with SFT as the simplest of them."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer

from mixsd_lightning import SFT, KGFact
from mixsd_lightning.context import naive_context
from mixsd_lightning.data.batches import collate_training
from mixsd_lightning.errors import UserError
from mixsd_lightning.models import load_student
from mixsd_lightning.target_likelihood import batch_nll, likelihood_tags, token_nlls


def quiet_trainer(folder: Path, **options: Any) -> Trainer:
    settings = {"max_steps": 1, "logger": False, "enable_checkpointing": False, "num_sanity_val_steps": 0}
    settings |= {"enable_progress_bar": False, "enable_model_summary": False, "limit_val_batches": 0}
    return Trainer(default_root_dir=folder, accelerator="cpu", **(settings | options))


def tiny_corpus(**options: Any) -> KGFact:
    return KGFact(**({"num_domains": 2, "num_entities": 8, "batch_size": 4, "eval_splits": ["train"]} | options))


class SpiedSFT(SFT):
    """Remembers the gradients that the optimizer gets."""

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        super().on_before_optimizer_step(optimizer)
        self.gradients = [parameter.grad.clone() for parameter in self.student.parameters() if parameter.grad is not None]


def gradients_of_first_step(folder: Path, model: str, batch_size: int, accumulate: int) -> list[torch.Tensor]:
    method = SpiedSFT(model)
    quiet_trainer(folder, accumulate_grad_batches=accumulate).fit(method, tiny_corpus(batch_size=batch_size))
    return method.gradients


def test_items_are_the_naive_prompt_and_the_canonical_answer_with_its_end_of_turn(tiny_model_path: str) -> None:
    method, corpus = SFT(tiny_model_path), tiny_corpus()
    example = corpus.split("train")[0]
    (item,) = method.training_items([example])
    assert item.prompt_ids == method.encoder.prompt(naive_context(example))
    assert method.encoder.tokenizer.decode(item.target_ids) == example.target + "<|im_end|>"


def test_batch_nll_equals_a_forward_of_each_sequence_alone(tiny_model_path: str, tiny_model: Any) -> None:
    items = SFT(tiny_model_path).training_items(tiny_corpus().split("train")[:5])
    total, count = 0.0, 0
    for item in items:
        with torch.no_grad():
            logits = tiny_model(torch.tensor([item.prompt_ids + item.target_ids])).logits[0].log_softmax(-1)
        start = len(item.prompt_ids) - 1
        total -= sum(float(logits[start + index, token]) for index, token in enumerate(item.target_ids))
        count += len(item.target_ids)
    nll_sum, nll_N = batch_nll(tiny_model, collate_training(items))
    assert len(nll_N) == count
    assert float(nll_sum) == pytest.approx(total, rel=1e-5)


@pytest.mark.parametrize("num_known", [0, 3, 8])
def test_targets_are_described_by_what_is_known_of_them_and_the_base_model(
    tiny_model_path: str, tmp_path: Path, num_known: int
) -> None:
    method, corpus = SFT(tiny_model_path), tiny_corpus()
    quiet_trainer(tmp_path).fit(method, corpus)
    items = method.training_items(corpus.split("train"))
    known = [replace(item, base_nlls=[7.0] * len(item.target_ids)) for item in items[:num_known]]
    method.describe_items(known + items[num_known:])
    unknown = token_nlls(load_student(tiny_model_path), items[num_known:], 8)
    expected = likelihood_tags([item.base_nlls for item in known] + unknown)
    assert method.target_statistics == pytest.approx(expected, rel=1e-5)
    assert len(method.target_nlls) == sum(len(item.target_ids) for item in items)


def test_of_many_targets_some_are_described_evenly(
    tiny_model_path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    method, corpus = SFT(tiny_model_path), tiny_corpus()
    quiet_trainer(tmp_path).fit(method, corpus)
    monkeypatch.setattr("mixsd_lightning.modules.supervised.MOST_DESCRIBED", 3)
    items = method.training_items(corpus.split("train"))
    assert len(items) == 8
    method.describe_items(items)
    expected = likelihood_tags(token_nlls(load_student(tiny_model_path), [items[0], items[2], items[5]], 8))
    assert method.target_statistics == pytest.approx(expected, rel=1e-5)
    assert method.taught_ids == {item.example_id for item in items}
    method.describe_items([replace(item, base_nlls=[7.0]) for item in items])  # what is known costs nothing
    assert method.target_nlls == [7.0] * 8


def test_accumulated_micro_batches_give_the_gradient_of_one_large_batch(tiny_model_path: str, tmp_path: Path) -> None:
    whole = gradients_of_first_step(tmp_path, tiny_model_path, batch_size=8, accumulate=1)
    parts = gradients_of_first_step(tmp_path, tiny_model_path, batch_size=2, accumulate=4)
    assert any(float(gradient.abs().max()) > 1e-3 for gradient in whole)
    for one, other in zip(whole, parts, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_no_gradient_lies_beside_a_forward_pass_unless_it_accumulates(tiny_model_path: str, tmp_path: Path) -> None:
    class Watching(SFT):
        def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
            has_gradients.append(any(parameter.grad is not None for parameter in self.student.parameters()))
            return super().training_step(batch, batch_idx)

    has_gradients: list[bool] = []
    trainer = quiet_trainer(tmp_path, accumulate_grad_batches=2, max_steps=2)
    trainer.fit(Watching(tiny_model_path), tiny_corpus(batch_size=2))
    assert has_gradients == [False, True, False, True]


def test_the_gradient_is_that_of_the_mean_over_target_tokens(tiny_model_path: str, tiny_model: Any, tmp_path: Path) -> None:
    seen = gradients_of_first_step(tmp_path, tiny_model_path, batch_size=8, accumulate=1)
    items = SFT(tiny_model_path).training_items(tiny_corpus().split("train"))
    assert len(items) == 8
    nll_sum, nll_N = batch_nll(tiny_model, collate_training(items))
    (nll_sum / len(nll_N)).backward()
    for one, parameter in zip(seen, tiny_model.parameters(), strict=True):
        torch.testing.assert_close(one, parameter.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize("algorithm", ["norm", "value"])
def test_gradients_are_clipped_in_every_precision(
    tiny_model_path: str, tmp_path: Path, precision: str, algorithm: str
) -> None:
    seen: list[torch.Tensor] = []

    class ClippedSFT(SFT):
        def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, closure: Any = None) -> None:
            def spied() -> Any:
                loss = closure()
                seen.extend(p.grad.flatten() for p in self.student.parameters() if p.grad is not None)
                return loss

            super().optimizer_step(epoch, batch_idx, optimizer, spied)

    settings = {"gradient_clip_val": 1e-3, "gradient_clip_algorithm": algorithm, "precision": precision}
    quiet_trainer(tmp_path, max_steps=2, **settings).fit(ClippedSFT(tiny_model_path), tiny_corpus())
    # What the optimizer was given at its last step is still there.
    gradients = torch.cat(seen[-len(seen) // 2 :])
    largest = gradients.norm() if algorithm == "norm" else gradients.abs().max()
    assert float(largest) == pytest.approx(1e-3, rel=1e-3)


def test_the_learning_rate_warms_up_and_stays(tiny_model_path: str) -> None:
    method = SFT(tiny_model_path, learning_rate=1.0, warmup_steps=4)
    method.configure_model()
    configured: Any = method.configure_optimizers()
    schedule = configured["lr_scheduler"]["scheduler"]
    rates = []
    for _ in range(7):
        rates += schedule.get_last_lr()
        configured["optimizer"].step()
        schedule.step()
    assert rates == pytest.approx([0.25, 0.5, 0.75, 1, 1, 1, 1])


def test_sft_learns_a_fact_by_heart(tiny_model_path: str, tmp_path: Path) -> None:
    method = SFT(tiny_model_path, learning_rate=2e-2, max_new_tokens=80)
    corpus = tiny_corpus(num_entities=1, batch_size=1)
    quiet_trainer(tmp_path, max_steps=150).fit(method, corpus)
    (scores,) = quiet_trainer(tmp_path, limit_val_batches=None).validate(method, corpus, verbose=False)
    assert scores["memorization/train"] == 1
    assert scores["memorization/train_loose"] == 1


@pytest.mark.parametrize("option", [{"learning_rate": 0.0}, {"warmup_steps": -1}, {"max_new_tokens": 0}])
def test_impossible_settings_are_refused_by_flag(option: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=f"--model.{next(iter(option))} must"):
        SFT(**option)


def test_a_prompt_beyond_the_window_is_refused_before_anything_is_written(tiny_model_path: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="window has 8192"):
        quiet_trainer(tmp_path, limit_val_batches=None).fit(SFT(tiny_model_path, max_new_tokens=9000), tiny_corpus())
    assert not list(tmp_path.iterdir())


def test_a_checkpoint_loads_from_python(tiny_model_path: str, tmp_path: Path) -> None:
    method = SFT(tiny_model_path, learning_rate=1e-2)
    trainer = quiet_trainer(tmp_path)
    trainer.fit(method, tiny_corpus())
    trainer.save_checkpoint(tmp_path / "saved.ckpt")
    loaded = SFT.load_from_checkpoint(tmp_path / "saved.ckpt")
    assert loaded.completed_steps == 1
    for one, other in zip(method.student.parameters(), loaded.student.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


def test_questions_that_have_a_target_are_also_counted_apart(tiny_model_path: str, tmp_path: Path) -> None:
    method, corpus = SFT(tiny_model_path, max_new_tokens=4), tiny_corpus()
    method.taught_ids = {example.id for example in corpus.split("train")[:3]}
    (scores,) = quiet_trainer(tmp_path, limit_val_batches=None).validate(method, corpus, verbose=False)
    assert scores["memorization/train_count"] == 8
    assert scores["memorization/taught_count"] == 3


def test_fit_knows_what_it_teaches(tiny_model_path: str, tmp_path: Path) -> None:
    method, corpus = SFT(tiny_model_path), tiny_corpus()
    quiet_trainer(tmp_path).fit(method, corpus)
    assert method.taught_ids == {example.id for example in corpus.split("train")}
    items = method.training_items(corpus.split("train"))
    nlls = token_nlls(load_student(tiny_model_path), items, 8)
    assert method.target_statistics == pytest.approx(likelihood_tags(nlls), rel=1e-5)  # not the trained student's
