"""The model that is trained: as it is loaded, and as the strategy of a run wants it."""

from dataclasses import dataclass

import torch
from lightning.pytorch import Trainer
from transformers import PreTrainedModel

from mixsd_lightning.models import add_lora, compile_decoder, load_student
from mixsd_lightning.modules.strategies import is_sharding
from mixsd_lightning.ranks import of_first_rank
from mixsd_lightning.sharding import is_sharded, shard
from mixsd_lightning.target_states import check_head


@dataclass(frozen=True)
class StudentSettings:
    """What the options of the methods say about the student; see :class:`~mixsd_lightning.modules.base.KnowledgeModule`."""

    model_name_or_path: str
    trust_remote_code: bool = False
    lora_rank: int = 0
    lora_alpha: int = 32
    gradient_checkpointing: bool = False
    compile: bool = False


def make_student(settings: StudentSettings) -> PreTrainedModel:
    """Load a model and make it ready to train, on the CPU.

    Raises:
        UserError: if it cannot be read, or has a head that cannot be trained here.
    """
    student = load_student(settings.model_name_or_path, settings.trust_remote_code)
    check_head(student)
    if settings.lora_rank:
        add_lora(student, settings.lora_rank, settings.lora_alpha)
    if settings.gradient_checkpointing:
        student.gradient_checkpointing_enable({"use_reentrant": False})
    if settings.compile:
        compile_decoder(student)
    return student


def shard_as_asked(student: PreTrainedModel, trainer: Trainer) -> None:
    """Spread a student over the ranks, where the strategy does that and it has not been done."""
    if is_sharding(trainer) and not is_sharded(student):
        # An adapter begins at random, and every rank has thrown its own dice. What comes from files is the same everywhere.
        adapter = {name: value.cpu() for name, value in student.state_dict().items() if ".lora_" in name}
        student.load_state_dict(of_first_rank(adapter), strict=False)
        shard(student, trainer.strategy.root_device.type)


def base_copy(
    settings: StudentSettings, student: PreTrainedModel, device: torch.device, other_device: str | None = None
) -> PreTrainedModel:
    """A fresh copy of the base model in the precision of the student, spread over the ranks if the student is.

    Args:
        settings: Which model.
        student: What it is to stand beside.
        device: Where that is.
        other_device: Where a whole copy goes instead, on every rank.
    """
    base = load_student(settings.model_name_or_path, settings.trust_remote_code)
    base.to(dtype=student.dtype)  # type: ignore[call-arg]
    if is_sharded(student) and other_device is None:
        shard(base, device.type)
        return base
    base.to(device=other_device or device)  # type: ignore[call-arg]
    return base
