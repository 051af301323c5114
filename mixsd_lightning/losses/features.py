"""Hidden states of a student that are to be like a teacher's.

Shapes: N token positions, H hidden.
"""

from collections.abc import Mapping

import torch
from torch import Tensor


def feature_losses(student: Mapping[int, Tensor], teacher: Mapping[int, Tensor]) -> Tensor:
    """Mean squared difference of hidden states at every position (N), averaged over layers, with gradients for the student's.

    Args:
        student: Layer -> states ``[N, H]``.
        teacher: The same layers of the teacher.
    """
    if student.keys() != teacher.keys():
        raise ValueError(f"layers {sorted(student)} against {sorted(teacher)}")
    per_layer = [(student[layer] - teacher[layer].detach()).square().mean(-1) for layer in student]
    return torch.stack(per_layer).mean(0)
