"""The training loss: a sum of float32 negative log-likelihoods over the tokens that count."""

import pytest
import torch
from torch import Tensor

from mixsd_lightning.losses.nll import target_nll


def make_batch(dtype: torch.dtype = torch.float32, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits_BTV = (4 * torch.randn(3, 5, 11, generator=generator)).to(dtype).requires_grad_()
    ids_BT = torch.randint(11, (3, 5), generator=generator)
    mask_BT = torch.rand(3, 5, generator=generator) < 0.6
    return logits_BTV, ids_BT, mask_BT


def nll_token_by_token(logits_BTV: Tensor, ids_BT: Tensor, mask_BT: Tensor) -> Tensor:
    total = logits_BTV.new_zeros(())
    for row in range(ids_BT.shape[0]):
        for column in range(ids_BT.shape[1]):
            if mask_BT[row, column]:
                logits_V = logits_BTV[row, column]
                total = total + logits_V.logsumexp(-1) - logits_V[ids_BT[row, column]]
    return total


@pytest.mark.parametrize("seed", range(4))
def test_sum_and_count_equal_a_loop_over_tokens(seed: int) -> None:
    logits_BTV, ids_BT, mask_BT = make_batch(seed=seed)
    nll_sum, num_tokens = target_nll(logits_BTV, ids_BT, mask_BT)
    torch.testing.assert_close(nll_sum, nll_token_by_token(logits_BTV, ids_BT, mask_BT))
    assert int(num_tokens) == sum(map(sum, mask_BT.tolist()))


def test_both_results_are_scalars() -> None:
    nll_sum, num_tokens = target_nll(*make_batch())
    assert nll_sum.shape == num_tokens.shape == ()


def test_uniform_logits_cost_log_vocabulary_a_token() -> None:
    mask_BT = torch.tensor([[True, True, False]])
    nll_sum, _ = target_nll(torch.zeros(1, 3, 50), torch.tensor([[3, 49, 0]]), mask_BT)
    torch.testing.assert_close(nll_sum, 2 * torch.tensor(50.0).log())


def test_masked_positions_change_nothing() -> None:
    logits_BTV, ids_BT, mask_BT = make_batch()
    other_logits_BTV = torch.where(mask_BT[..., None], logits_BTV, 100.0)
    other_ids_BT = torch.where(mask_BT, ids_BT, -100)
    assert torch.equal(target_nll(logits_BTV, ids_BT, mask_BT)[0], target_nll(other_logits_BTV, other_ids_BT, mask_BT)[0])


def test_gradients_equal_those_of_the_plain_expression() -> None:
    logits_BTV, ids_BT, mask_BT = make_batch()
    (gradient,) = torch.autograd.grad(target_nll(logits_BTV, ids_BT, mask_BT)[0], logits_BTV)
    (expected,) = torch.autograd.grad(nll_token_by_token(logits_BTV, ids_BT, mask_BT), logits_BTV)
    torch.testing.assert_close(gradient, expected)


def test_masked_positions_get_no_gradient() -> None:
    logits_BTV, ids_BT, mask_BT = make_batch()
    target_nll(logits_BTV, ids_BT, mask_BT)[0].backward()
    assert logits_BTV.grad is not None
    assert torch.equal(logits_BTV.grad.ne(0).any(-1), mask_BT)


def test_no_valid_token_gives_zero_with_a_graph() -> None:
    logits_BTV, ids_BT, mask_BT = make_batch()
    nll_sum, num_tokens = target_nll(logits_BTV, ids_BT, torch.zeros_like(mask_BT))
    nll_sum.backward()
    assert (float(nll_sum.detach()), int(num_tokens)) == (0.0, 0)
    assert logits_BTV.grad is not None
    assert torch.equal(logits_BTV.grad, torch.zeros_like(logits_BTV))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_logits_are_summed_in_float32(dtype: torch.dtype) -> None:
    logits_BTV, ids_BT, mask_BT = make_batch(dtype)
    nll_sum, _ = target_nll(logits_BTV, ids_BT, mask_BT)
    expected = nll_token_by_token(logits_BTV.double(), ids_BT, mask_BT).float()
    assert nll_sum.dtype == torch.float32
    torch.testing.assert_close(nll_sum, expected, rtol=1e-6, atol=1e-6)


def test_micro_batches_add_up_to_the_whole_batch() -> None:
    batch = make_batch()
    rows = [target_nll(*(tensor[row : row + 1] for tensor in batch)) for row in range(3)]
    nll_sum, num_tokens = target_nll(*batch)
    torch.testing.assert_close(torch.stack([row[0] for row in rows]).sum(), nll_sum)
    assert sum(int(row[1]) for row in rows) == int(num_tokens)
