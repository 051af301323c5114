"""The base model's Fisher information against autograd and torch.func."""

import math

import pytest
import torch
from torch import Tensor
from torch.func import functional_call, grad, vmap
from transformers import PreTrainedModel

from mixsd_lightning.context import ChatEncoder, Message
from mixsd_lightning.evaluation.fisher import (
    LabelledSequence,
    Labels,
    Source,
    diagonal_fisher,
    fisher_sequences,
    log_likelihood,
    num_available,
    visit_gradients,
)
from mixsd_lightning.evaluation.suites.bits_per_byte import held_out_paragraphs, paragraph_ids
from mixsd_lightning.evaluation.suites.probe import everyday_questions
from mixsd_lightning.models import add_lora

SEQUENCES = [LabelledSequence([5, 9, 11, 30], [9, 11, 30, 7]), LabelledSequence([1, 2, 3, 4], [3, 5, 6, 7])]


def test_fisher_is_the_mean_of_squared_sequence_gradients(tiny_model: PreTrainedModel, encoder: ChatEncoder) -> None:
    sequences = fisher_sequences(tiny_model, encoder, "held_out", "data", 3)
    expected = {name: torch.zeros_like(parameter) for name, parameter in tiny_model.named_parameters()}
    for text in held_out_paragraphs()[:3]:
        ids = paragraph_ids(encoder, text, 8192)
        log_probs = tiny_model(ids).logits[0, :-1].log_softmax(-1)
        log_likelihood = log_probs.gather(-1, ids[0, 1:, None]).sum()
        gradients = torch.autograd.grad(log_likelihood, list(tiny_model.parameters()))
        for total, gradient in zip(expected.values(), gradients, strict=True):
            total += gradient**2 / 3
    fisher = diagonal_fisher(tiny_model, sequences)
    assert fisher.keys() == expected.keys()
    for name, value in fisher.items():
        torch.testing.assert_close(value, expected[name], rtol=1e-4, atol=1e-6)


def test_fisher_equals_vmap_of_grad(tiny_model: PreTrainedModel) -> None:
    """Sequences of one length can be differentiated together; the embedding is tied, and its uses add up."""
    tiny_model.eval()
    parameters = {name: parameter.detach() for name, parameter in tiny_model.named_parameters()}

    def loss(parameters: dict[str, Tensor], ids_L: Tensor, labels_L: Tensor) -> Tensor:
        logits_LV = functional_call(tiny_model, parameters, (ids_L[None],), {"use_cache": False}).logits[0]
        return logits_LV.log_softmax(-1).gather(-1, labels_L[:, None]).sum()

    ids_NL = torch.tensor([sequence.token_ids for sequence in SEQUENCES])
    labels_NL = torch.tensor([sequence.labels for sequence in SEQUENCES])
    gradients = vmap(grad(loss), in_dims=(None, 0, 0))(parameters, ids_NL, labels_NL)
    for name, value in diagonal_fisher(tiny_model, SEQUENCES).items():
        torch.testing.assert_close(value, gradients[name].square().mean(0), rtol=1e-4, atol=1e-6)


def test_only_the_last_positions_are_predicted_where_there_are_fewer_labels(tiny_model: PreTrainedModel) -> None:
    log_probs_LV = tiny_model.eval()(torch.tensor([[5, 9, 11, 30]])).logits[0].log_softmax(-1)
    found = log_likelihood(tiny_model, LabelledSequence([5, 9, 11, 30], [8, 7]))
    assert float(found) == pytest.approx(float(log_probs_LV[2, 8] + log_probs_LV[3, 7]), rel=1e-5)


def test_nothing_is_left_behind(tiny_model: PreTrainedModel) -> None:
    frozen = tiny_model.model.layers[0].mlp.up_proj.weight.requires_grad_(False)
    diagonal_fisher(tiny_model, SEQUENCES)
    assert tiny_model.training
    assert not frozen.requires_grad
    assert all(parameter.grad is None for parameter in tiny_model.parameters())
    tiny_model(torch.tensor([[1, 2, 3]])).logits.sum().backward()
    assert any(parameter.grad is not None for parameter in tiny_model.parameters())


def test_parts_of_the_sequences_add_up(tiny_model: PreTrainedModel) -> None:
    whole = diagonal_fisher(tiny_model, SEQUENCES)
    parts = [diagonal_fisher(tiny_model, [sequence], num_total=2) for sequence in SEQUENCES]
    for name, value in whole.items():
        torch.testing.assert_close(value, parts[0][name] + parts[1][name])


def test_an_adapter_does_not_count_and_its_base_does(tiny_model: PreTrainedModel) -> None:
    pytest.importorskip("peft")
    expected = diagonal_fisher(tiny_model, SEQUENCES)
    add_lora(tiny_model, 2, 4)
    found = diagonal_fisher(tiny_model, SEQUENCES)
    assert found.keys() == expected.keys()
    for name, value in found.items():  # an adapter starts at zero
        torch.testing.assert_close(value, expected[name], rtol=1e-4, atol=1e-6)
    is_trained = {name: parameter.requires_grad for name, parameter in tiny_model.named_parameters()}
    assert all(trained == (".lora_" in name) for name, trained in is_trained.items())


def test_fisher_predicts_the_growth_of_the_loss(tiny_model: PreTrainedModel) -> None:
    """One weight moved along its own axis: the squared gradient bounds how fast the log-likelihood can change."""
    weight = tiny_model.model.norm.weight
    fisher = diagonal_fisher(tiny_model, SEQUENCES[:1])["model.norm.weight"]
    index, step = int(fisher.argmax()), 1e-3
    with torch.no_grad():
        weight[index] += step
        above = float(log_likelihood(tiny_model.double(), SEQUENCES[0]))
        weight[index] -= 2 * step
        below = float(log_likelihood(tiny_model, SEQUENCES[0]))
    assert ((above - below) / (2 * step)) ** 2 == pytest.approx(float(fisher[index]), rel=0.02)


@pytest.mark.parametrize("source", ["held_out", "answers"])
@pytest.mark.parametrize("labels", ["data", "sampled"])
def test_sequences_do_not_depend_on_how_many_there_are(
    tiny_model: PreTrainedModel, encoder: ChatEncoder, source: Source, labels: Labels
) -> None:
    state = torch.get_rng_state()
    found = fisher_sequences(tiny_model, encoder, source, labels, 4)
    assert torch.equal(torch.get_rng_state(), state)
    assert found == fisher_sequences(tiny_model, encoder, source, labels, 4)
    assert len(found) == 4 <= num_available(source)
    if source == "held_out":
        assert found[:2] == fisher_sequences(tiny_model, encoder, source, labels, 2)


def test_answers_are_those_of_everyday_questions(tiny_model: PreTrainedModel, encoder: ChatEncoder) -> None:
    for sequence in fisher_sequences(tiny_model, encoder, "answers", "data", 3):
        (question,) = [
            q for q in everyday_questions() if encoder.prompt([Message("user", q.question)]) + encoder.target(q.answers[0])[:-1]
            == sequence.token_ids
        ]  # fmt: skip
        assert sequence.labels == encoder.target(question.answers[0])


def test_sampled_labels_follow_the_model(tiny_model: PreTrainedModel, encoder: ChatEncoder) -> None:
    """Their mean log-probability is minus the mean entropy, up to sampling noise."""
    sequences = fisher_sequences(tiny_model, encoder, "held_out", "sampled", 8)
    surprise = entropy = variance = 0.0
    for sequence in sequences:
        log_probs_LV = tiny_model.eval()(torch.tensor([sequence.token_ids])).logits[0].detach().double().log_softmax(-1)
        p_LV = log_probs_LV.exp()
        entropy_L = -(p_LV * log_probs_LV).sum(-1)
        entropy += float(entropy_L.sum())
        variance += float(((p_LV * log_probs_LV**2).sum(-1) - entropy_L**2).sum())
        surprise -= float(log_likelihood(tiny_model, sequence))
    assert abs(surprise - entropy) < 4 * math.sqrt(variance)
    texts = fisher_sequences(tiny_model, encoder, "held_out", "data", 8)
    assert [s.token_ids for s in sequences] == [s.token_ids for s in texts]
    assert [s.labels for s in sequences] != [s.labels for s in texts]


def test_gradients_are_visited_once_for_each_sequence_and_parameter(tiny_model: PreTrainedModel) -> None:
    visited: list[str] = []
    visit_gradients(tiny_model, SEQUENCES, lambda name, gradient: visited.append(name))
    names = [name for name, _ in tiny_model.named_parameters()]
    assert sorted(visited) == sorted(names * 2)
