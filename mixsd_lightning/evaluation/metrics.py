"""Answer accuracy as a torchmetrics metric."""

import math

import torch
from torch import Tensor
from torchmetrics import Metric

from mixsd_lightning.evaluation.scoring import is_exact_match, is_loose_match


class AnswerAccuracy(Metric):
    """Strict and loose accuracy of free-form answers (see :mod:`mixsd_lightning.evaluation.scoring`).

    ``compute`` returns ``{"strict": Tensor[()], "loose": Tensor[()], "count": Tensor[()]}``, rates in [0, 1].
    """

    full_state_update = False
    strict: Tensor
    loose: Tensor
    count: Tensor

    def __init__(self) -> None:
        super().__init__()
        for name in ("strict", "loose", "count"):
            self.add_state(name, torch.tensor(0.0), dist_reduce_fx="sum")

    def update(self, completion: str, answer: str, question: str, answer_format: str) -> None:
        """Score one completion."""
        self.strict += is_exact_match(completion, answer, question, answer_format)
        self.loose += is_loose_match(completion, answer, answer_format)
        self.count += 1

    def compute(self) -> dict[str, Tensor]:
        asked = self.count.clamp(min=1)
        return {"strict": self.strict / asked, "loose": self.loose / asked, "count": self.count}


def wilson_interval(rate: float, count: int, z: float = 1.96) -> tuple[float, float]:
    """95 % interval of a rate observed on ``count`` independent examples (Wilson 1927, score interval).

    Unlike the bootstrap it does not shrink to a point when every example is right or every example is wrong.

    >>> low, high = wilson_interval(1.0, 100)
    >>> round(low, 3), round(high, 3)
    (0.963, 1.0)
    """
    if count == 0:
        return 0.0, 1.0
    centre = (rate + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * math.sqrt(rate * (1 - rate) / count + z * z / (4 * count * count))
    return max(0.0, centre - half), min(1.0, centre + half)
