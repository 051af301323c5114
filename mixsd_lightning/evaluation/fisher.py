"""Sequences whose likelihood a model should keep, and the gradients of the base model on them.

Shapes: L tokens of a sequence.
"""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from transformers import PreTrainedModel

from mixsd_lightning.context import ChatEncoder, Message
from mixsd_lightning.decoding.generation import Sampling, roll_out
from mixsd_lightning.decoding.sampling import supports, uniform_numbers
from mixsd_lightning.evaluation.suites.bits_per_byte import held_out_paragraphs, paragraph_ids
from mixsd_lightning.evaluation.suites.probe import MAX_ANSWER_TOKENS, everyday_questions
from mixsd_lightning.models import base_parameters, evaluating, stop_token_ids, window_of
from mixsd_lightning.progress import Progress
from mixsd_lightning.records import evenly_spaced
from mixsd_lightning.sharding import local

Source = Literal["held_out", "answers"]
Labels = Literal["data", "sampled"]


@dataclass(frozen=True)
class LabelledSequence:
    """Token ids, and what is to be predicted: the labels of the last positions."""

    token_ids: list[int]
    labels: list[int]


def fisher_sequences(
    model: PreTrainedModel, encoder: ChatEncoder, source: Source, labels: Labels, count: int
) -> list[LabelledSequence]:
    """What the Fisher information is measured on.

    Args:
        model: The base model, which draws sampled labels.
        encoder: Of the model.
        source: ``held_out``: paragraphs of English; ``answers``: everyday questions, of which the answers are predicted.
        labels: ``data``: the text as it stands, for the *empirical* Fisher; ``sampled``: drawn from the model, for the *true*
            one. Draws are functions of the sequence's number alone.
        count: Sequences, at most :func:`num_available`.
    """
    if source == "answers":
        questions = evenly_spaced(everyday_questions(), count)
        prompts = [encoder.prompt([Message("user", question.question)]) for question in questions]
        if labels == "data":
            turns = [encoder.target(question.answers[0]) for question in questions]
        else:
            keys = [f"fisher|{index}" for index in range(count)]
            options = {"max_new_tokens": MAX_ANSWER_TOKENS, "stop_ids": stop_token_ids(model, encoder.end_of_turn_id)}
            rolled = roll_out(model, prompts, keys, Sampling(), num_rollouts=1, **options)  # type: ignore[arg-type]
            turns = [rollouts[0].token_ids for rollouts in rolled]
        return [LabelledSequence([*prompt, *turn[:-1]], turn) for prompt, turn in zip(prompts, turns, strict=True)]
    window = window_of(model.config)
    texts = [paragraph_ids(encoder, paragraph, window)[0].tolist() for paragraph in held_out_paragraphs()[:count]]
    if labels == "data":
        return [LabelledSequence(ids[:-1], ids[1:]) for ids in texts]
    return [LabelledSequence(ids[:-1], _sampled_labels(model, ids[:-1], f"fisher|{index}")) for index, ids in enumerate(texts)]


def num_available(source: Source) -> int:
    """Sequences that a source has."""
    return len(held_out_paragraphs()) if source == "held_out" else len(everyday_questions())


def visit_gradients(
    model: PreTrainedModel, sequences: Sequence[LabelledSequence], visit: Callable[[str, Tensor], None]
) -> None:
    """Call ``visit(name, gradient)`` for every parameter and sequence.

    The gradient is that of the summed log-likelihood of one sequence. It is freed as soon as it has been seen, so that only a
    few are alive at a time. A LoRA adapter is left out; its frozen base is not.

    Args:
        model: Leaves with mode, gradients and frozen parameters as they were.
        sequences: One backward pass each.
        visit: Gets a parameter's name and, of sharded ones, this rank's part of the gradient.
    """
    with ExitStack() as cleanup:
        for name, parameter in base_parameters(model):

            def take(parameter: Tensor, name: str = name) -> None:
                assert parameter.grad is not None
                visit(name, local(parameter.grad))
                parameter.grad = None

            cleanup.callback(parameter.requires_grad_, parameter.requires_grad)  # LoRA has frozen it
            parameter.requires_grad_(True)
            cleanup.callback(parameter.register_post_accumulate_grad_hook(take).remove)
        cleanup.enter_context(evaluating(model))
        progress = cleanup.enter_context(Progress("Fisher information", len(sequences)))
        for sequence in sequences:
            log_likelihood(model, sequence).backward()
            progress.advance()


def log_likelihood(model: PreTrainedModel, sequence: LabelledSequence) -> Tensor:
    """Summed log-probability of a sequence's labels, in nats (a scalar, part of the graph)."""
    ids = torch.tensor([sequence.token_ids], device=model.device)
    logits_LV = model(input_ids=ids, use_cache=False, logits_to_keep=len(sequence.labels)).logits[0].float()
    labels_L = torch.tensor(sequence.labels, device=model.device)
    return -torch.nn.functional.cross_entropy(logits_LV, labels_L, reduction="sum")


def diagonal_fisher(
    model: PreTrainedModel, sequences: Sequence[LabelledSequence], num_total: int | None = None
) -> dict[str, Tensor]:
    r"""Diagonal Fisher information of a model, by parameter name, in float32 on the CPU.

    :math:`F_i = \frac1N \sum_n \left(\partial \log p(y_n) / \partial\theta_i\right)^2`, with the gradient of one whole
    sequence squared at a time: squaring the gradient of a batch would be another, much smaller quantity.

    Args:
        model: The base model.
        sequences: What it is measured on.
        num_total: N; by default the number of sequences. A rank that has some of them gives that of all.
    """
    fisher = {
        name: torch.zeros_like(local(parameter), dtype=torch.float32, device="cpu")
        for name, parameter in base_parameters(model)
    }
    share = 1 / (num_total or len(sequences))

    def add(name: str, gradient: Tensor) -> None:
        gradient = gradient.to("cpu", torch.float32)
        fisher[name].addcmul_(gradient, gradient, value=share)

    visit_gradients(model, sequences, add)
    return fisher


@torch.no_grad()
def _sampled_labels(model: PreTrainedModel, ids: list[int], key: str) -> list[int]:
    """A next token for each position of a text, drawn from the model."""
    with evaluating(model):
        logits_LV = model(input_ids=torch.tensor([ids], device=model.device), use_cache=False).logits[0].float()
    uniforms = uniform_numbers(key, len(ids))
    return [support.pick(uniform) for support, uniform in zip(supports(logits_LV, 1.0), uniforms, strict=True)]
