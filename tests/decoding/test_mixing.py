"""Mixed completions follow the mixture distribution exactly, and each depends on its own request alone."""

import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from conftest import make_tiny_model
from scipy.stats import chisquare
from torch import Tensor
from transformers import PreTrainedModel

from mixsd_lightning.context import ChatEncoder, expert_context, naive_context
from mixsd_lightning.data.kgfact import KGFact
from mixsd_lightning.decoding.decode import is_looping
from mixsd_lightning.decoding.mixing import MixedCompletion, MixingRequest, MixingSettings, mix, sample, uniforms
from mixsd_lightning.models import load_student, stop_token_ids

# Many, so that some completions stop early.
STOP_IDS = frozenset(range(4, 257, 12))
LARGEST_UNIFORM = 1 - 2**-53


def random_requests(count: int, seed: int = 0) -> list[MixingRequest]:
    """Requests with naive and expert prompts of very different lengths."""
    rng = random.Random(seed)

    def prompt() -> list[int]:
        return [rng.randrange(256) for _ in range(rng.choice([1, 2, 5, 20, 80]))]

    return [MixingRequest(f"example-{index}", index % 2, 1 + index % 3, prompt(), prompt()) for index in range(count)]


def mix_in_batches(
    model: PreTrainedModel, requests: Sequence[MixingRequest], settings: MixingSettings, batch_size: int
) -> list[MixedCompletion]:
    starts = range(0, len(requests), batch_size)
    return [c for start in starts for c in mix(model, requests[start : start + batch_size], settings, STOP_IDS)]


def pick(logits_V: Tensor, temperature: float, top_k: int, uniform: float) -> int:
    """Inverse of the cumulative distribution, most probable token first."""
    ranked = sorted(enumerate(logits_V.tolist()), key=lambda pair: -pair[1])[: top_k or None]
    if temperature == 0:
        return ranked[0][0]
    weights = np.exp((np.array([logit for _, logit in ranked]) - ranked[0][1]) / temperature)
    return ranked[int((np.cumsum(weights / weights.sum()) <= uniform).sum())][0]


@torch.no_grad()
def mix_without_cache(model: PreTrainedModel, request: MixingRequest, settings: MixingSettings) -> MixedCompletion:
    completion = MixedCompletion([], "max_new_tokens", [])
    for coin, draw in uniforms(request, settings.seed, settings.max_new_tokens):
        completion.from_expert.append(bool(coin >= settings.mixing_rate))
        prompt = request.expert_prompt if completion.from_expert[-1] else request.naive_prompt
        logits_V = model(torch.tensor([[*prompt, *completion.token_ids]])).logits[0, -1]
        completion.token_ids.append(pick(logits_V, settings.temperature, settings.top_k, draw))
        if completion.token_ids[-1] in STOP_IDS or is_looping(completion.token_ids):
            completion.finish_reason = "stop" if completion.token_ids[-1] in STOP_IDS else "repetition"
            break
    return completion


def assert_equals_generate(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    mixed: Sequence[MixedCompletion],
    stop_ids: frozenset[int],
    limit: int,
) -> None:
    for prompt, completion in zip(prompts, mixed, strict=True):
        ids = torch.tensor([list(prompt)])
        output = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=limit,
            eos_token_id=sorted(stop_ids),
            pad_token_id=0,
        )
        expected = output[0, len(prompt) :].tolist()
        if completion.finish_reason == "repetition":
            assert is_looping(completion.token_ids)
            expected = expected[: len(completion.token_ids)]
        assert completion.token_ids == expected


@pytest.fixture(scope="module")
def random_model(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], PreTrainedModel]:
    @cache
    def load(seed: int) -> PreTrainedModel:
        folder = tmp_path_factory.mktemp("random-model")
        make_tiny_model(folder, seed)
        return load_student(str(folder)).eval()

    return load


@pytest.mark.parametrize("rate", [0.0, 1.0])
@pytest.mark.parametrize("batch_size", [1, 5])
def test_pure_rates_equal_generate_on_one_prompt(tiny_model: PreTrainedModel, rate: float, batch_size: int) -> None:
    requests = random_requests(12)
    mixed = mix_in_batches(tiny_model, requests, MixingSettings(rate, max_new_tokens=20), batch_size)
    prompts = [request.naive_prompt if rate == 1 else request.expert_prompt for request in requests]
    assert_equals_generate(tiny_model.eval(), prompts, mixed, STOP_IDS, limit=20)
    assert {flag for c in mixed for flag in c.from_expert} == {rate == 0}
    assert {"stop", "max_new_tokens"} <= {c.finish_reason for c in mixed}


@pytest.mark.builtin_model
@pytest.mark.parametrize("rate", [0.0, 1.0])
def test_pure_rates_equal_generate_on_the_real_model(
    builtin_model: PreTrainedModel, builtin_encoder: ChatEncoder, rate: float
) -> None:
    stop_ids = stop_token_ids(builtin_model, builtin_encoder.end_of_turn_id)
    requests = [
        MixingRequest(
            example.id, 0, 1, builtin_encoder.prompt(naive_context(example)), builtin_encoder.prompt(expert_context(example))
        )
        for example in KGFact(preset="KGFact-Small").build_splits(["train"])["train"][::40]
    ]
    mixed = mix(builtin_model, requests, MixingSettings(rate, max_new_tokens=10), stop_ids)
    prompts = [request.naive_prompt if rate == 1 else request.expert_prompt for request in requests]
    assert_equals_generate(builtin_model, prompts, mixed, stop_ids, limit=10)


@pytest.mark.parametrize("rate", [0.0, 1.0])
def test_a_context_that_is_never_picked_is_not_computed(tiny_model: PreTrainedModel, rate: float) -> None:
    outside_vocabulary = [10**6]
    naive, expert = ([1, 2], outside_vocabulary) if rate == 1 else (outside_vocabulary, [1, 2])
    request = MixingRequest("example", 0, 1, naive, expert)
    assert len(mix(tiny_model, [request], MixingSettings(rate, max_new_tokens=3), frozenset())[0].token_ids) == 3


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize(("temperature", "top_k"), [(0.0, 64), (1.0, 0), (1.0, 5), (1.0, 64)])
def test_mixing_equals_a_loop_without_a_cache(
    random_model: Callable[[int], PreTrainedModel], seed: int, temperature: float, top_k: int
) -> None:
    settings = MixingSettings([0.3, 0.5, 0.8][seed], temperature, top_k, max_new_tokens=12, seed=seed)
    requests = random_requests(16, seed)
    expected = [mix_without_cache(random_model(seed), request, settings) for request in requests]
    rng = random.Random(seed)
    for batch_size in [*rng.sample(range(1, 16), 2), 16]:
        order = rng.sample(range(16), 16)
        mixed = mix_in_batches(random_model(seed), [requests[index] for index in order], settings, batch_size)
        assert mixed == [expected[index] for index in order]


def test_no_batch_size_changes_a_completion(tiny_model: PreTrainedModel) -> None:
    settings = MixingSettings(0.5, 1.0, max_new_tokens=5)
    requests = random_requests(16)
    together = mix_in_batches(tiny_model, requests, settings, 16)
    for batch_size in range(1, 16):
        assert mix_in_batches(tiny_model, requests, settings, batch_size) == together


def test_mixing_cuts_repetition_short(tiny_model: PreTrainedModel) -> None:
    # An embedding and a head that know only one token.
    with torch.no_grad():
        tiny_model.get_input_embeddings().weight[:] = 0
        tiny_model.get_input_embeddings().weight[7] = 1
    settings = MixingSettings(0.5, max_new_tokens=40)
    (completion,) = mix(tiny_model, [MixingRequest("example", 0, 1, [7], [7, 7])], settings, STOP_IDS)
    assert is_looping(completion.token_ids)
    assert (len(completion.token_ids), completion.finish_reason) == (16, "repetition")
    assert len(completion.from_expert) == 16


def test_flags_equal_the_coins(tiny_model: PreTrainedModel) -> None:
    settings = MixingSettings(0.4, 1.0, max_new_tokens=10, seed=3)
    requests = random_requests(8)
    for request, completion in zip(requests, mix(tiny_model, requests, settings, STOP_IDS), strict=True):
        coins = uniforms(request, 3, 10)[: len(completion.token_ids), 0]
        assert completion.from_expert == (coins >= 0.4).tolist()


@pytest.mark.parametrize("rate", [0.1, 0.3, 0.7])
def test_the_naive_fraction_approaches_the_rate(tiny_model: PreTrainedModel, rate: float) -> None:
    requests = [MixingRequest(f"example-{index}", 0, 1, [1], [2]) for index in range(500)]
    mixed = mix(tiny_model, requests, MixingSettings(rate, max_new_tokens=4), frozenset())
    naive = [not flag for completion in mixed for flag in completion.from_expert]
    assert len(naive) == 2000
    assert abs(np.mean(naive) - rate) < 4 * (rate * (1 - rate) / 2000) ** 0.5


@pytest.mark.parametrize("top_k", [0, 8])
def test_first_tokens_follow_the_mixture_distribution(tiny_model: PreTrainedModel, top_k: int) -> None:
    rate, count = 0.3, 4000
    naive_prompt, expert_prompt = [1, 2, 3], [9, 8, 7, 6, 5]
    requests = [MixingRequest("example", 0, attempt, naive_prompt, expert_prompt) for attempt in range(1, count + 1)]
    settings = MixingSettings(rate, 1.0, top_k, max_new_tokens=1)
    mixed = mix_in_batches(tiny_model, requests, settings, 1000)
    observed = np.bincount([completion.token_ids[0] for completion in mixed], minlength=tiny_model.config.vocab_size)

    def conditional(prompt: list[int]) -> np.ndarray:
        with torch.no_grad():
            probabilities = tiny_model(torch.tensor([prompt])).logits[0, -1].double().softmax(-1).numpy()
        kept = np.argsort(-probabilities)[: top_k or None]
        restricted = np.zeros_like(probabilities)
        restricted[kept] = probabilities[kept]
        return restricted / restricted.sum()

    def p_value(expected: np.ndarray) -> float:
        rare = expected * count < 5
        assert observed[expected == 0].sum() == 0
        pooled = [np.append(counts[~rare], counts[rare].sum()) for counts in (observed, expected * count)]
        return float(chisquare(*(counts[pooled[1] > 0] for counts in pooled)).pvalue)

    naive, expert = conditional(naive_prompt), conditional(expert_prompt)
    assert p_value(rate * naive + (1 - rate) * expert) > 0.01
    if top_k == 0:  # the test has the power to tell other rates
        assert p_value((rate + 0.1) * naive + (0.9 - rate) * expert) < 1e-6


def test_uniforms_do_not_depend_on_how_many_are_drawn() -> None:
    request = MixingRequest("example", 0, 1, [1], [2])
    longest = uniforms(request, 42, 300)
    for num_positions in (1, 2, 3, 48, 299):
        assert np.array_equal(uniforms(request, 42, num_positions), longest[:num_positions])


def test_uniforms_do_not_depend_on_the_prompts() -> None:
    request = MixingRequest("example", 0, 1, [1], [2])
    other = replace(request, naive_prompt=[5, 6], expert_prompt=[])
    assert np.array_equal(uniforms(request, 42, 9), uniforms(other, 42, 9))


def test_uniforms_differ_between_seeds_ids_generations_and_attempts() -> None:
    keys = [(s, i, g, a) for s in (0, 1, 11) for i in ("a", "b", "a|1") for g in (0, 1, 11) for a in (1, 2, 11)]
    rows = {uniforms(MixingRequest(i, g, a, [1], [2]), s, 2).tobytes() for s, i, g, a in keys}
    assert len(rows) == len(keys)


def test_uniforms_never_change() -> None:
    # Golden: other numbers would silently give other targets for the same content hash.
    drawn = uniforms(MixingRequest("train-0", 0, 1, [1], [2]), 42, 2)
    assert drawn.tolist() == [[0.32509062396929844, 0.39304901482847265], [0.6896534821728593, 0.8623009276778826]]


def test_coins_and_draws_are_uniform_and_unrelated() -> None:
    drawn = np.concatenate([uniforms(MixingRequest(f"e{index}", 0, 1, [1], [2]), 42, 40) for index in range(250)])
    cells = np.histogram2d(drawn[:, 0], drawn[:, 1], bins=10, range=[[0, 1], [0, 1]])[0]
    assert cells.sum() == 10_000
    assert chisquare(cells.ravel()).pvalue > 0.01


@pytest.mark.parametrize("top_k", [0, 1, 5, 11, 64])
@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_sampling_inverts_the_renormalised_distribution(top_k: int, temperature: float) -> None:
    logits_V = torch.randn(11, generator=torch.Generator().manual_seed(0)) * 2
    probabilities = torch.softmax(logits_V.double() / temperature, -1).tolist()
    kept = sorted(range(11), key=lambda token: -probabilities[token])[: top_k or None]
    mass = sum(probabilities[token] for token in kept)
    grid = (torch.arange(5000, dtype=torch.float64) + 0.5) / 5000
    counts = torch.bincount(sample(logits_V.expand(5000, -1), temperature, top_k, grid), minlength=11)
    for token in range(11):
        expected = 5000 * probabilities[token] / mass if token in kept else 0
        assert abs(int(counts[token]) - expected) <= (1 if token in kept else 0)


@pytest.mark.parametrize("top_k", [0, 1, 5])
def test_temperature_zero_takes_the_most_probable_token(top_k: int) -> None:
    logits_BV = torch.randn(20, 11, generator=torch.Generator().manual_seed(0))
    uniforms_B = torch.linspace(0, LARGEST_UNIFORM, 20, dtype=torch.float64)
    assert torch.equal(sample(logits_BV, 0.0, top_k, uniforms_B), logits_BV.argmax(-1))


def test_each_row_uses_its_own_number() -> None:
    logits_BV = torch.zeros(4, 4)
    picked = sample(logits_BV, 1.0, 0, torch.tensor([0.1, 0.3, 0.6, 0.9], dtype=torch.float64))
    assert len(set(picked.tolist())) == 4


@pytest.mark.parametrize("top_k", [0, 1, 3, 64])
def test_the_largest_uniform_stays_inside_the_support(top_k: int) -> None:
    logits_BV = torch.randn(2000, 259, generator=torch.Generator().manual_seed(0)) * 3
    picked_B = sample(logits_BV, 1.0, top_k, torch.full((2000,), LARGEST_UNIFORM, dtype=torch.float64))
    ranks_B = (logits_BV > logits_BV.gather(-1, picked_B[:, None])).sum(-1)
    assert int(ranks_B.max()) < (top_k or 259)


def test_a_uniform_of_zero_takes_the_most_probable_token() -> None:
    logits_BV = torch.randn(20, 11, generator=torch.Generator().manual_seed(0))
    assert torch.equal(sample(logits_BV, 1.0, 5, torch.zeros(20, dtype=torch.float64)), logits_BV.argmax(-1))


def test_a_tiny_temperature_overflows_nothing() -> None:
    logits_BV = torch.tensor([[3.0, 1.0, 2.0]])
    assert sample(logits_BV, 1e-6, 0, torch.tensor([0.999], dtype=torch.float64)).tolist() == [0]


@pytest.mark.parametrize(
    ("settings", "deterministic"),
    [
        (MixingSettings(0.0, 0.0), True),
        (MixingSettings(1.0, 0.0), True),
        (MixingSettings(0.5, 0.0), False),
        (MixingSettings(0.0, 1.0), False),
    ],
)
def test_only_pure_greedy_settings_are_deterministic(settings: MixingSettings, deterministic: bool) -> None:
    assert settings.is_deterministic is deterministic
