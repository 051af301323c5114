"""Who a student that distils itself learns from: the base model, itself as it is, or a moving average of itself."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

import torch
from torch import Tensor
from transformers import PreTrainedModel

from mixsd_lightning.errors import UserError
from mixsd_lightning.models import base_parameters, effective_parameters, evaluating, without_lora
from mixsd_lightning.sharding import local, local_part, reshard, whole


class Teacher(Protocol):
    """A model to imitate."""

    @contextmanager
    def model(self) -> Iterator[PreTrainedModel]:
        """The teacher as it is now, in eval mode and without gradients."""
        ...

    def step(self, num_steps: int) -> None:
        """Note that the student has made its ``num_steps``-th optimizer step."""
        ...

    def state_dict(self) -> dict[str, Tensor]:
        """What a checkpoint must hold to bring the teacher back."""
        ...

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Bring the teacher back."""
        ...


class _StatelessTeacher:
    def step(self, num_steps: int) -> None:
        """It does not follow."""

    def state_dict(self) -> dict[str, Tensor]:
        """Nothing: a checkpoint holds no copy of the base model."""
        return {}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Nothing to load."""


class FrozenTeacher(_StatelessTeacher):
    """The base model: a copy of it or, with LoRA, the student without its adapter."""

    def __init__(self, model: PreTrainedModel, has_adapter: bool = False) -> None:
        """
        Args:
            model: The copy, or the student that has an adapter.
            has_adapter: Which of them it is.
        """
        self._model = model
        self._has_adapter = has_adapter

    @contextmanager
    def model(self) -> Iterator[PreTrainedModel]:
        with torch.no_grad(), evaluating(self._model):
            if self._has_adapter:
                with without_lora(self._model):
                    yield self._model
            else:
                yield self._model


class SharedTeacher(FrozenTeacher):
    """The student as it is now; only what it sees makes it a teacher."""

    def __init__(self, student: PreTrainedModel) -> None:
        super().__init__(student)


class EMATeacher:
    r"""An exponential moving average of the student: every n-th step, :math:`\theta_T \leftarrow d\theta_T + (1-d)\theta_S`.

    With LoRA it averages the weights with the adapter's change in them, which amounts to averaging the change (averaging the
    two factors of the adapter would be something else). A mean of changes of low rank is not of low rank: the average is as
    large as the weights. It is kept in float32, whatever precision the models have. Of sharded models every rank averages its part.
    """

    def __init__(self, model: PreTrainedModel, student: PreTrainedModel, decay: float, every_n_steps: int) -> None:
        """
        Args:
            model: A copy of the base model, which becomes the teacher.
            student: The model that it follows.
            decay: Share of itself that the teacher keeps (d).
            every_n_steps: Optimizer steps from one update to the next.
        """
        self._model = model
        self._student = student
        self._decay = decay
        self._every_n_steps = every_n_steps
        self._parameters = dict(base_parameters(model))
        trained = [name for name, _ in effective_parameters(student, only_trained=True)]
        # The parameters themselves, where they are float32.
        self._averages = {name: local(self._parameters[name].detach()).float() for name in trained}

    @contextmanager
    def model(self) -> Iterator[PreTrainedModel]:
        with torch.no_grad(), evaluating(self._model):
            yield self._model

    @torch.no_grad()
    def step(self, num_steps: int) -> None:
        """Move towards the student, if it is time."""
        if num_steps % self._every_n_steps == 0:
            for name, parameter in effective_parameters(self._student, only_trained=True):
                self._averages[name].lerp_(local(parameter).float(), 1 - self._decay)
            self._write()

    def state_dict(self) -> dict[str, Tensor]:
        """The averages; of a sharded teacher all of each, on the CPU."""
        return {name: whole(average, like=self._parameters[name]) for name, average in self._averages.items()}

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take averages over.

        Raises:
            UserError: if they are of other parameters.
        """
        if state.keys() != self._averages.keys():
            raise UserError(
                "--ckpt_path: the checkpoint holds no EMA teacher of these weights; resume with the settings of its run."
            )
        for name, average in self._averages.items():
            average.copy_(local_part(state[name], like=self._parameters[name]))
        self._write()

    def _write(self) -> None:
        reshard(self._model)
        for name, average in self._averages.items():
            local(self._parameters[name]).copy_(average)
