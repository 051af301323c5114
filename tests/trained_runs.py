"""Run folders as training leaves them, without training."""

from pathlib import Path
from typing import Any

import torch
import yaml
from lightning.pytorch import Trainer

from mixsd_lightning import SFT

CORPUS = {"class_path": "mixsd_lightning.KGFact", "init_args": {"num_domains": 2, "num_entities": 3, "eval_splits": ["train"]}}


def untrained(model: str, lora_rank: int = 0) -> SFT:
    """A method whose student is its base model."""
    module = SFT(model, lora_rank=lora_rank)
    module.configure_model()
    return module


@torch.no_grad()
def moved(model: str, lora_rank: int = 0) -> SFT:
    """A method whose student is not its base model."""
    module = untrained(model, lora_rank)
    generator = torch.Generator().manual_seed(0)
    for parameter in module.student.parameters():
        if parameter.requires_grad:
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return module


def write_checkpoint(path: Path, module: SFT, step: int = 6) -> None:
    """What Lightning's trainer writes, after so many steps."""
    trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_model_summary=False)
    trainer.strategy.connect(module)
    checkpoint: dict[str, Any] = trainer._checkpoint_connector.dump_checkpoint(weights_only=True)
    torch.save({**checkpoint, "global_step": step}, path)


def write_run(folder: Path, module: SFT, step: int = 6) -> Path:
    """A whole run folder; returns its checkpoint."""
    settings = {"model": {"class_path": "mixsd_lightning.SFT", "init_args": dict(module.hparams)}, "data": CORPUS}
    path = folder / "checkpoints/last.ckpt"
    path.parent.mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(settings))
    write_checkpoint(path, module, step)
    return path
