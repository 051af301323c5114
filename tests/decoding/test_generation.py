"""Cached, batched decoding gives what the model alone would say, whatever else is in the batch."""

import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from architectures import OTHERS, TRAINED, make_model
from conftest import transformers_greedy
from scipy.stats import chisquare
from torch import Tensor
from transformers import PreTrainedModel

from mixsd_lightning.decoding.generation import CachedRows, Completion, Sampling, generate_greedy, roll_out
from mixsd_lightning.decoding.sampling import supports, uniform_numbers

END = 256
LENGTHS = (1, 300, 2, 40, 9, 150, 41)
NUM_TOKENS = 20


def random_prompts(lengths: Sequence[int] = LENGTHS, seed: int = 0) -> list[list[int]]:
    rng = random.Random(seed)
    return [[rng.randrange(256) for _ in range(length)] for length in lengths]


@torch.no_grad()
def next_logits(model: PreTrainedModel, token_ids: Sequence[int]) -> Tensor:
    return model(torch.tensor([list(token_ids)])).logits[0, -1]


@pytest.fixture
def stop_ids(tiny_model: PreTrainedModel) -> frozenset[int]:
    """Stop tokens that some of the prompts run into, at different positions."""
    endless = [transformers_greedy(tiny_model, prompt, frozenset([END]), NUM_TOKENS) for prompt in random_prompts()]
    return frozenset([END, endless[0][3], endless[3][11]])


@pytest.mark.parametrize("batch_size", [1, 2, 3, 64])
def test_greedy_equals_transformers_generate(tiny_model: PreTrainedModel, stop_ids: frozenset[int], batch_size: int) -> None:
    prompts = random_prompts()
    completions = generate_greedy(tiny_model, prompts, max_new_tokens=NUM_TOKENS, stop_ids=stop_ids, batch_size=batch_size)
    assert [c.token_ids for c in completions] == [
        transformers_greedy(tiny_model, prompt, stop_ids, NUM_TOKENS) for prompt in prompts
    ]
    assert {c.finish_reason for c in completions} == {"stop", "max_new_tokens"}


def test_what_prompts_begin_with_is_computed_once(tiny_model: PreTrainedModel) -> None:
    beginning = random_prompts([50], seed=5)[0]
    # One is the beginning of all others: its last token is its own.
    prompts = [beginning, *(beginning + rest for rest in random_prompts([1, 30, 7], seed=6))]
    num_tokens: list[int] = []
    hook = tiny_model.register_forward_pre_hook(
        lambda module, args, kwargs: num_tokens.append(kwargs["input_ids"].numel()), with_kwargs=True
    )
    completions = generate_greedy(tiny_model, prompts, max_new_tokens=NUM_TOKENS, stop_ids=frozenset([END]))
    hook.remove()
    assert num_tokens[:2] == [49, 4 * 31]
    expected = [transformers_greedy(tiny_model, prompt, frozenset([END]), NUM_TOKENS) for prompt in prompts]
    assert [c.token_ids for c in completions] == expected


def test_layers_with_a_window_count_padding_so_nothing_is_shared(tiny_model: PreTrainedModel) -> None:
    tiny_model.config.layer_types = ["full_attention", "sliding_attention"]
    shapes: list[torch.Size] = []
    hook = tiny_model.register_forward_pre_hook(
        lambda module, args, kwargs: shapes.append(kwargs["input_ids"].shape), with_kwargs=True
    )
    tiny_model.config.sliding_window = 1000
    generate_greedy(tiny_model, [[1, 2, 3, 4], [1, 2, 5]], max_new_tokens=1, stop_ids=frozenset())
    hook.remove()
    assert shapes == [(2, 4)]


@pytest.mark.parametrize("name", [*TRAINED, *OTHERS])
def test_every_architecture_answers_as_transformers_does(name: str) -> None:
    model = make_model(name)
    beginning = random_prompts([12], seed=5)[0]
    stop_ids = frozenset(range(3, 257, 32))
    for prompts in (random_prompts([1, 30, 9]), [beginning + rest for rest in random_prompts([1, 20, 7], seed=6)]):
        found = generate_greedy(model, prompts, max_new_tokens=12, stop_ids=stop_ids)
        assert [c.token_ids for c in found] == [transformers_greedy(model, prompt, stop_ids, 12) for prompt in prompts]


@pytest.mark.parametrize("name", ["mistral", "mpt", "mamba"])
def test_rollouts_of_every_kind_of_attention_are_those_of_a_loop_without_cache(name: str) -> None:
    model = make_model(name)
    prompts = random_prompts((3, 9))
    found = rollouts(model, prompts, num_rollouts=2, max_new_tokens=5)
    model.eval()
    for index, prompt in enumerate(prompts):
        for number in range(2):
            text = list(prompt)
            for uniform in uniform_numbers(f"key {index}|{number}", 5):
                text.append(supports(next_logits(model, text)[None], 1.0)[0].pick(uniform))
            assert found[index][number] == text[len(prompt) :]


def test_greedy_does_not_depend_on_order(tiny_model: PreTrainedModel, stop_ids: frozenset[int]) -> None:
    prompts = random_prompts()
    shuffled = random.Random(1).sample(range(len(prompts)), len(prompts))
    options = {"max_new_tokens": NUM_TOKENS, "stop_ids": stop_ids, "batch_size": 3}
    straight = generate_greedy(tiny_model, prompts, **options)
    mixed_up = generate_greedy(tiny_model, [prompts[index] for index in shuffled], **options)
    assert mixed_up == [straight[index] for index in shuffled]


def test_greedy_of_no_prompts_is_empty(tiny_model: PreTrainedModel) -> None:
    assert generate_greedy(tiny_model, [], max_new_tokens=3, stop_ids=frozenset()) == []


def test_greedy_stops_at_every_stop_id(tiny_model: PreTrainedModel) -> None:
    prompts = random_prompts((9,))
    endless = generate_greedy(tiny_model, prompts, max_new_tokens=NUM_TOKENS, stop_ids=frozenset())[0].token_ids
    for token in set(endless):
        (stopped,) = generate_greedy(tiny_model, prompts, max_new_tokens=NUM_TOKENS, stop_ids=frozenset([token, END]))
        assert stopped == Completion(endless[: endless.index(token) + 1], "stop")


@pytest.mark.parametrize("max_new_tokens", [1, 2, 7])
def test_completions_end_at_max_new_tokens(tiny_model: PreTrainedModel, max_new_tokens: int) -> None:
    completions = generate_greedy(tiny_model, random_prompts(), max_new_tokens=max_new_tokens, stop_ids=frozenset())
    assert {(len(c.token_ids), c.finish_reason) for c in completions} == {(max_new_tokens, "max_new_tokens")}


def test_a_stop_token_at_the_last_position_counts_as_stop(tiny_model: PreTrainedModel) -> None:
    prompts = random_prompts((40,))
    (completion,) = generate_greedy(tiny_model, prompts, max_new_tokens=1, stop_ids=frozenset())
    stop_ids = frozenset(completion.token_ids)
    assert generate_greedy(tiny_model, prompts, max_new_tokens=1, stop_ids=stop_ids)[0].finish_reason == "stop"


@pytest.mark.parametrize("training", [True, False])
def test_greedy_runs_in_eval_mode_and_restores_the_mode(tiny_model: PreTrainedModel, training: bool) -> None:
    tiny_model.train(training)
    seen: set[bool] = set()
    tiny_model.register_forward_pre_hook(lambda module, inputs: seen.add(module.training))
    generate_greedy(tiny_model, [[1, 2]], max_new_tokens=2, stop_ids=frozenset())
    assert seen == {False}
    assert {module.training for module in tiny_model.modules()} == {training}


def seen_logits(model: PreTrainedModel) -> list[Tensor]:
    """Logits of a short greedy completion."""
    logits: list[Tensor] = []
    handle = model.register_forward_hook(lambda module, inputs, output: logits.append(output.logits))
    generate_greedy(model, [[1, 2, 3]], max_new_tokens=3, stop_ids=frozenset())
    handle.remove()
    return logits


def test_greedy_tracks_no_gradient(tiny_model: PreTrainedModel) -> None:
    assert [logits.requires_grad for logits in seen_logits(tiny_model)] == [False] * 3


def test_bf16_autocast_does_not_change_cpu_decoding(tiny_model: PreTrainedModel) -> None:
    plain = seen_logits(tiny_model)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        under_autocast = seen_logits(tiny_model)
    assert len(plain) == 3
    assert all(map(torch.equal, plain, under_autocast))


@torch.no_grad()
@pytest.mark.parametrize("kept", [[0, 1, 2, 3], [2], [3, 0], [1, 2, 3]])
def test_kept_rows_go_on_as_if_they_were_alone(tiny_model: PreTrainedModel, kept: list[int]) -> None:
    prompts = random_prompts((5, 70, 1, 20))
    rows = CachedRows(tiny_model.eval(), prompts)
    rows.append(torch.tensor([10, 11, 12, 13]))
    rows.keep(kept)
    texts = [[*prompts[row], 10 + row] for row in kept]
    for token in (50, 51):
        expected_NV = torch.stack([next_logits(tiny_model, text) for text in texts])
        torch.testing.assert_close(rows.logits_NV, expected_NV, rtol=1e-4, atol=1e-4)
        rows.append(torch.full((len(kept),), token))
        texts = [[*text, token] for text in texts]


# --- rollouts ----------------------------------------------------------------------------------------------------------


def rollouts(model: PreTrainedModel, prompts: Sequence[Sequence[int]], **options: Any) -> list[list[list[int]]]:
    settings: dict[str, Any] = {
        "sampling": Sampling(),
        "num_rollouts": 3,
        "max_new_tokens": NUM_TOKENS,
        "stop_ids": frozenset(),
    }
    settings |= options
    keys = settings.pop("keys", [f"key {index}" for index in range(len(prompts))])
    found = roll_out(model, prompts, keys, **settings)
    return [[completion.token_ids for completion in completions] for completions in found]


@pytest.mark.parametrize("sampling", [Sampling(0.7), Sampling(1.0, top_k=5), Sampling(1.3, top_p=0.8)], ids=str)
def test_a_rollout_is_the_draws_of_a_loop_without_cache(tiny_model: PreTrainedModel, sampling: Sampling) -> None:
    prompts = random_prompts((3, 9))
    found = rollouts(tiny_model, prompts, sampling=sampling, max_new_tokens=8)
    tiny_model.eval()
    for index, prompt in enumerate(prompts):
        for number in range(3):
            uniforms, text = uniform_numbers(f"key {index}|{number}", 8), list(prompt)
            for uniform in uniforms:
                logits_1V = next_logits(tiny_model, text)[None]
                text.append(supports(logits_1V, sampling.temperature, sampling.top_k, sampling.top_p)[0].pick(uniform))
            assert found[index][number] == text[len(prompt) :]


@pytest.mark.parametrize("batch_size", [1, 2, 5, 64])
def test_a_rollout_does_not_depend_on_its_batch(tiny_model: PreTrainedModel, batch_size: int) -> None:
    prompts = random_prompts()
    together = rollouts(tiny_model, prompts, batch_size=batch_size)
    assert together == rollouts(tiny_model, prompts)
    for index, prompt in enumerate(prompts):
        assert rollouts(tiny_model, [prompt], keys=[f"key {index}"]) == [together[index]]


def test_temperature_zero_is_greedy(tiny_model: PreTrainedModel, stop_ids: frozenset[int]) -> None:
    prompts = random_prompts()
    greedy = generate_greedy(tiny_model, prompts, max_new_tokens=NUM_TOKENS, stop_ids=stop_ids)
    found = rollouts(tiny_model, prompts, sampling=Sampling(0.0), num_rollouts=1, stop_ids=stop_ids)
    assert found == [[completion.token_ids] for completion in greedy]


def test_rollouts_of_one_prompt_differ_and_stop_on_their_own(tiny_model: PreTrainedModel) -> None:
    (free,) = rollouts(tiny_model, random_prompts((5,)), num_rollouts=4)
    assert len({tuple(tokens) for tokens in free}) == 4
    stop = free[0][2]
    (stopped,) = rollouts(tiny_model, random_prompts((5,)), num_rollouts=4, stop_ids=frozenset([stop]))
    for tokens, other in zip(free, stopped, strict=True):
        end = tokens.index(stop) + 1 if stop in tokens else len(tokens)
        assert other == tokens[:end]


def test_tokens_are_drawn_with_their_probabilities(tiny_model: PreTrainedModel) -> None:
    prompt, num_rollouts = random_prompts((4,))[0], 4000
    (found,) = rollouts(
        tiny_model, [prompt], sampling=Sampling(1.0, top_k=6), num_rollouts=num_rollouts, max_new_tokens=1, batch_size=4000
    )
    tiny_model.eval()
    (support,) = supports(next_logits(tiny_model, prompt)[None], 1.0, 6)
    drawn = [tokens[0] for tokens in found]
    counts = [drawn.count(token) for token in support.token_ids]
    expected = num_rollouts * np.diff(support.cumulative, prepend=0.0)
    assert sum(counts) == num_rollouts
    assert chisquare(counts, expected * num_rollouts / expected.sum()).pvalue > 1e-3
