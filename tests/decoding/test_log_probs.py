"""Log-probabilities in one padded batch are those of every sequence alone."""

import random
from collections.abc import Sequence

import pytest
import torch
from architectures import OTHERS, TRAINED, make_model
from conftest import transformers_greedy
from transformers import PreTrainedModel

from mixsd_lightning.decoding.log_probs import completion_log_probs, continuation_scores

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


CONTINUATIONS = [
    random_ids(lengths, seed=2 + index) for index, lengths in enumerate([(3, 1), (9,), (1, 1, 1), (2, 30), (5,), (4, 4)])
]


def test_continuations_equal_each_sequence_alone(tiny_model: PreTrainedModel) -> None:
    model = tiny_model.double()
    found = continuation_scores(model, PROMPTS, CONTINUATIONS)
    for prompt, several, scores in zip(PROMPTS, CONTINUATIONS, found, strict=True):
        expected = [sum(alone(model, prompt, continuation)) for continuation in several]
        assert [score.log_prob for score in scores] == pytest.approx(expected, rel=1e-6)


def test_float32_is_enough_for_continuations(tiny_model: PreTrainedModel) -> None:
    found = continuation_scores(tiny_model, PROMPTS, CONTINUATIONS)
    exact = continuation_scores(tiny_model.double(), PROMPTS, CONTINUATIONS)
    for scores, expected in zip(found, exact, strict=True):
        assert [score.log_prob for score in scores] == pytest.approx([score.log_prob for score in expected], rel=1e-4)


def test_single_token_continuations_need_no_second_forward(tiny_model: PreTrainedModel) -> None:
    forwards: list[int] = []
    tiny_model.register_forward_hook(lambda module, inputs, out: forwards.append(out.logits.shape[1]))
    found = continuation_scores(tiny_model, PROMPTS[:2], [[[5], [6]], [[7]]])
    assert forwards == [1]
    assert found[0][1].log_prob == pytest.approx(alone(tiny_model, PROMPTS[0], [6])[0], rel=1e-4)


def test_greedy_continuations_are_known(tiny_model: PreTrainedModel) -> None:
    greedy = [transformers_greedy(tiny_model, prompt, frozenset(), 6) for prompt in PROMPTS]
    # Of each prompt: what greedy decoding writes, the beginning of it, and the same with one token changed.
    changed = [[[*ids[:place], (ids[place] + 1) % 256, *ids[place + 1 :]] for place in (0, 3, 5)] for ids in greedy]
    continuations = [[ids, ids[:2], *others] for ids, others in zip(greedy, changed, strict=True)]
    found = continuation_scores(tiny_model, PROMPTS, continuations)
    assert [[score.is_greedy for score in scores] for scores in found] == [[True, True, False, False, False]] * len(PROMPTS)


@pytest.mark.parametrize("training", [True, False])
def test_continuations_run_in_eval_mode_and_restore_the_mode(tiny_model: PreTrainedModel, training: bool) -> None:
    tiny_model.train(training)
    seen: set[tuple[bool, bool]] = set()
    tiny_model.register_forward_hook(lambda module, inputs, out: seen.add((module.training, out.logits.requires_grad)))
    continuation_scores(tiny_model, PROMPTS, CONTINUATIONS)
    assert seen == {(False, False)}
    assert {module.training for module in tiny_model.modules()} == {training}


@pytest.mark.parametrize("name", [*TRAINED, *OTHERS])
def test_every_architecture_is_scored_as_alone(name: str) -> None:
    model = make_model(name)
    prompts, completions = random_ids((1, 30, 9), seed=3), random_ids((4, 1, 7), seed=4)
    expected = [alone(model, prompt, completion) for prompt, completion in zip(prompts, completions, strict=True)]
    for log_probs, others in zip(completion_log_probs(model, prompts, completions), expected, strict=True):
        assert log_probs == pytest.approx(others, rel=1e-4, abs=1e-3)
    found = continuation_scores(model, prompts, [[completion] for completion in completions])
    assert [scores[0].log_prob for scores in found] == pytest.approx([sum(others) for others in expected], rel=1e-4)
    greedy = transformers_greedy(model, prompts[1], frozenset(), 3)
    scores = continuation_scores(model, [prompts[1]], [[greedy, [*greedy[:2], (greedy[2] + 1) % 256]]])[0]
    assert [score.is_greedy for score in scores] == [True, False]
