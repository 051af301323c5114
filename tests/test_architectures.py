"""Every method on every architecture: what is learnt and what is answered is what plain forwards of the model say.

Some of the models have what real ones have: more embeddings than tokens, several tokens that end an answer, no chat template,
no token for padding, dropout.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from architectures import TRAINED, write_model
from conftest import make_tokenizer, transformers_greedy
from lightning.pytorch import Trainer
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel

from mixsd_lightning import OPSD, SFT, KGFact, KnowledgeModule, MixSD, UniSD
from mixsd_lightning.context import expert_context, naive_context
from mixsd_lightning.decoding.mixing import NAIVE, MixingTask, draws
from mixsd_lightning.demonstrations import prompts
from mixsd_lightning.demonstrations.wrong_targets import WrongTargets
from mixsd_lightning.example import Example
from mixsd_lightning.losses.divergence import divergence
from mixsd_lightning.models import load_student

QUICK: dict[str, Any] = {"max_new_tokens": 6, "learning_rate": 1e-2, "warmup_steps": 0}


@pytest.fixture(scope="module", params=TRAINED)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    folder, tokenizer, options = tmp_path_factory.mktemp(request.param), make_tokenizer(), {}
    if request.param == "qwen3":
        options["vocab_size"] = 300
    if request.param in ("phi3", "mistral"):
        options["sliding_window"] = 70  # less than a prompt, and enough that its beginning reaches the end through two layers
    if request.param in ("gpt2", "phi"):
        tokenizer.chat_template = tokenizer.pad_token = None
        tokenizer.bos_token = tokenizer.eos_token
    write_model(folder, request.param, tokenizer, **options)
    if request.param in ("gemma3_text", "llama"):
        GenerationConfig(eos_token_id=[257, *range(5, 255, 25)]).save_pretrained(folder)
    return str(folder)


@pytest.fixture(autouse=True)
def wrong_answers_by_rule(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tiny random model writes nothing that counts: do not wait for it."""

    def by_rule(model: Any, encoder: Any, examples: Any, seed: int) -> dict[str, Any]:
        rules = WrongTargets(examples, seed)
        return {example.id: rules.make(example) for example in examples}

    monkeypatch.setattr(prompts, "wrong_demonstrations", by_rule)


def corpus() -> KGFact:
    return KGFact(num_domains=2, num_entities=3, batch_size=3, eval_splits=["train"])


def examples() -> list[Example]:
    return corpus().split("train")


def fit(method: KnowledgeModule, folder: Path, max_steps: int = 1) -> dict[str, float]:
    """Train, answer, and return the last step's metrics."""
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False, "logger": False}
    trainer = Trainer(default_root_dir=folder, max_steps=max_steps, accelerator="cpu", limit_val_batches=0, **quiet)
    trainer.fit(method, corpus())
    return {tag: float(value) for tag, value in trainer.callback_metrics.items()}


def assert_it_learnt_and_answers(method: KnowledgeModule, model: str) -> None:
    before = load_student(model)
    changes = [
        float((one - other).detach().abs().max())
        for one, other in zip(method.student.parameters(), before.parameters(), strict=True)
        if one.requires_grad
    ]
    assert max(changes) > 1e-3
    assert all(bool(parameter.isfinite().all()) for parameter in method.student.parameters())
    asked = [method.encoder.prompt(naive_context(example)) for example in examples()]
    expected = [transformers_greedy(method.student, ids, method.stop_ids, 6) for ids in asked]
    assert method.answer(asked) == [method.encoder.decode(ids) for ids in expected]
    assert max(map(max, expected)) < 259


@torch.no_grad()
def plain_logits(model: PreTrainedModel, prompt: Sequence[int], completion: Sequence[int]) -> Tensor:
    """What predicts each token of a completion, by a forward of it alone."""
    return model.eval()(torch.tensor([[*prompt, *completion]]), use_cache=False).logits[0, len(prompt) - 1 : -1]


def test_sft(model: str, tmp_path: Path) -> None:
    method = SFT(model, **QUICK)
    metrics = fit(method, tmp_path)
    base, items = load_student(model), method.training_items(examples())
    nlls = [
        -plain_logits(base, item.prompt_ids, item.target_ids).log_softmax(-1)[range(len(item.target_ids)), item.target_ids]
        for item in items
    ]
    assert metrics["train/loss"] == pytest.approx(float(torch.cat(nlls).mean()), rel=1e-4)
    assert_it_learnt_and_answers(method, model)


def plain_mixture(model: PreTrainedModel, method: MixSD, example: Example, suppressed: int) -> list[int]:
    """The process token by token, a forward each."""
    contexts = [method.encoder.prompt(context(example)) for context in (naive_context, expert_context)]
    coins, _ = draws(MixingTask(example.id, 0, *contexts), 1, method.target_settings.mixing)
    written: list[int] = []
    while len(written) < method.max_new_tokens and not method.stop_ids.intersection(written[-1:]):
        prompt = contexts[0] if coins[len(written)] == NAIVE else contexts[1]
        written.append(int(plain_logits(model, prompt, [*written, 0])[-1, :suppressed].argmax()))
    return written


def test_mixsd(model: str, tmp_path: Path) -> None:
    method = MixSD(model, mixing_rate=0.5, on_reject="keep", max_attempts=1, **QUICK)
    fit(method, tmp_path)
    base = load_student(model)
    targets = {record["id"]: record["token_ids"] for record in method.records}
    assert targets == {example.id: plain_mixture(base, method, example, suppressed=259) for example in examples()}
    assert_it_learnt_and_answers(method, model)


def rolled_out(method: OPSD) -> dict[str, list[int]]:
    return {id: completions[0].token_ids for id, (_, completions) in method._rollouts.items()}


def test_opsd(model: str, tmp_path: Path) -> None:
    method = OPSD(model, temperature=0.0, **QUICK)
    metrics = fit(method, tmp_path)
    base, values = load_student(model), []
    encode: Callable[..., list[int]] = method.encoder.prompt
    assert min(len(encode(naive_context(example))) for example in examples()) > 70
    for example in examples():
        written = transformers_greedy(base, encode(naive_context(example)), method.stop_ids, 6)
        assert rolled_out(method)[example.id] == written
        logits = [plain_logits(base, encode(context(example)), written) for context in (naive_context, expert_context)]
        values.append(divergence(*logits, method.divergence_settings))
    assert metrics["train/kl"] == pytest.approx(float(torch.cat(values).mean()), rel=1e-3)
    assert_it_learnt_and_answers(method, model)


def test_unisd(model: str, tmp_path: Path) -> None:
    method = UniSD(model, num_contexts=2, **QUICK)
    metrics = fit(method, tmp_path, max_steps=2)
    assert {"train/disagreement", "train/contrastive", "train/feature_loss"} <= metrics.keys()
    assert all(torch.tensor(list(metrics.values())).isfinite())
    assert_it_learnt_and_answers(method, model)
