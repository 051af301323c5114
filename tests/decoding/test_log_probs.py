"""Log-probabilities in one padded batch are those of every sequence alone."""

import random
from collections.abc import Sequence

import pytest
import torch
from transformers import PreTrainedModel

from mixsd_lightning.decoding.log_probs import completion_log_probs

PROMPT_LENGTHS = (1, 80, 3, 40, 9, 2)
COMPLETION_LENGTHS = (4, 1, 30, 0, 7, 4)


def random_ids(lengths: Sequence[int], seed: int) -> list[list[int]]:
    rng = random.Random(seed)
    return [[rng.randrange(256) for _ in range(length)] for length in lengths]


PROMPTS, COMPLETIONS = random_ids(PROMPT_LENGTHS, seed=0), random_ids(COMPLETION_LENGTHS, seed=1)


@torch.no_grad()
def alone(model: PreTrainedModel, prompt: Sequence[int], completion: Sequence[int]) -> list[float]:
    """Log-probability of each token of one completion, by one plain forward."""
    log_probs_LV = model.eval()(torch.tensor([[*prompt, *completion]])).logits[0].log_softmax(-1)
    return [log_probs_LV[len(prompt) + index - 1, token].item() for index, token in enumerate(completion)]


def test_a_batch_equals_each_sequence_alone(tiny_model: PreTrainedModel) -> None:
    model = tiny_model.double()
    found = completion_log_probs(model, PROMPTS, COMPLETIONS)
    assert [len(log_probs) for log_probs in found] == list(COMPLETION_LENGTHS)
    for prompt, completion, log_probs in zip(PROMPTS, COMPLETIONS, found, strict=True):
        assert log_probs == pytest.approx(alone(model, prompt, completion), rel=1e-6, abs=1e-6)


def test_float32_is_enough(tiny_model: PreTrainedModel) -> None:
    found = completion_log_probs(tiny_model, PROMPTS, COMPLETIONS)
    for prompt, completion, log_probs in zip(PROMPTS, COMPLETIONS, found, strict=True):
        assert log_probs == pytest.approx(alone(tiny_model, prompt, completion), rel=1e-4, abs=1e-4)


def test_probabilities_of_all_next_tokens_sum_to_one(tiny_model: PreTrainedModel) -> None:
    size = tiny_model.config.vocab_size
    found = completion_log_probs(tiny_model, [PROMPTS[2]] * size, [[token] for token in range(size)])
    assert torch.tensor(found).exp().sum().item() == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("training", [True, False])
def test_scoring_runs_in_eval_mode_and_restores_the_mode(tiny_model: PreTrainedModel, training: bool) -> None:
    tiny_model.train(training)
    seen: set[tuple[bool, bool]] = set()
    tiny_model.register_forward_hook(lambda module, inputs, out: seen.add((module.training, out.logits.requires_grad)))
    completion_log_probs(tiny_model, PROMPTS, COMPLETIONS)
    assert seen == {(False, False)}
    assert {module.training for module in tiny_model.modules()} == {training}


def test_bf16_autocast_does_not_change_scores_on_a_cpu(tiny_model: PreTrainedModel) -> None:
    plain = completion_log_probs(tiny_model, PROMPTS, COMPLETIONS)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert completion_log_probs(tiny_model, PROMPTS, COMPLETIONS) == plain


def test_every_prompt_needs_a_completion(tiny_model: PreTrainedModel) -> None:
    with pytest.raises(ValueError, match="zip"):
        completion_log_probs(tiny_model, PROMPTS, COMPLETIONS[:-1])
