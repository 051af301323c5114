"""A trained student as a Hugging Face folder that transformers and vLLM load like any other model."""

import shutil
from pathlib import Path

import torch

from mixsd_lightning.errors import UserError
from mixsd_lightning.models import effective_parameters, load_student
from mixsd_lightning.modules.base import KnowledgeModule


@torch.no_grad()
def export_student(module: KnowledgeModule, folder: str | Path) -> None:
    """Write safetensors, config, generation config, tokenizer and chat template; a LoRA adapter is merged into the weights.

    The module stays as it is. The folder appears when all of it is written.

    Raises:
        UserError: if there is something at ``folder`` already.
    """
    folder = Path(folder)
    if folder.exists():
        raise UserError(f"'{folder}' is there already; give another folder for the export, or move it away.")
    student = module.student
    if module.lora_rank:
        student = load_student(module.model_name_or_path, module.trust_remote_code)
        parameters = dict(student.named_parameters())
        for name, weight in effective_parameters(module.student):
            parameters[name].copy_(weight)
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    student.save_pretrained(partial)
    module.tokenizer.save_pretrained(partial)
    partial.rename(folder)
