"""LoRA: only the adapter trains, the base model is the student without it, and drift is that of the effective weights."""

import sys

import pytest
import torch
from lightning.pytorch import Trainer
from transformers import PreTrainedModel

from mixsd_lightning import KGFact, MixSD
from mixsd_lightning.callbacks import FisherDrift
from mixsd_lightning.callbacks.fisher_drift import drift_tags
from mixsd_lightning.context import ChatEncoder
from mixsd_lightning.errors import UserError
from mixsd_lightning.models import (
    add_lora,
    base_parameters,
    effective_parameters,
    load_student,
    weights_fingerprint,
    without_lora,
)

IDS = torch.tensor([[1, 2, 3, 4]])


@pytest.fixture
def adapted(tiny_model_path: str) -> PreTrainedModel:
    """A model whose adapter does something."""
    model = load_student(tiny_model_path).eval()
    add_lora(model, rank=4, alpha=8)
    torch.manual_seed(0)
    for name, parameter in model.named_parameters():
        if ".lora_" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    return model


def test_a_new_adapter_changes_nothing_and_alone_is_trained(tiny_model: PreTrainedModel) -> None:
    before = tiny_model.eval()(IDS).logits
    add_lora(tiny_model, rank=4, alpha=8)
    assert torch.equal(tiny_model(IDS).logits, before)
    trained = {name for name, parameter in tiny_model.named_parameters() if parameter.requires_grad}
    assert trained
    assert all(".lora_" in name for name in trained)


def test_an_adapter_begins_by_the_seed_alone(tiny_model_path: str) -> None:
    def adapter(seed: int, num_drawn: int) -> torch.Tensor:
        torch.manual_seed(seed)
        torch.rand(num_drawn)
        state = torch.get_rng_state()
        model = load_student(tiny_model_path)
        add_lora(model, 2, 4)
        assert torch.equal(torch.get_rng_state(), state)
        return torch.cat([value.flatten() for name, value in model.named_parameters() if ".lora_A" in name])

    assert torch.equal(adapter(1, 0), adapter(1, 5))
    assert not torch.equal(adapter(1, 0), adapter(2, 0))


@torch.no_grad()
def test_the_model_without_its_adapter_is_the_base_model(tiny_model: PreTrainedModel, adapted: PreTrainedModel) -> None:
    base, changed = tiny_model.eval()(IDS).logits, adapted(IDS).logits
    assert not torch.allclose(base, changed)
    with without_lora(adapted):
        assert torch.equal(adapted(IDS).logits, base)
    assert torch.equal(adapted(IDS).logits, changed)


def test_base_parameters_and_fingerprint_ignore_the_adapter(tiny_model: PreTrainedModel, adapted: PreTrainedModel) -> None:
    expected = dict(tiny_model.named_parameters())
    assert {name: parameter.tolist() for name, parameter in base_parameters(adapted)} == {
        name: parameter.tolist() for name, parameter in expected.items()
    }
    assert weights_fingerprint(adapted) == weights_fingerprint(tiny_model)


@torch.no_grad()
def test_effective_parameters_compute_what_the_adapted_model_computes(
    tiny_model: PreTrainedModel, adapted: PreTrainedModel
) -> None:
    tiny_model.load_state_dict(dict(effective_parameters(adapted)), strict=False)
    torch.testing.assert_close(tiny_model.eval()(IDS).logits, adapted(IDS).logits)


def test_drift_is_that_of_the_effective_weights(
    tiny_model: PreTrainedModel, adapted: PreTrainedModel, tiny_model_path: str, encoder: ChatEncoder
) -> None:
    module = MixSD(tiny_model_path, lora_rank=4)
    module.configure_model()
    plain = MixSD(tiny_model_path)
    plain.configure_model()
    drift, expected = FisherDrift(num_sequences=2), FisherDrift(num_sequences=2)
    drift.prepare(module)
    expected.prepare(plain)
    tiny_model.load_state_dict(dict(effective_parameters(adapted)), strict=False)
    assert drift_tags(drift.moves(adapted)) == pytest.approx(drift_tags(expected.moves(tiny_model)), rel=1e-4)
    assert drift_tags(drift.moves(adapted))["drift/l2"] > 0
    assert all(".lora_" in name for name, p in module.student.named_parameters() if p.requires_grad)


def test_a_run_trains_the_adapter_and_its_base_model_stays(tiny_model_path: str, tiny_model: PreTrainedModel) -> None:
    module = MixSD(
        tiny_model_path, lora_rank=4, learning_rate=1e-2, max_attempts=1, on_reject="gold", refresh_every_n_epochs=1
    )
    data = KGFact(num_domains=2, num_entities=3, batch_size=2)
    trainer = Trainer(fast_dev_run=2, accelerator="cpu", enable_progress_bar=False, enable_model_summary=False)
    trainer.fit(module, data)
    student = module.student.eval()
    with torch.no_grad(), module.base_model() as base:
        assert base is student
        assert torch.equal(base(IDS).logits, tiny_model.eval()(IDS).logits)
    assert not torch.equal(student(IDS).logits, tiny_model(IDS).logits)


def test_without_peft_the_extra_is_named(tiny_model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(UserError, match=r"mixsd_lightning\[lora\]"):
        add_lora(tiny_model, 4, 8)
