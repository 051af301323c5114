"""The contrastive hinge against autograd."""

import pytest
import torch
from torch import Tensor

from mixsd_lightning.losses.chunked import Head, summed_token_loss
from mixsd_lightning.losses.contrastive import ContrastiveHinge
from mixsd_lightning.losses.nll import TokenNLL

N, V, H = 23, 40, 8


def by_autograd(logits_NV: Tensor, ids_N: Tensor, good_N: Tensor, bad_N: Tensor, weight: float, margin: float) -> Tensor:
    log_p_N = logits_NV.log_softmax(-1).gather(1, ids_N[:, None]).squeeze(1)
    hinge_N = torch.relu(margin + (log_p_N - good_N).abs() - (log_p_N - bad_N).abs())
    return -log_p_N.sum() + weight * hinge_N[~bad_N.isnan()].sum()


@pytest.mark.parametrize("weight", [0.0, 0.7])
@pytest.mark.parametrize("margin", [0.0, 0.5, 50.0])
def test_sum_and_gradients_equal_autograd(weight: float, margin: float) -> None:
    torch.manual_seed(0)
    hidden_NH = torch.randn(N, H, dtype=torch.float64, requires_grad=True)
    weight_VH = torch.randn(V, H, dtype=torch.float64, requires_grad=True)
    ids_N = torch.randint(V, (N,))
    good_N, bad_N = -5 * torch.rand(2, N, dtype=torch.float64)
    bad_N[::5] = torch.nan
    expected = by_autograd(hidden_NH @ weight_VH.T, ids_N, good_N, bad_N, weight, margin)
    expected_grads = torch.autograd.grad(expected, (hidden_NH, weight_VH))

    hinge = ContrastiveHinge(TokenNLL(ids_N), ids_N, good_N, bad_N, weight, margin)
    found, _ = summed_token_loss(hidden_NH, Head(weight_VH), hinge, chunk_size=7)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(torch.autograd.grad(found, (hidden_NH, weight_VH)), expected_grads)


def test_without_wrong_demonstrations_nothing_is_added() -> None:
    torch.manual_seed(0)
    logits_NV, ids_N = torch.randn(N, V), torch.randint(V, (N,))
    hinge = ContrastiveHinge(TokenNLL(ids_N), ids_N, torch.zeros(N), torch.full((N,), torch.nan), 1.0, 0.5)
    plain_NV, added_NV = logits_NV.clone(), logits_NV.clone()
    torch.testing.assert_close(hinge(added_NV, slice(0, N)), TokenNLL(ids_N)(plain_NV, slice(0, N)))
    torch.testing.assert_close(added_NV, plain_NV)
    assert float(hinge.hinge_sum) == 0
