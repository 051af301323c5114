"""Chunked losses have the sum and the gradients of the plain expression, whatever the chunks, the head and the precision."""

from typing import Any

import pytest
import torch
from torch import Tensor

from mixsd_lightning.losses.chunked import Head, summed_token_loss
from mixsd_lightning.losses.nll import TokenNLL

NUM_TOKENS, HIDDEN, VOCABULARY = 13, 6, 17
HEADS: dict[str, dict[str, Any]] = {
    "plain": {},
    "bias": {"bias": True},
    "scale": {"scale": 0.3},
    "soft cap": {"softcap": 1.5},
    "all": {"bias": True, "scale": 2.0, "softcap": 3.0},
}


def random(*shape: int, seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype).requires_grad_()


def make_inputs(dtype: torch.dtype = torch.float64, **options: Any) -> tuple[Tensor, Head, Tensor]:
    bias = random(VOCABULARY, seed=2, dtype=dtype) if options.pop("bias", False) else None
    head = Head(random(VOCABULARY, HIDDEN, seed=1, dtype=dtype), bias, **options)
    targets = torch.randint(VOCABULARY, (NUM_TOKENS,), generator=torch.Generator().manual_seed(3))
    return random(NUM_TOKENS, HIDDEN, seed=0, dtype=dtype), head, targets


def plain_losses(hidden: Tensor, head: Head, targets: Tensor) -> Tensor:
    """Every token's NLL, as one would write it down."""
    logits = hidden @ head.weight_VH.T
    if head.bias_V is not None:
        logits = logits + head.bias_V
    logits = logits * head.scale
    if head.softcap is not None:
        logits = head.softcap * torch.tanh(logits / head.softcap)
    return logits.logsumexp(-1) - logits[torch.arange(len(targets)), targets]


def gradients(total: Tensor, hidden: Tensor, head: Head) -> list[Tensor]:
    inputs = [hidden, head.weight_VH, *([] if head.bias_V is None else [head.bias_V])]
    return list(torch.autograd.grad(total, inputs))


@pytest.mark.parametrize("name", HEADS)
@pytest.mark.parametrize("chunk_size", [1, 4, 13, 100])
def test_sum_losses_and_gradients_equal_the_plain_expression(name: str, chunk_size: int) -> None:
    hidden, head, targets = make_inputs(**HEADS[name])
    weights = torch.rand(NUM_TOKENS, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    total, losses = summed_token_loss(hidden, head, TokenNLL(targets), weights, chunk_size)
    expected = plain_losses(hidden, head, targets)
    torch.testing.assert_close(losses, expected.detach())
    torch.testing.assert_close(total, expected.detach() @ weights)
    for found, wanted in zip(gradients(total, hidden, head), gradients(expected @ weights, hidden, head), strict=True):
        torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("name", HEADS)
def test_gradcheck(name: str) -> None:
    hidden, head, targets = make_inputs(**HEADS[name])

    def total(hidden: Tensor, weight: Tensor, *bias: Tensor) -> Tensor:
        changed = Head(weight, bias[0] if bias else None, head.scale, head.softcap)
        return summed_token_loss(hidden, changed, TokenNLL(targets), chunk_size=5)[0]

    inputs = (hidden, head.weight_VH, *([] if head.bias_V is None else [head.bias_V]))
    assert torch.autograd.gradcheck(total, inputs)


def test_a_factor_behind_the_sum_scales_the_gradients() -> None:
    hidden, head, targets = make_inputs()
    total, _ = summed_token_loss(hidden, head, TokenNLL(targets))
    once = gradients(total, hidden, head)
    total, _ = summed_token_loss(hidden, head, TokenNLL(targets))
    for found, one in zip(gradients(2.5 * total, hidden, head), once, strict=True):
        torch.testing.assert_close(found, 2.5 * one)


def test_no_position_at_all_gives_zero_with_a_graph() -> None:
    hidden, head, targets = make_inputs(bias=True)
    total, losses = summed_token_loss(hidden[:0], head, TokenNLL(targets[:0]))
    assert (float(total.detach()), losses.shape) == (0.0, (0,))
    total.backward()
    for tensor in (hidden, head.weight_VH, head.bias_V):
        assert tensor is not None
        assert tensor.grad is not None
        assert torch.equal(tensor.grad, torch.zeros_like(tensor))


def test_a_frozen_head_gets_no_gradient() -> None:
    hidden, head, targets = make_inputs()
    frozen = Head(head.weight_VH.detach())
    total, _ = summed_token_loss(hidden, frozen, TokenNLL(targets))
    (found,) = torch.autograd.grad(total, [hidden])
    (wanted,) = torch.autograd.grad(plain_losses(hidden, head, targets).sum(), [hidden])
    torch.testing.assert_close(found, wanted)


def test_a_tied_embedding_gets_the_gradients_of_both_its_uses() -> None:
    _, head, targets = make_inputs()
    ids = torch.arange(NUM_TOKENS)

    def total(chunked: bool) -> Tensor:
        hidden = head.weight_VH[ids].tanh()
        return (
            summed_token_loss(hidden, head, TokenNLL(targets), chunk_size=4)[0]
            if chunked
            else plain_losses(hidden, head, targets).sum()
        )

    (found,) = torch.autograd.grad(total(True), [head.weight_VH])
    (wanted,) = torch.autograd.grad(total(False), [head.weight_VH])
    torch.testing.assert_close(found, wanted)


@torch.no_grad()
def test_without_gradients_nothing_is_kept() -> None:
    hidden, head, targets = make_inputs()
    total, _ = summed_token_loss(hidden, head, TokenNLL(targets))
    assert total.grad_fn is None
    torch.testing.assert_close(total, plain_losses(hidden, head, targets).sum())


def test_autocast_multiplies_in_its_precision_and_sums_in_float32() -> None:
    hidden, head, targets = make_inputs(torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        total, losses = summed_token_loss(hidden, head, TokenNLL(targets), chunk_size=4)
    rounded = Head(head.weight_VH.bfloat16().float())
    expected = plain_losses(hidden.bfloat16().float(), rounded, targets).detach()
    assert total.dtype == losses.dtype == torch.float32
    torch.testing.assert_close(losses, expected, rtol=2e-2, atol=2e-2)
    for found, tensor in zip(gradients(total, hidden, head), (hidden, head.weight_VH), strict=True):
        assert found.dtype == tensor.dtype
    for found, wanted in zip(
        gradients(total_again(hidden, head, targets), hidden, head),
        gradients(plain_losses(hidden, head, targets).sum(), hidden, head),
        strict=True,
    ):
        torch.testing.assert_close(found, wanted, rtol=5e-2, atol=5e-2)


def total_again(hidden: Tensor, head: Head, targets: Tensor) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        return summed_token_loss(hidden, head, TokenNLL(targets), chunk_size=4)[0]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_states_are_summed_in_float32(dtype: torch.dtype) -> None:
    hidden, head, targets = make_inputs(dtype)
    total, _ = summed_token_loss(hidden, head, TokenNLL(targets))
    assert total.dtype == torch.float32
    expected = plain_losses(hidden.double(), Head(head.weight_VH.double()), targets).sum().float()
    torch.testing.assert_close(total, expected, rtol=2e-2, atol=2e-2)
    assert [gradient.dtype for gradient in gradients(total, hidden, head)] == [dtype, dtype]
