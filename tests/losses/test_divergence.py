"""Divergences against brute force, gradcheck and their limits."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mixsd_lightning.losses.chunked import Head, summed_token_loss
from mixsd_lightning.losses.divergence import DivergenceSettings, Kind, TeacherDivergence, divergence

KINDS: tuple[Kind, ...] = ("forward_kl", "reverse_kl", "mixed", "jsd")
NUM_TOKENS, VOCABULARY = 11, 9  # more than one block


def random_logits(seed: int, scale: float = 2.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(NUM_TOKENS, VOCABULARY, generator=generator, dtype=torch.float64)


def kl(left: list[float], right: list[float]) -> float:
    return sum(a * (math.log(a) - math.log(b)) for a, b in zip(left, right, strict=True) if a > 0)


def brute_force(student: list[float], teacher: list[float], chosen: DivergenceSettings) -> float:
    """One position's divergence, token by token."""

    def distribution(logits: list[float]) -> list[float]:
        weights = [math.exp(logit / chosen.temperature) for logit in logits]
        return [weight / sum(weights) for weight in weights]

    p, q = distribution(student), distribution(teacher)
    if 0 < chosen.top_k < len(q):
        kept = sorted(range(len(q)), key=lambda token: -q[token])[: chosen.top_k]
        p, q = ([d[token] for token in kept] + [sum(d[t] for t in range(len(d)) if t not in kept)] for d in (p, q))
    w = chosen.weight
    mixture = [w * b + (1 - w) * a for a, b in zip(p, q, strict=True)]
    value = {
        "forward_kl": lambda: kl(q, p),
        "reverse_kl": lambda: kl(p, q),
        "mixed": lambda: w * kl(q, p) + (1 - w) * kl(p, q),
        "jsd": lambda: (w * kl(q, mixture) + (1 - w) * kl(p, mixture)) / (w * (1 - w)),
    }[chosen.kind]()
    return value if chosen.max_per_token is None else min(value, chosen.max_per_token)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("weight", [0.1, 0.5, 0.8])
@pytest.mark.parametrize("temperature", [0.7, 1.0, 2.0])
@pytest.mark.parametrize("top_k", [0, 1, 3, 8, 9, 50])
def test_values_equal_brute_force(kind: Kind, weight: float, temperature: float, top_k: int) -> None:
    chosen = DivergenceSettings(kind, weight, temperature, top_k)
    student, teacher = random_logits(0), random_logits(1)
    found = divergence(student, teacher, chosen)
    expected = [brute_force(*pair, chosen) for pair in zip(student.tolist(), teacher.tolist(), strict=True)]
    assert found.tolist() == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("top_k", [0, 3])
@pytest.mark.parametrize("temperature", [0.7, 1.0])
@pytest.mark.parametrize("max_per_token", [None, 1.0])
def test_gradcheck(kind: Kind, top_k: int, temperature: float, max_per_token: float | None) -> None:
    chosen = DivergenceSettings(kind, 0.3, temperature, top_k, max_per_token)
    teacher = random_logits(1)
    assert torch.autograd.gradcheck(lambda student: divergence(student, teacher, chosen), (random_logits(0).requires_grad_(),))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("top_k", [0, 3])
def test_equal_distributions_diverge_by_nothing(kind: Kind, top_k: int) -> None:
    student = random_logits(0).requires_grad_()
    losses = divergence(student, student.detach() + 3.0, DivergenceSettings(kind, 0.3, top_k=top_k))
    (gradient,) = torch.autograd.grad(losses.sum(), [student])
    torch.testing.assert_close(losses, torch.zeros_like(losses), rtol=0, atol=1e-12)
    torch.testing.assert_close(gradient, torch.zeros_like(gradient), rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_the_whole_vocabulary_as_support_is_the_full_divergence(kind: Kind) -> None:
    full = DivergenceSettings(kind, 0.3)
    for top_k in (VOCABULARY, VOCABULARY + 1):
        student, other = (random_logits(0).requires_grad_() for _ in range(2))
        divergence(student, random_logits(1), replace(full, top_k=top_k)).sum().backward()
        divergence(other, random_logits(1), full).sum().backward()
        assert student.grad is not None
        assert torch.equal(student.grad, other.grad)


@pytest.mark.parametrize(("weight", "kind"), [(0.0, "forward_kl"), (1.0, "reverse_kl")])
def test_jensen_shannon_goes_over_into_both_kls(weight: float, kind: Kind) -> None:
    student, teacher = random_logits(0), random_logits(1)
    end = divergence(student, teacher, DivergenceSettings(kind))
    near = abs(weight - 1e-6)
    torch.testing.assert_close(divergence(student, teacher, DivergenceSettings("jsd", near)), end, rtol=1e-3, atol=0)
    assert torch.equal(divergence(student, teacher, DivergenceSettings("jsd", weight)), end)


@pytest.mark.parametrize(("weight", "kind"), [(1.0, "forward_kl"), (0.0, "reverse_kl")])
def test_mixed_has_both_kls_as_its_ends(weight: float, kind: Kind) -> None:
    student, teacher = random_logits(0), random_logits(1)
    mixed = divergence(student, teacher, DivergenceSettings("mixed", weight))
    torch.testing.assert_close(mixed, divergence(student, teacher, DivergenceSettings(kind)))


def test_the_half_way_jensen_shannon_is_symmetric() -> None:
    student, teacher = random_logits(0), random_logits(1)
    half = DivergenceSettings("jsd", 0.5)
    torch.testing.assert_close(divergence(student, teacher, half), divergence(teacher, student, half))


def test_clipped_tokens_count_as_the_limit_and_have_no_gradient() -> None:
    student = random_logits(0).requires_grad_()
    free = divergence(student, random_logits(1), DivergenceSettings()).detach()
    limit = float(free.median())
    losses = divergence(student, random_logits(1), DivergenceSettings(max_per_token=limit))
    (gradient,) = torch.autograd.grad(losses.sum(), [student])
    assert losses.tolist() == free.clamp(max=limit).tolist()
    assert torch.equal(gradient.eq(0).all(-1), free > limit)
    assert 0 < int((free > limit).sum()) < NUM_TOKENS


@settings(max_examples=200, deadline=None)
@given(
    st.sampled_from(KINDS),
    st.floats(1e-6, 1 - 1e-6),
    st.floats(0.2, 5.0),
    st.integers(0, 9),
    st.integers(0, 1000),
    st.floats(0.1, 30.0),
)
def test_float32_is_finite_and_close(
    kind: Kind, weight: float, temperature: float, top_k: int, seed: int, scale: float
) -> None:
    chosen = DivergenceSettings(kind, weight, temperature, top_k)
    student, teacher = random_logits(seed, scale), random_logits(seed + 1, scale)
    exact_leaf, leaf = student.clone().requires_grad_(), student.float().requires_grad_()
    exact = divergence(exact_leaf, teacher, chosen)
    found = divergence(leaf, teacher.float(), chosen)
    (gradient,) = torch.autograd.grad(found.sum(), [leaf])
    (exact_gradient,) = torch.autograd.grad(exact.sum(), [exact_leaf])
    torch.testing.assert_close(found.detach().double(), exact.detach(), rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(gradient.double(), exact_gradient, rtol=1e-2, atol=1e-4 * max(1.0, scale / temperature))
    assert float(found.detach().min()) > -1e-4


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("chunk_size", [2, 100])
def test_from_hidden_states_it_is_the_same(kind: Kind, chunk_size: int) -> None:
    generator = torch.Generator().manual_seed(0)
    hidden, teacher_hidden = (torch.randn(NUM_TOKENS, 4, generator=generator, dtype=torch.float64) for _ in range(2))
    weight = torch.randn(VOCABULARY, 4, generator=generator, dtype=torch.float64)
    teacher_head = Head(torch.randn(VOCABULARY, 4, generator=generator, dtype=torch.float64), scale=0.5)
    chosen = DivergenceSettings(kind, 0.3, 1.5, 3)
    leaves = [hidden.clone().requires_grad_(), weight.clone().requires_grad_()]
    loss = TeacherDivergence(teacher_hidden, teacher_head, chosen)
    total, losses = summed_token_loss(leaves[0], Head(leaves[1]), loss, chunk_size=chunk_size)
    others = [hidden.clone().requires_grad_(), weight.clone().requires_grad_()]
    logits = others[0] @ others[1].T
    expected = divergence(logits, teacher_head.logits(teacher_hidden), chosen)
    torch.testing.assert_close(losses, expected.detach())
    for found, wanted in zip(torch.autograd.grad(total, leaves), torch.autograd.grad(expected.sum(), others), strict=True):
        torch.testing.assert_close(found, wanted)
    log_probs = (logits.detach() / 1.5).log_softmax(-1)
    assert float(loss.entropy_sum) == pytest.approx(-float((log_probs.exp() * log_probs).sum()), rel=1e-5)


@pytest.mark.parametrize("quantile", [0.3, 0.9])
def test_a_quantile_limits_as_its_value_does(quantile: float) -> None:
    generator = torch.Generator().manual_seed(0)
    hidden, teacher_hidden = (torch.randn(NUM_TOKENS, 4, generator=generator) for _ in range(2))
    head, teacher_head = (Head(torch.randn(VOCABULARY, 4, generator=generator)) for _ in range(2))
    free = divergence(head.logits(hidden), teacher_head.logits(teacher_hidden), DivergenceSettings())
    limit = float(torch.quantile(free, quantile))
    leaf = hidden.clone().requires_grad_()
    loss = TeacherDivergence(teacher_hidden, teacher_head, DivergenceSettings())
    assert loss.limit_to_quantile(leaf, head, quantile) == pytest.approx(limit, rel=1e-5)
    total, losses = summed_token_loss(leaf, head, loss)
    torch.testing.assert_close(losses, free.clamp(max=limit), rtol=1e-4, atol=1e-5)
    (gradient,) = torch.autograd.grad(total, [leaf])
    assert torch.equal(gradient.eq(0).all(-1), free > limit * (1 + 1e-5))
    assert 0 < int((free > limit).sum()) < NUM_TOKENS
    assert float(loss.divergence_sum) == pytest.approx(float(free.sum()), rel=1e-4)  # of one pass, before the limit


def test_positions_that_differ_are_trained_on_where_most_agree_exactly() -> None:
    hidden = torch.randn(NUM_TOKENS, 4, generator=torch.Generator().manual_seed(0))
    head = Head(torch.randn(VOCABULARY, 4, generator=torch.Generator().manual_seed(1)))
    other = hidden.clone()
    other[0] += 1e-4
    loss = TeacherDivergence(other, head, DivergenceSettings())
    assert loss.limit_to_quantile(hidden, head, 0.5) == 1e-6
    none = TeacherDivergence(other[:0], head, DivergenceSettings())
    assert none.limit_to_quantile(hidden[:0], head, 0.5) == math.inf
