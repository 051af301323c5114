"""A draw inverts the cumulative distribution over the tokens that may come next."""

import numpy as np
import pytest
import torch
from torch import Tensor

from mixsd_lightning.decoding.sampling import supports, uniform_numbers

LARGEST_UNIFORM = 1 - 2**-53


def random_logits(num_rows: int, vocabulary: int = 11, seed: int = 0) -> Tensor:
    return 2 * torch.randn(num_rows, vocabulary, generator=torch.Generator().manual_seed(seed))


def inverse(logits: list[float], temperature: float, top_k: int, uniform: float) -> int:
    """Walk down the tokens until their renormalised probabilities exceed the uniform number."""
    ranked = list(range(len(logits)))
    if top_k:
        ranked = sorted(ranked, key=lambda token: -logits[token])[:top_k]
    weights = [np.exp((logits[token] - logits[ranked[0]]) / temperature) for token in ranked]
    passed = 0.0
    for token, weight in zip(ranked, weights, strict=True):
        passed += weight / sum(weights)
        if uniform < passed:
            return token
    return ranked[-1]


@pytest.mark.parametrize("top_k", [0, 1, 5, 11, 64])
@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_pick_inverts_the_renormalised_distribution(top_k: int, temperature: float) -> None:
    logits_NV = random_logits(20)
    uniforms = np.random.default_rng(0).random(50)
    for logits_V, support in zip(logits_NV, supports(logits_NV, temperature, top_k), strict=True):
        picked = [support.pick(uniform) for uniform in uniforms]
        assert picked == [inverse(logits_V.tolist(), temperature, top_k, uniform) for uniform in uniforms]


@pytest.mark.parametrize("top_k", [0, 5])
def test_picks_of_evenly_spaced_numbers_have_the_probabilities(top_k: int) -> None:
    (support,) = supports(random_logits(1), 1.0, top_k)
    probabilities = random_logits(1)[0].double().softmax(-1)
    kept = probabilities.argsort(descending=True)[: top_k or None]
    expected = torch.zeros(11, dtype=torch.float64).index_copy(0, kept, probabilities[kept] / probabilities[kept].sum())
    counts = np.bincount([support.pick((index + 0.5) / 5000) for index in range(5000)], minlength=11)
    assert (np.abs(counts - 5000 * expected.numpy()) <= 1).all()
    assert counts[expected.numpy() == 0].sum() == 0


@pytest.mark.parametrize("top_k", [0, 1, 5])
@pytest.mark.parametrize("uniform", [0.0, 0.5, LARGEST_UNIFORM])
def test_temperature_zero_takes_the_most_probable_token(top_k: int, uniform: float) -> None:
    logits_NV = random_logits(20)
    assert [support.pick(uniform) for support in supports(logits_NV, 0.0, top_k)] == logits_NV.argmax(-1).tolist()


@pytest.mark.parametrize("temperature", [0.5, 1.0])
def test_top_k_of_one_takes_the_most_probable_token(temperature: float) -> None:
    logits_NV = random_logits(20)
    picked = [support.pick(LARGEST_UNIFORM) for support in supports(logits_NV, temperature, 1)]
    assert picked == logits_NV.argmax(-1).tolist()


def test_a_number_at_a_boundary_belongs_to_the_next_token() -> None:
    (support,) = supports(torch.tensor([[0.0, 0.0]]), 1.0, 0)
    assert {support.pick(0.0), support.pick(0.5)} == {0, 1}
    assert support.pick(0.0) == support.pick(np.nextafter(0.5, 0))
    assert support.pick(0.5) == support.pick(LARGEST_UNIFORM)


@pytest.mark.parametrize("top_k", [0, 1, 3, 64])
def test_the_largest_uniform_stays_inside_the_support(top_k: int) -> None:
    logits_NV = random_logits(2000, 259)
    picked_N = torch.tensor([support.pick(LARGEST_UNIFORM) for support in supports(logits_NV, 1.0, top_k)])
    ranks_N = (logits_NV > logits_NV.gather(-1, picked_N[:, None])).sum(-1)
    assert int(ranks_N.max()) < (top_k or 259)


def test_a_uniform_of_zero_takes_the_most_probable_token() -> None:
    logits_NV = random_logits(20)
    assert [support.pick(0.0) for support in supports(logits_NV, 1.0, 5)] == logits_NV.argmax(-1).tolist()


def test_a_tiny_temperature_overflows_nothing() -> None:
    (support,) = supports(torch.tensor([[3.0, 1.0, 2.0]]), 1e-6, 0)
    assert support.pick(0.999) == 0
    assert np.isfinite(support.cumulative).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_probabilities_are_float64_whatever_the_logits_are(dtype: torch.dtype) -> None:
    logits_NV = random_logits(3).to(dtype)
    for logits_V, support in zip(logits_NV, supports(logits_NV, 1.0, 0), strict=True):
        assert support.cumulative.dtype == np.float64
        np.testing.assert_allclose(support.cumulative, logits_V.double().softmax(-1).cumsum(-1), rtol=1e-14)


@pytest.mark.parametrize("top_k", [0, 4])
@pytest.mark.parametrize("top_p", [0.01, 0.3, 0.8, 0.999999])
def test_top_p_keeps_the_fewest_most_probable_tokens_that_have_it(top_k: int, top_p: float) -> None:
    for logits_V, support in zip(random_logits(20), supports(random_logits(20), 1.5, top_k, top_p), strict=True):
        probabilities = (logits_V.double() / 1.5).sort(descending=True)
        kept = probabilities.values.softmax(-1)
        if top_k:
            kept = kept[:top_k] / kept[:top_k].sum()
        num_kept = next(number for number in range(1, len(kept) + 1) if float(kept[:number].sum()) >= top_p - 1e-12)
        assert support.token_ids.tolist() == probabilities.indices[:num_kept].tolist()
        expected = kept[:num_kept].cumsum(-1) / kept[:num_kept].sum()
        np.testing.assert_allclose(support.cumulative, expected, rtol=1e-12)


def test_uniform_numbers_hang_on_their_key_alone() -> None:
    first = uniform_numbers("a", 3, 2)
    np.random.seed(0)
    assert first.tolist() == uniform_numbers("a", 3, 2).tolist()
    assert first.tolist() != uniform_numbers("b", 3, 2).tolist()
    assert uniform_numbers("a", 5).tolist()[:3] == uniform_numbers("a", 3).tolist()  # a longer completion begins alike
    many = uniform_numbers("c", 100_000)
    assert many.min() >= 0
    assert many.max() < 1
    assert abs(many.mean() - 0.5) < 5 * (12 * 100_000) ** -0.5
