"""OPSD: its loss by hand, who writes, what is used again, and a resumed run that ends as the one that was never stopped."""

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger

from mixsd_lightning import OPSD, KGFact
from mixsd_lightning.context import expert_context, naive_context
from mixsd_lightning.data.batches import TrainItem
from mixsd_lightning.decoding.generation import Completion
from mixsd_lightning.errors import UserError
from mixsd_lightning.losses.divergence import DivergenceSettings, divergence
from mixsd_lightning.models import load_student
from mixsd_lightning.modules import opsd
from mixsd_lightning.target_likelihood import likelihood_tags, token_nlls

QUICK: dict[str, Any] = {"max_new_tokens": 6, "learning_rate": 1e-2, "warmup_steps": 0}


class Log(Callback):
    """Every training step's metrics and rollouts."""

    def __init__(self) -> None:
        self.metrics: list[dict[str, float]] = []
        self.ids: list[list[str]] = []

    def on_train_batch_end(self, trainer: Trainer, method: LightningModule, outputs: Any, batch: Any, index: int) -> None:
        tags = {tag: float(value) for tag, value in trainer.callback_metrics.items()}
        self.metrics.append(tags)
        self.ids.append([item.example.id for item in batch.items])


def corpus(**options: Any) -> KGFact:
    return KGFact(**({"num_domains": 2, "num_entities": 6, "batch_size": 2, "eval_splits": ["train"]} | options))


def fit(folder: Path, method: OPSD, data: KGFact | None = None, ckpt_path: str | None = None, **options: Any) -> Log:
    log = Log()
    settings: dict[str, Any] = {"max_epochs": 2, "limit_val_batches": 0, "enable_progress_bar": False}
    settings |= {
        "accelerator": "cpu",
        "enable_model_summary": False,
        "logger": CSVLogger(folder),
        "enable_checkpointing": False,
    }
    callbacks = [log, *options.pop("callbacks", [])]
    trainer = Trainer(**(settings | options), callbacks=callbacks, log_every_n_steps=1)
    trainer.fit(method, data or corpus(), ckpt_path=ckpt_path)
    return log


def weights(method: OPSD) -> list[torch.Tensor]:
    return [parameter.detach().clone() for parameter in method.student.parameters() if parameter.requires_grad]


def fixed_rollouts(monkeypatch: pytest.MonkeyPatch, token_ids: list[int]) -> list[dict[str, Any]]:
    """Everybody writes the same; returns what was asked."""
    asked: list[dict[str, Any]] = []

    def roll_out(model: Any, prompts: Any, keys: Any, sampling: Any, **options: Any) -> list[list[Completion]]:
        asked.append({"model": model, "prompts": prompts, "keys": keys, **options})
        return [[Completion(list(token_ids), "stop") for _ in range(options["num_rollouts"])] for _ in prompts]

    monkeypatch.setattr(opsd, "roll_out", roll_out)
    return asked


@pytest.mark.parametrize("skip", [0, 1, 5])
def test_the_loss_is_the_mean_divergence_along_the_rollouts(
    tiny_model_path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, skip: int
) -> None:
    token_ids = [70, 71, 72]
    fixed_rollouts(monkeypatch, token_ids)
    method = OPSD(tiny_model_path, divergence="jsd", divergence_weight=0.3, skip_first_tokens=skip, **QUICK)
    data = corpus(batch_size=4)
    log = fit(tmp_path, method, data, max_steps=1)
    model = load_student(tiny_model_path).eval()
    by_id = {example.id: example for example in data.split("train")}
    values = []
    for id in log.ids[0]:
        logits = []
        for context in (naive_context, expert_context):
            prompt = method.encoder.prompt(context(by_id[id]))
            with torch.no_grad():
                logits.append(model(torch.tensor([prompt + token_ids])).logits[0, len(prompt) - 1 : -1][skip:])
        values += divergence(*logits, DivergenceSettings("jsd", 0.3)).tolist()
    assert log.metrics[0]["train/kl"] == pytest.approx(sum(values) / max(1, len(values)), rel=1e-4)
    assert len(values) == 4 * max(0, 3 - skip)
    assert log.metrics[0]["train/completion_length"] == 3


def test_rollouts_that_were_cut_short_are_not_trained_on_if_so_asked(
    tiny_model_path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def roll_out(model: Any, prompts: Any, *args: Any, **options: Any) -> list[list[Completion]]:
        reasons = ["stop", "max_new_tokens"]
        return [[Completion([70 + index, 71, 72], reasons[index % 2])] for index, _ in enumerate(prompts)]

    monkeypatch.setattr(opsd, "roll_out", roll_out)
    kl = {}
    for name, options in {"all": {}, "masked": {"mask_truncated": True}}.items():
        log = fit(tmp_path / name, OPSD(tiny_model_path, **options, **QUICK), corpus(batch_size=4), max_steps=1)
        kl[name] = log.metrics[0]["train/kl"]
    # A batch in which everything is cut short has nothing to train on, and harms nothing.
    monkeypatch.setattr(opsd, "roll_out", lambda m, prompts, *a, **o: [[Completion([70], "max_new_tokens")] for _ in prompts])
    method = OPSD(tiny_model_path, mask_truncated=True, **(QUICK | {"weight_decay": 0.0}))
    log = fit(tmp_path / "none", method, corpus(batch_size=4), max_steps=1)
    assert log.metrics[0]["train/kl"] == 0
    for one, other in zip(weights(method), load_student(tiny_model_path).parameters(), strict=True):
        assert torch.equal(one, other)
    # Half of the rollouts, which are the first and the third of four, trained on alone.
    monkeypatch.setattr(opsd, "roll_out", roll_out)
    assert kl["masked"] != pytest.approx(kl["all"], rel=1e-3)
    data = corpus(batch_size=4)
    by_id = {example.id: example for example in data.split("train")}
    model, values = load_student(tiny_model_path).eval(), []
    ids = fit(tmp_path / "ids", OPSD(tiny_model_path, **QUICK), data, max_steps=1).ids[0]
    for index in (0, 2):
        tokens, logits = [70 + index, 71, 72], []
        for context in (naive_context, expert_context):
            prompt = method.encoder.prompt(context(by_id[ids[index]]))
            with torch.no_grad():
                logits.append(model(torch.tensor([prompt + tokens])).logits[0, len(prompt) - 1 : -1])
        values += divergence(*logits, DivergenceSettings()).tolist()
    assert kl["masked"] == pytest.approx(sum(values) / 6, rel=1e-4)


def test_a_quantile_limits_the_divergence(tiny_model_path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fixed_rollouts(monkeypatch, [70, 71, 72])
    losses = {}
    for quantile in (0.5, None):
        method = OPSD(tiny_model_path, max_divergence_quantile=quantile, **QUICK)
        losses[quantile] = fit(tmp_path / str(quantile), method, corpus(batch_size=4), max_steps=1).metrics[0]
    assert losses[0.5]["train/kl"] == pytest.approx(losses[None]["train/kl"])
    assert 0 < losses[0.5]["train/loss"] < losses[None]["train/loss"]
    assert losses[0.5]["train/loss"] < losses[0.5]["train/divergence_limit"]


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_equal_contexts_and_weights_teach_nothing(
    tiny_model_path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: Any
) -> None:
    monkeypatch.setattr(opsd, "expert_context", naive_context)
    method = OPSD(tiny_model_path, teacher="shared", **(QUICK | {"weight_decay": 0.0}))
    log = fit(tmp_path, method, max_steps=3, precision=precision)
    assert [metrics["train/kl"] for metrics in log.metrics] == pytest.approx([0, 0, 0], abs=1e-6)


@pytest.mark.parametrize("lora_rank", [0, 2])
def test_rollouts_are_described_by_their_likelihood_under_the_base_model(
    tiny_model_path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lora_rank: int
) -> None:
    if lora_rank:
        pytest.importorskip("peft")
    token_ids = [70, 71, 72]
    fixed_rollouts(monkeypatch, token_ids)
    method = OPSD(tiny_model_path, nll_every_n_steps=2, lora_rank=lora_rank, **(QUICK | {"learning_rate": 0.1}))
    data = corpus()
    log = fit(tmp_path, method, data, max_steps=3)
    base = load_student(tiny_model_path)
    by_id = {example.id: example for example in data.split("train")}
    found = [metrics["targets/nll_base"] for metrics in log.metrics]
    for step in (0, 2):
        prompts = [method.encoder.prompt(naive_context(by_id[id])) for id in log.ids[step]]
        nlls = token_nlls(base, [TrainItem("", prompt, token_ids) for prompt in prompts], 1)
        assert found[step] == pytest.approx(likelihood_tags(nlls)["targets/nll_base"], rel=1e-4)
    assert found[0] == found[1] != found[2]  # in between, the last value stays
    assert method.target_nlls == pytest.approx([nll for row in nlls for nll in row], rel=1e-4)


@pytest.mark.parametrize("options", [{"nll_every_n_steps": 0}, {"teacher": "ema"}, {"teacher": "shared"}])
def test_likelihoods_are_left_out_where_they_are_not_wanted_or_no_base_model_is_at_hand(
    tiny_model_path: str, tmp_path: Path, options: dict[str, Any]
) -> None:
    log = fit(tmp_path, OPSD(tiny_model_path, **options, **QUICK), max_steps=1)
    assert [tag for tag in log.metrics[0] if tag.startswith("targets/")] == []


class Gradients(Callback):
    """What the optimizer got at its first step."""

    def on_before_optimizer_step(self, trainer: Trainer, method: LightningModule, optimizer: Any) -> None:
        assert isinstance(method, OPSD)
        self.first = [parameter.grad.clone() for parameter in method.student.parameters() if parameter.grad is not None]


def test_accumulated_batches_are_one_batch(tiny_model_path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rollouts differ in length, so a mean of the batches' means would be something else."""
    monkeypatch.setattr(OPSD, "stop_ids", frozenset(range(0, 10_000, 3)))
    gradients = []
    for batch_size in (1, 4):
        recorder, method = Gradients(), OPSD(tiny_model_path, **QUICK)
        data = corpus(num_entities=4, batch_size=batch_size)
        options = {"max_steps": 1, "accumulate_grad_batches": 4 // batch_size, "callbacks": [recorder]}
        log = fit(tmp_path, method, data, **options)
        assert len({metrics["train/completion_length"] for metrics in log.metrics}) > (batch_size == 1)
        gradients.append(recorder.first)
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("policy", ["student", "teacher"])
def test_who_writes_sees_their_own_prompt(
    tiny_model_path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, policy: Any
) -> None:
    asked = fixed_rollouts(monkeypatch, [70])
    method, data = OPSD(tiny_model_path, rollout_policy=policy, num_rollouts=2, **QUICK), corpus()
    log = fit(tmp_path, method, data, max_steps=1)
    by_id = {example.id: example for example in data.split("train")}
    context = expert_context if policy == "teacher" else naive_context
    assert asked[0]["prompts"] == [method.encoder.prompt(context(by_id[id])) for id in log.ids[0]]
    assert (asked[0]["model"] is method.student) == (policy == "student")
    assert asked[0]["num_rollouts"] == 2


def test_rollouts_are_used_as_often_as_asked(tiny_model_path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = fixed_rollouts(monkeypatch, [70, 71])
    data = corpus()
    num_batches = -(-len(data.split("train")) // 2)
    log = fit(tmp_path, OPSD(tiny_model_path, updates_per_rollout=3, **QUICK), data, max_epochs=1)
    assert len(log.ids) == 3 * num_batches
    assert log.ids == [ids for ids in log.ids[::3] for _ in range(3)]
    assert len(asked) == num_batches
    assert len({key for call in asked for key in call["keys"]}) == len(data.split("train"))


def test_a_rollout_is_made_anew_at_every_step(tiny_model_path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = fixed_rollouts(monkeypatch, [70, 71])
    fit(tmp_path, OPSD(tiny_model_path, **QUICK))
    keys = [key for call in asked for key in call["keys"]]
    assert len(keys) == len(set(keys))


@pytest.mark.parametrize(
    "options",
    [
        {"teacher": "ema", "ema_decay": 0.5},
        {"teacher": "ema", "ema_decay": 0.5, "lora_rank": 2},
        {"teacher": "frozen", "updates_per_rollout": 2},
        {"teacher": "shared", "lora_rank": 2, "num_rollouts": 2},
    ],
    ids=str,
)
def test_a_resumed_run_equals_the_uninterrupted_one(tiny_model_path: str, tmp_path: Path, options: dict[str, Any]) -> None:
    def method() -> OPSD:
        torch.manual_seed(0)  # the adapter starts at random
        return OPSD(tiny_model_path, **(QUICK | options))

    whole = method()
    fit(tmp_path / "whole", whole, max_epochs=2)
    first = method()
    checkpoint = ModelCheckpoint(tmp_path / "saved", save_last=True)
    fit(tmp_path / "first", first, max_epochs=1, callbacks=[checkpoint], enable_checkpointing=True)
    again = method()
    fit(tmp_path / "again", again, max_epochs=2, ckpt_path=str(tmp_path / "saved" / "last.ckpt"))
    for one, other in zip(weights(whole), weights(again), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)
    assert whole.teacher is not None
    assert again.teacher is not None
    for name, value in whole.teacher.state_dict().items():
        assert torch.equal(value, again.teacher.state_dict()[name])


def test_checkpoints_hold_what_cannot_be_made_again(tiny_model_path: str, tmp_path: Path) -> None:
    for name, options, has_average in (
        ("frozen", {}, False),
        ("ema", {"teacher": "ema"}, True),
        ("lora", {"lora_rank": 2}, False),
    ):
        checkpoint = ModelCheckpoint(tmp_path / name, save_last=True)
        fit(
            tmp_path,
            OPSD(tiny_model_path, **(QUICK | options)),
            max_steps=1,
            callbacks=[checkpoint],
            enable_checkpointing=True,
        )
        saved = torch.load(tmp_path / name / "last.ckpt", weights_only=True)
        assert bool(saved["teacher"]) == has_average
        assert all(key.startswith("student.") for key in saved["state_dict"])
        assert all(".lora_" in key for key in saved["state_dict"]) == (name == "lora")


def test_an_average_is_not_resumed_from_a_run_without_one(tiny_model_path: str, tmp_path: Path) -> None:
    checkpoint = ModelCheckpoint(tmp_path, save_last=True)
    fit(tmp_path, OPSD(tiny_model_path, **QUICK), max_steps=1, callbacks=[checkpoint], enable_checkpointing=True)
    with pytest.raises(UserError, match="no EMA teacher"):
        fit(tmp_path, OPSD(tiny_model_path, teacher="ema", **QUICK), ckpt_path=str(tmp_path / "last.ckpt"))


def test_the_divergence_falls(tiny_model_path: str, tmp_path: Path) -> None:
    method = OPSD(tiny_model_path, temperature=0.0, **(QUICK | {"learning_rate": 3e-3}))
    log = fit(tmp_path, method, corpus(num_entities=2), max_epochs=60)
    values = [metrics["train/kl"] for metrics in log.metrics]
    assert sum(values[-8:]) < 0.5 * sum(values[:8])


def test_what_is_logged(tiny_model_path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = corpus(num_domains=2, num_entities=1, batch_size=1)
    (example,) = data.split("train")
    method = OPSD(tiny_model_path, **QUICK)
    fixed_rollouts(monkeypatch, method.encoder.target(example.fact))
    log = fit(tmp_path, method, data, max_steps=1)
    metrics = log.metrics[0]
    assert set(metrics) >= {"train/loss", "train/kl", "train/entropy", "train/completion_length", "train/truncated"}
    assert metrics["train/reward"] == 1.0
    assert metrics["train/truncated"] == 0.0
    assert metrics["train/loss"] == pytest.approx(metrics["train/kl"])
    assert method.taught_ids == {example.id}


def test_prompts_beyond_a_limit_are_named(tiny_model_path: str, tmp_path: Path) -> None:
    for flag in ("max_prompt_tokens", "max_teacher_prompt_tokens"):
        with pytest.raises(UserError, match=f"has .* tokens, 10 are allowed by --model.{flag}"):
            fit(tmp_path, OPSD(tiny_model_path, **{flag: 10}, **QUICK))


@pytest.mark.parametrize(
    "option",
    [
        {"divergence_weight": 1.5},
        {"distillation_temperature": 0.0},
        {"teacher_top_k": -1},
        {"max_divergence_per_token": 0.0},
        {"max_divergence_quantile": 0.0},
        {"max_divergence_quantile": 1.0},
        {"skip_first_tokens": -1},
        {"ema_decay": -0.1},
        {"ema_every_n_steps": 0},
        {"num_rollouts": 0},
        {"updates_per_rollout": 0},
        {"temperature": -1.0},
        {"top_k": -1},
        {"top_p": 0.0},
        {"top_p": 1.1},
        {"generation_batch_size": 0},
    ],
    ids=str,
)
def test_impossible_settings_are_refused_by_flag(option: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=f"--model.{next(iter(option))} must"):
        OPSD(**option)


def test_two_limits_of_the_divergence_exclude_each_other() -> None:
    with pytest.raises(UserError, match="exclude each other"):
        OPSD(max_divergence_per_token=1.0, max_divergence_quantile=0.9)


def test_greedy_rollouts_are_not_repeated() -> None:
    with pytest.raises(UserError, match="num_rollouts above 1"):
        OPSD(temperature=0.0, num_rollouts=2)
