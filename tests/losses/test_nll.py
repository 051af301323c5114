"""The NLL of single tokens and its derivative."""

import torch

from mixsd_lightning.losses.nll import TokenNLL


def test_losses_and_derivatives_equal_cross_entropy() -> None:
    logits = 4 * torch.randn(7, 11, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    targets = torch.tensor([0, 3, 10, 3, 5, 1, 2])
    leaf = logits.clone().requires_grad_()
    expected = torch.nn.functional.cross_entropy(leaf, targets, reduction="none")
    (wanted,) = torch.autograd.grad(expected.sum(), [leaf])
    torch.testing.assert_close(TokenNLL(targets)(logits, slice(0, 7)), expected.detach())
    torch.testing.assert_close(logits, wanted)


def test_rows_pick_their_targets() -> None:
    logits = torch.randn(2, 5, generator=torch.Generator().manual_seed(0))
    losses = TokenNLL(torch.tensor([4, 4, 1, 2, 4]))(logits.clone(), slice(2, 4))
    torch.testing.assert_close(losses, -logits.log_softmax(-1)[torch.arange(2), torch.tensor([1, 2])])


def test_uniform_logits_cost_log_vocabulary_a_token() -> None:
    losses = TokenNLL(torch.tensor([3, 49]))(torch.zeros(2, 50), slice(0, 2))
    torch.testing.assert_close(losses, torch.full((2,), 50.0).log())
