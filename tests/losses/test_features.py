"""Feature matching against a loop."""

import pytest
import torch

from mixsd_lightning.losses.features import feature_losses


def test_losses_and_gradients_equal_a_loop() -> None:
    torch.manual_seed(0)
    student = {layer: torch.randn(5, 3, requires_grad=True) for layer in (2, 7)}
    teacher = {layer: torch.randn(5, 3, requires_grad=True) for layer in (2, 7)}
    found_N = feature_losses(student, teacher)
    for n in range(5):
        squares = [(float(student[layer][n, h]) - float(teacher[layer][n, h])) ** 2 for layer in (2, 7) for h in range(3)]
        assert found_N[n].item() == pytest.approx(sum(squares) / 6)
    found_N.sum().backward()
    for layer in (2, 7):
        torch.testing.assert_close(student[layer].grad, 2 * (student[layer] - teacher[layer]).detach() / 6)
        assert teacher[layer].grad is None


def test_equal_states_cost_nothing() -> None:
    states = {0: torch.randn(4, 3)}
    assert feature_losses(states, states).tolist() == [0.0] * 4


def test_layers_must_be_the_same() -> None:
    with pytest.raises(ValueError, match="layers"):
        feature_losses({0: torch.zeros(1, 1)}, {1: torch.zeros(1, 1)})
