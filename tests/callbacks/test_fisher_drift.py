import pytest
import torch
from transformers import PreTrainedModel

from mixsd_lightning import SFT, FisherDrift
from mixsd_lightning.callbacks.fisher_drift import diagonal_fisher
from mixsd_lightning.context import ChatEncoder
from mixsd_lightning.errors import UserError
from mixsd_lightning.evaluation.suites.bits_per_byte import held_out_paragraphs, paragraph_ids

TEXTS = held_out_paragraphs()[:3]


def test_fisher_is_the_mean_of_squared_sequence_gradients(tiny_model: PreTrainedModel, encoder: ChatEncoder) -> None:
    expected = {name: torch.zeros_like(parameter) for name, parameter in tiny_model.named_parameters()}
    for text in TEXTS:
        ids = paragraph_ids(encoder, text)
        log_probs = tiny_model(ids).logits[0, :-1].log_softmax(-1)
        log_likelihood = log_probs.gather(-1, ids[0, 1:, None]).sum()
        gradients = torch.autograd.grad(log_likelihood, list(tiny_model.parameters()))
        for total, gradient in zip(expected.values(), gradients, strict=True):
            total += gradient**2 / len(TEXTS)
    fisher = diagonal_fisher(tiny_model, encoder, TEXTS)
    assert fisher.keys() == expected.keys()
    for name, value in fisher.items():
        torch.testing.assert_close(value, expected[name], rtol=1e-4, atol=1e-6)


def test_fisher_leaves_no_gradients_hooks_or_mode_behind(tiny_model: PreTrainedModel, encoder: ChatEncoder) -> None:
    diagonal_fisher(tiny_model, encoder, TEXTS[:1])
    assert tiny_model.training
    assert all(parameter.grad is None for parameter in tiny_model.parameters())
    tiny_model(torch.tensor([[1, 2, 3]])).logits.sum().backward()
    assert any(parameter.grad is not None for parameter in tiny_model.parameters())


def test_drift_equals_the_closed_form(tiny_model_path: str) -> None:
    method = SFT(tiny_model_path)
    method.configure_model()
    drift = FisherDrift(num_sequences=2)
    drift.prepare(method)
    assert drift.measure(method.student) == {"drift/l2": 0, "drift/fisher": 0, "drift/sensitivity": 0}
    fisher = diagonal_fisher(method.student, method.encoder, held_out_paragraphs()[:2])
    torch.manual_seed(1)
    squared = weighted = 0.0
    with torch.no_grad():
        for name, parameter in method.student.named_parameters():
            delta = torch.randn_like(parameter) * 0.01
            parameter += delta
            squared += float((delta**2).sum())
            weighted += float((fisher[name] * delta**2).sum())
    measured = drift.measure(method.student)
    assert measured["drift/l2"] == pytest.approx(squared**0.5, rel=1e-4)
    assert measured["drift/fisher"] == pytest.approx(weighted, rel=1e-4)
    assert measured["drift/sensitivity"] == pytest.approx(weighted / squared, rel=1e-4)


def test_fisher_drift_predicts_the_growth_of_the_loss(tiny_model: PreTrainedModel, encoder: ChatEncoder) -> None:
    """One weight moved along its own axis: the squared gradient bounds how fast the log-likelihood can change."""
    fisher = diagonal_fisher(tiny_model, encoder, TEXTS[:1])["model.norm.weight"]
    ids = paragraph_ids(encoder, TEXTS[0])
    index, step = int(fisher.argmax()), 1e-3

    def log_likelihood() -> float:
        with torch.no_grad():
            return float(tiny_model(ids).logits[0, :-1].double().log_softmax(-1).gather(-1, ids[0, 1:, None]).sum())

    weight = tiny_model.model.norm.weight
    with torch.no_grad():
        weight[index] += step
        above = log_likelihood()
        weight[index] -= 2 * step
        below = log_likelihood()
    assert ((above - below) / (2 * step)) ** 2 == pytest.approx(float(fisher[index]), rel=0.02)


def test_the_number_of_sequences_is_checked() -> None:
    with pytest.raises(UserError, match="--drift.num_sequences"):
        FisherDrift(num_sequences=0)
