"""Weights of tokens about which contexts disagree, against sums by hand."""

import pytest
import torch

from mixsd_lightning.losses.agreement import agreement_weights, disagreement, effective_sample_size

LOG_PROBS_KN = torch.tensor([[-1.0, -2.0, -3.0], [-2.0, -2.0, -1.0], [-3.0, -5.0, -2.0]])


@pytest.mark.parametrize(("statistic", "expected"), [("variance", [1.0, 3.0, 1.0]), ("range", [2.0, 3.0, 2.0])])
def test_disagreement_about_tokens(statistic: str, expected: list[float]) -> None:
    found = disagreement(LOG_PROBS_KN, [2, 1], statistic, "token")  # type: ignore[arg-type]
    assert found.tolist() == pytest.approx(expected)


@pytest.mark.parametrize(("statistic", "first", "second"), [("variance", 1.75, 1.0), ("range", 2.5, 2.0)])
def test_disagreement_about_a_sequence_is_that_of_its_means(statistic: str, first: float, second: float) -> None:
    # Means over the tokens of the first sequence: -1.5, -2, -4; the second has one token.
    found = disagreement(LOG_PROBS_KN, [2, 1], statistic, "sequence")  # type: ignore[arg-type]
    assert found.tolist() == pytest.approx([first, first, second])


@pytest.mark.parametrize("level", ["token", "sequence"])
@pytest.mark.parametrize("statistic", ["variance", "range"])
def test_one_context_does_not_disagree(statistic: str, level: str) -> None:
    apart_N = disagreement(LOG_PROBS_KN[:1], [1, 2], statistic, level)  # type: ignore[arg-type]
    assert agreement_weights(apart_N, 5.0).tolist() == [1.0, 1.0, 1.0]


def test_weights_by_hand() -> None:
    apart_N = torch.tensor([0.0, 1.0, 2.0])
    scale = 1.9  # the 0.95 quantile
    expected = [1.0, 1 / (1 + 3 * 1 / scale), 1 / (1 + 3 * 2 / scale)]
    assert agreement_weights(apart_N, 3.0).tolist() == pytest.approx(expected)


def test_weights_do_not_depend_on_the_unit() -> None:
    apart_N = torch.rand(50)
    torch.testing.assert_close(agreement_weights(apart_N, 0.7), agreement_weights(1000 * apart_N, 0.7))


def test_no_strength_and_full_agreement_give_weights_of_one() -> None:
    assert agreement_weights(torch.rand(9), 0.0).tolist() == [1.0] * 9
    assert agreement_weights(torch.zeros(9), 2.0).tolist() == [1.0] * 9


def test_effective_sample_size() -> None:
    assert effective_sample_size(torch.full((5,), 0.3)).item() == pytest.approx(1.0)
    assert effective_sample_size(torch.tensor([1.0, 0.0, 0.0, 0.0])).item() == pytest.approx(0.25)
