"""How probable targets are under a model."""

import math

import pytest
import torch
from transformers import PreTrainedModel

from mixsd_lightning.data.batches import TrainItem
from mixsd_lightning.target_likelihood import likelihood_tags, token_nlls

ITEMS = [TrainItem("a", [5, 6, 7], [1, 2, 3]), TrainItem("b", [5, 6, 9, 10], [4]), TrainItem("c", [8], [2, 2, 2, 2])]


@pytest.mark.parametrize("batch_size", [1, 2, 8])
def test_tokens_equal_a_forward_of_each_sequence_alone(tiny_model: PreTrainedModel, batch_size: int) -> None:
    tiny_model.train()
    found = token_nlls(tiny_model, ITEMS, batch_size)
    assert tiny_model.training  # as it was
    for item, nlls in zip(ITEMS, found, strict=True):
        with torch.no_grad():
            log_probs_LV = tiny_model(torch.tensor([item.prompt_ids + item.target_ids])).logits[0].log_softmax(-1)
        start = len(item.prompt_ids) - 1
        expected = [-float(log_probs_LV[start + index, token]) for index, token in enumerate(item.target_ids)]
        assert nlls == pytest.approx(expected, rel=1e-4)


def test_tags_by_hand() -> None:
    tags = likelihood_tags([[1.0, 2.0, -math.log(0.009)], [-math.log(0.011)], []])
    tokens = [1.0, 2.0, -math.log(0.009), -math.log(0.011)]
    assert tags == pytest.approx(
        {
            "targets/nll_base": sum(tokens) / 4,
            "targets/nll_base_per_example": (sum(tokens[:3]) / 3 + tokens[3]) / 2,
            "targets/improbable": 0.25,
        }
    )


def test_tags_without_any_target() -> None:
    assert set(likelihood_tags([]).values()) == {0.0}
