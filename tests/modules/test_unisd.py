"""UniSD: with its mechanisms off it is OPSD, each of them changes the gradient, and what each does is what a plain model says."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from test_opsd import corpus, fit, fixed_rollouts, weights
from torch import Tensor

from mixsd_lightning import OPSD, KGFact, UniSD
from mixsd_lightning.context import Message, expert_context, naive_context
from mixsd_lightning.demonstrations import prompts as prompts_module
from mixsd_lightning.demonstrations.wrong_targets import WrongTargets
from mixsd_lightning.errors import UserError
from mixsd_lightning.models import load_student

QUICK: dict[str, Any] = {"max_new_tokens": 6, "learning_rate": 1e-2, "warmup_steps": 0}
OFF: dict[str, Any] = {"agreement": "none", "contrastive_weight": 0.0, "feature_weight": 0.0, "teacher": "frozen"}
ROLLOUT = [70, 71, 72, 73]


@pytest.fixture(autouse=True)
def wrong_answers_by_rule(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tiny random model writes nothing that counts: do not wait for it."""

    def by_rule(model: Any, encoder: Any, examples: Any, seed: int) -> dict[str, Any]:
        rules = WrongTargets(examples, seed)
        return {example.id: rules.make(example) for example in examples}

    monkeypatch.setattr(prompts_module, "wrong_demonstrations", by_rule)


class FirstGradient(Callback):
    """What the optimizer got at its first step, as one vector."""

    vector: Tensor

    def on_before_optimizer_step(self, trainer: Trainer, method: OPSD, optimizer: Any) -> None:  # type: ignore[override]
        if not hasattr(self, "vector"):
            grads = [p.grad.flatten() for p in method.student.parameters() if p.grad is not None]
            self.vector = torch.cat(grads).clone()


def gradient(folder: Path, method: OPSD, data: KGFact | None = None) -> Tensor:
    recorder = FirstGradient()
    fit(folder, method, data or corpus(batch_size=4), max_steps=1, callbacks=[recorder])
    return recorder.vector


@pytest.mark.parametrize("lora_rank", [0, 2])
def test_with_everything_off_it_is_opsd(tiny_model_path: str, tmp_path: Path, lora_rank: int) -> None:
    if lora_rank:
        pytest.importorskip("peft")

    def run(method_class: type[OPSD], options: dict[str, Any]) -> list[Tensor]:
        torch.manual_seed(0)
        method = method_class(tiny_model_path, lora_rank=lora_rank, **QUICK, **options)
        fit(tmp_path / method_class.__name__, method, max_steps=3)
        return weights(method)

    for one, other in zip(run(OPSD, {}), run(UniSD, OFF), strict=True):
        assert torch.equal(one, other)


def change(plain: Tensor, found: Tensor) -> float:
    """Length of what a mechanism adds to a gradient, as a share of the gradient."""
    assert found.isfinite().all()
    return float((found - plain).norm(dtype=torch.float64) / plain.norm(dtype=torch.float64))


NEUTRAL: dict[str, dict[str, Any]] = {
    "agreement of one context": {"agreement": "token", "num_contexts": 1},
    "agreement without strength": {"agreement": "token", "agreement_strength": 0.0},
    "agreement of a sequence, one context": {"agreement": "sequence", "num_contexts": 1},
    "a hinge that is never reached": {"contrastive_weight": 1.0, "contrastive_margin": 0.0, "feature_weight": 0.0},
    "a limit above everything": {"max_divergence_per_token": 1e9},
    "nothing cut short": {"mask_truncated": True},
    "an average of nothing but the base": {"teacher": "ema", "ema_decay": 1.0},
}


@pytest.mark.parametrize("name", NEUTRAL)
def test_a_mechanism_at_its_neutral_setting_does_nothing(
    name: str, tiny_model_path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fixed_rollouts(monkeypatch, ROLLOUT)
    if "hinge" in name:  # with equally good demonstrations there is nothing to contrast
        monkeypatch.setattr(prompts_module, "negative_context", lambda example, wrong: expert_context(example))
    plain = gradient(tmp_path / "plain", OPSD(tiny_model_path, **QUICK))
    found = gradient(tmp_path / "found", UniSD(tiny_model_path, **(QUICK | OFF | NEUTRAL[name])))
    torch.testing.assert_close(found, plain, rtol=1e-5, atol=1e-8)


ACTIVE: dict[str, dict[str, Any]] = {
    "token agreement": {"agreement": "token"},
    "token agreement by range": {"agreement": "token", "agreement_statistic": "range"},
    "sequence agreement": {"agreement": "sequence"},
    "hinge": {"contrastive_weight": 1.0, "contrastive_margin": 5.0},
    "features": {"feature_weight": 1.0},
    "features alone": {"feature_weight": 1.0, "token_loss_weight": 0.0},
    "features of a layer": {"feature_weight": 1.0, "feature_layers": [1]},
    "limit": {"max_divergence_per_token": 1e-3},
    "quantile": {"max_divergence_quantile": 0.5},
}


@pytest.mark.parametrize("name", ACTIVE)
def test_a_mechanism_changes_the_gradient(
    name: str, tiny_model_path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fixed_rollouts(monkeypatch, ROLLOUT)
    plain = gradient(tmp_path / "plain", OPSD(tiny_model_path, **QUICK))
    found = gradient(tmp_path / "found", UniSD(tiny_model_path, **(QUICK | OFF | ACTIVE[name])))
    assert change(plain, found) > 0.01


@pytest.mark.builtin_model
def test_every_mechanism_changes_the_gradient_of_a_real_model_on_a_real_batch(tmp_path: Path) -> None:
    def found(method_class: type[OPSD], name: str, options: dict[str, Any]) -> Tensor:
        quick = {"max_new_tokens": 16, "temperature": 0.0, "warmup_steps": 0, "nll_every_n_steps": 0}
        return gradient(tmp_path / name, method_class(**(quick | options)), corpus(batch_size=2))

    plain = found(OPSD, "plain", {})
    torch.testing.assert_close(found(UniSD, "off", OFF), plain)
    for name in ("token agreement", "sequence agreement", "hinge", "features", "limit", "quantile"):
        assert change(plain, found(UniSD, name, OFF | ACTIVE[name])) > 0.01, name


def test_an_average_teaches_something_else_than_the_base(
    tiny_model_path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fixed_rollouts(monkeypatch, ROLLOUT)
    kl = {}
    for decay in (1.0, 0.5):
        options = QUICK | OFF | {"teacher": "ema", "ema_decay": decay}
        log = fit(tmp_path / str(decay), UniSD(tiny_model_path, **options), max_steps=2)
        kl[decay] = [metrics["train/kl"] for metrics in log.metrics]
    assert kl[0.5][0] == kl[1.0][0]
    assert kl[0.5][1] != pytest.approx(kl[1.0][1], rel=1e-3)


@pytest.mark.parametrize("augmentation", ["token_drop", "drop_demonstration"])
def test_augmentation_changes_the_weights_of_agreement(
    augmentation: Any, tiny_model_path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fixed_rollouts(monkeypatch, ROLLOUT)
    options = QUICK | OFF | {"agreement": "token", "demos_per_context": 2}
    plain, none, some = (
        gradient(tmp_path / str(number), UniSD(tiny_model_path, **options, **more))
        for number, more in enumerate(
            [{}, {"augmentation": augmentation, "augmentation_share": 0.0}, {"augmentation": augmentation}]
        )
    )
    assert torch.equal(plain, none)
    assert not torch.allclose(plain, some, rtol=1e-3)


@torch.no_grad()
def log_probs(model: Any, prompt: list[int], token_ids: list[int]) -> Tensor:
    logits = model(torch.tensor([prompt + token_ids])).logits[0, len(prompt) - 1 : -1]
    return logits.log_softmax(-1)


@pytest.mark.parametrize("agreement", ["token", "sequence"])
def test_the_loss_is_what_a_plain_model_says(
    agreement: Any, tiny_model_path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All at once, token by token: weights, hinge, features."""
    fixed_rollouts(monkeypatch, ROLLOUT)
    data, model = corpus(batch_size=4), load_student(tiny_model_path).eval()
    method = UniSD(
        tiny_model_path,
        agreement=agreement,
        agreement_strength=2.0,
        num_contexts=3,
        contrastive_weight=0.7,
        contrastive_margin=0.4,
        feature_weight=0.3,
        feature_layers=[1, -1],
        token_loss_weight=0.6,
        teacher="frozen",
        **QUICK,
    )
    log = fit(tmp_path, method, data, max_steps=1)
    by_id = {example.id: example for example in data.split("train")}
    encode = method.encoder.prompt
    divergences, hinges, features, apart = [], [], [], []
    rules = WrongTargets(data.split("train"), 42)
    drawn = prompts_module.random_demonstrations(data.split("train"), 3, 1, 42)
    contexts = dict(zip((e.id for e in data.split("train")), drawn, strict=True))
    for id in log.ids[0]:
        example = by_id[id]
        naive, expert = encode(naive_context(example)), encode(expert_context(example))
        negative = encode(prompts_module.negative_context(example, rules.make(example)))
        student, good, bad = (log_probs(model, prompt, ROLLOUT) for prompt in (naive, expert, negative))
        divergences += (good.exp() * (good - student)).sum(-1).tolist()
        chosen = [values[range(4), ROLLOUT] for values in (student, good, bad)]
        margins = 0.4 + (chosen[0] - chosen[1]).abs() - (chosen[0] - chosen[2]).abs()
        hinges += margins.clamp(min=0).tolist()
        with torch.no_grad():
            states = [
                model(torch.tensor([prompt + ROLLOUT]), output_hidden_states=True).hidden_states for prompt in (naive, expert)
            ]
        per_layer = []
        for layer in (1, -1):
            own, taught = (
                hidden[layer][0, len(prompt) - 1 : -1] for hidden, prompt in zip(states, (naive, expert), strict=True)
            )
            per_layer.append((own - taught).square().mean(-1))
        features += (sum(per_layer) / 2).tolist()
        shown = [encode(prompts_module.with_text_before(example, prompts_module.demonstrations_text(d))) for d in contexts[id]]
        values = torch.stack([log_probs(model, prompt, ROLLOUT)[range(4), ROLLOUT] for prompt in shown])
        apart += (values.var(0) if agreement == "token" else values.mean(1).var().expand(4)).tolist()
    scale = float(torch.tensor(apart).quantile(0.95))
    trust = [1 / (1 + 2.0 * value / scale) for value in apart]
    expected = sum(
        0.6 * w * (d + 0.7 * h) + 0.3 * f for w, d, h, f in zip(trust, divergences, hinges, features, strict=True)
    ) / len(trust)
    metrics = log.metrics[0]
    assert metrics["train/loss"] == pytest.approx(expected, rel=1e-3)
    assert metrics["train/kl"] == pytest.approx(sum(divergences) / 16, rel=1e-3)
    assert metrics["train/contrastive"] == pytest.approx(sum(hinges) / 16, rel=1e-3)
    assert metrics["train/feature_loss"] == pytest.approx(sum(features) / 16, rel=1e-3)
    assert metrics["train/disagreement"] == pytest.approx(sum(apart) / 16, rel=1e-3)
    assert metrics["train/agreement_weight"] == pytest.approx(sum(trust) / 16, rel=1e-3)
    assert metrics["train/effective_sample_size"] == pytest.approx(
        sum(trust) ** 2 / (16 * sum(w * w for w in trust)), rel=1e-3
    )
    assert 0 < min(trust) < 0.5 < max(trust) < 1
    assert max(hinges) > 0


def test_weights_of_sequences_do_not_cancel(tiny_model_path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the published code the same weights stand in the normaliser, and a rollout alone in its batch is not weighted."""
    fixed_rollouts(monkeypatch, ROLLOUT)
    data = corpus(batch_size=1)
    plain = gradient(tmp_path / "plain", OPSD(tiny_model_path, **QUICK), data)
    options = QUICK | OFF | {"agreement": "sequence", "agreement_strength": 3.0}
    found = gradient(tmp_path / "found", UniSD(tiny_model_path, **options), data)
    torch.testing.assert_close(found, plain / 4, rtol=1e-4, atol=1e-8)


@pytest.mark.parametrize("lora_rank", [0, 2])
def test_the_average_moves_and_resumes_exactly(tiny_model_path: str, tmp_path: Path, lora_rank: int) -> None:
    def method() -> UniSD:
        torch.manual_seed(0)
        return UniSD(tiny_model_path, ema_decay=0.5, lora_rank=lora_rank, augmentation="drop_demonstration", **QUICK)

    whole = method()
    fit(tmp_path / "whole", whole, max_epochs=2)
    assert whole.teacher is not None
    base = dict(load_student(tiny_model_path).named_parameters())
    moved = [name for name, value in whole.teacher.state_dict().items() if not torch.equal(value, base[name])]
    assert len(moved) == len(whole.teacher.state_dict()) > 0
    first = method()
    saved = ModelCheckpoint(tmp_path / "saved", save_last=True)
    fit(tmp_path / "first", first, max_epochs=1, callbacks=[saved], enable_checkpointing=True)
    again = method()
    fit(tmp_path / "again", again, max_epochs=2, ckpt_path=str(tmp_path / "saved" / "last.ckpt"))
    for one, other in zip(weights(whole), weights(again), strict=True):
        assert torch.equal(one, other)


def test_one_object_is_fitted_to_another_corpus(tiny_model_path: str, tmp_path: Path) -> None:
    method = UniSD(tiny_model_path, **QUICK)
    fit(tmp_path / "one", method, max_steps=1)
    fit(tmp_path / "two", method, corpus(num_entities=4, seed=1), max_steps=1)


def test_prompts_that_are_too_long_lose_samples_or_stop_the_run(
    tiny_model_path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = corpus()
    method = UniSD(tiny_model_path, **QUICK)
    longest = max(len(method.encoder.prompt(expert_context(example))) for example in data.split("train"))
    asked: list[int] = []
    original: Callable[..., list[int]] = prompts_module.AuxiliaryPrompts.encode
    monkeypatch.setattr(
        prompts_module.AuxiliaryPrompts,
        "encode",
        lambda *args: (asked.append(len(original(*args))), original(*args))[1],
    )
    options = QUICK | {"max_teacher_prompt_tokens": longest + 5, "contrastive_weight": 0.0, "demos_per_context": 3}
    with pytest.warns(UserWarning, match="makes its prompt longer than"):
        fit(tmp_path / "long", UniSD(tiny_model_path, **options), data, max_steps=1)
    assert asked
    assert max(asked) <= longest + 5
    monkeypatch.setattr(prompts_module, "negative_context", lambda example, wrong: [Message("user", "long " * (longest + 9))])
    with pytest.raises(UserError, match="with a wrong demonstration has .* tokens"):
        fit(tmp_path / "wrong", UniSD(tiny_model_path, **(options | {"contrastive_weight": 1.0})), data, max_steps=1)


@pytest.mark.parametrize("layer", [3, -4])
def test_layers_that_are_not_there_are_refused(tiny_model_path: str, tmp_path: Path, layer: int) -> None:
    with pytest.raises(UserError, match=f"--model.feature_layers: there is no layer {layer}"):
        fit(tmp_path, UniSD(tiny_model_path, feature_layers=[layer], **QUICK))


@pytest.mark.parametrize(
    "option",
    [
        {"agreement_strength": -1.0},
        {"num_contexts": 0},
        {"demos_per_context": 0},
        {"num_instructions": 0},
        {"augmentation_share": 1.0},
        {"contrastive_weight": -0.1},
        {"contrastive_margin": -0.1},
        {"feature_weight": -0.1},
        {"token_loss_weight": -0.1},
    ],
    ids=str,
)
def test_impossible_settings_are_refused_by_flag(option: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=f"--model.{next(iter(option))} must"):
        UniSD(**option)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"feature_layers": []}, "--model.feature_layers: name a layer"),
        ({"feature_weight": 0.0, "token_loss_weight": 0.0}, "nothing to learn from"),
    ],
)
def test_settings_that_leave_nothing_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        UniSD(**options)
