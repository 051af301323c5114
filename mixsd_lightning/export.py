"""A trained student as a Hugging Face folder that transformers and vLLM load like any other model."""

import copy
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
import yaml
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from mixsd_lightning.arguments import OneLineArguments
from mixsd_lightning.context import ChatEncoder
from mixsd_lightning.errors import UserError
from mixsd_lightning.model_card import model_card
from mixsd_lightning.models import effective_parameters, load_student, load_tokenizer, stop_token_ids
from mixsd_lightning.modules.base import KnowledgeModule
from mixsd_lightning.trained import Settings, Trained, read_trained

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
SETTINGS_FILE = "training.yaml"
"""In an exported folder: the settings of its run, in the form of a run's ``config.yaml``."""


def main(arguments: Sequence[str]) -> None:
    """``python -m mixsd_lightning export RUN_OR_CHECKPOINT OUTPUT``.

    Raises:
        UserError: if something is wrong with the arguments, the checkpoint or the output.
    """
    parser = OneLineArguments("export", description=__doc__)
    parser.add_argument("trained", metavar="RUN_OR_CHECKPOINT", help="a run folder (its newest checkpoint) or a checkpoint")
    parser.add_argument("output", metavar="OUTPUT", type=Path, help="the folder to write; it must be empty or not be there")
    parser.add_argument("--dtype", choices=list(DTYPES), default="float32", help="of the weights (default: float32)")
    parser.add_argument("--keep_adapter", action="store_true", help="write a LoRA adapter as PEFT does instead of merging it")
    parser.add_argument("--trust_remote_code", action="store_true", help="allow code that comes with the base model to run")
    options = parser.parse_args(arguments)
    check_output(options.output)  # before anything large is read
    trained = read_trained(options.trained)
    export_trained(trained, options.output, options.dtype, options.keep_adapter, options.trust_remote_code)
    print(f"Exported to {options.output}")


def export_trained(
    trained: Trained,
    output: str | Path,
    dtype: str = "float32",
    keep_adapter: bool = False,
    trust_remote_code: bool = False,
) -> None:
    """Write what a run has trained; see :func:`export_student`.

    Args:
        trained: What :func:`~mixsd_lightning.trained.read_trained` gives.
        output: The folder to write.
        dtype: Of the weights, one of :data:`DTYPES`.
        keep_adapter: Write a LoRA adapter alone, as PEFT does, instead of merging it.
        trust_remote_code: Allow code that comes with the base model to run.

    Raises:
        UserError: if there is something at ``output`` already, it cannot be written, or the base model cannot be loaded.
    """
    student = trained.student(trust_remote_code)
    tokenizer = load_tokenizer(trained.model_options["model_name_or_path"], trust_remote_code)
    _write(student, tokenizer, trained.settings, trained, Path(output), dtype, keep_adapter, trust_remote_code)


def export_student(module: KnowledgeModule, folder: str | Path, dtype: str = "float32", keep_adapter: bool = False) -> None:
    """Write safetensors, config, generation config, tokenizer, chat template, model card and the settings of the training.

    A LoRA adapter is merged into a copy of the weights. The module stays as it is. The folder appears when all of it is written.

    Args:
        module: The method whose student is written.
        folder: The folder to write.
        dtype: Of the weights, one of :data:`DTYPES`.
        keep_adapter: Write the LoRA adapter alone, as PEFT does, instead of merging it.

    Raises:
        UserError: if there is something at ``folder`` already, or it cannot be written.
    """
    settings = {"model": {"class_path": type(module).__name__, "init_args": dict(module.hparams)}}
    student, remote = module.student, module.trust_remote_code
    _write(student, module.tokenizer, settings, None, Path(folder), dtype, keep_adapter, remote)


def check_output(folder: Path) -> None:
    """Make sure that nothing would be overwritten.

    Raises:
        UserError: if there is a file or a folder with something in it.
    """
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise UserError(f"'{folder}' is there already; give another folder for the export, or move it away.")


@torch.no_grad()
def merged(student: PreTrainedModel, model_name_or_path: str, trust_remote_code: bool = False) -> PreTrainedModel:
    """A fresh copy of the base model with the student's weights, the change that an adapter makes in them; the student stays."""
    model = load_student(model_name_or_path, trust_remote_code).eval()
    parameters = dict(model.named_parameters())
    for name, weight in effective_parameters(student):
        parameters[name].copy_(weight)
    return model


def _write(
    student: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    settings: Settings,
    trained: Trained | None,
    output: Path,
    dtype: str,
    keep_adapter: bool,
    trust_remote_code: bool,
) -> None:
    settings = json.loads(json.dumps(settings))  # tuples as lists
    run = None if trained is None else (trained.step, trained.metrics)
    options = settings["model"]["init_args"]
    has_adapter = bool(options.get("lora_rank", 0))
    if keep_adapter and not has_adapter:
        raise UserError("--keep_adapter: this model was trained without a LoRA adapter; leave the flag out.")
    if keep_adapter and dtype != "float32":
        raise UserError("--keep_adapter writes the adapter as it was trained, in float32; leave --dtype out.")
    check_output(output)
    if not keep_adapter and (has_adapter or dtype != "float32"):
        student = merged(student, options["model_name_or_path"], trust_remote_code).to(DTYPES[dtype])  # type: ignore[arg-type]
    try:
        output.absolute().parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{output.name}-", dir=output.absolute().parent) as scratch:
            partial = Path(scratch, "export")
            student.save_pretrained(partial)
            _save_generation_config(student, tokenizer, partial)
            tokenizer.save_pretrained(partial)
            (partial / SETTINGS_FILE).write_text(yaml.safe_dump(settings, sort_keys=False), encoding="utf-8")
            card = model_card(output.absolute().name, settings, dtype, run, keep_adapter)
            (partial / "README.md").write_text(card, encoding="utf-8")
            for file in partial.iterdir():  # safetensors writes for the owner alone
                file.chmod((partial / "README.md").stat().st_mode)
            if output.exists():
                output.rmdir()  # empty
            partial.rename(output)
    except OSError as error:
        raise UserError(f"Cannot write the export to '{output}': {error.strerror or error}. Give another folder.") from error


def _save_generation_config(student: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """With all tokens that end an answer: other programs know no chat template's end of turn."""
    generation = copy.deepcopy(student.generation_config)
    generation.eos_token_id = sorted(stop_token_ids(student, ChatEncoder(tokenizer).end_of_turn_id))
    generation.save_pretrained(folder)
