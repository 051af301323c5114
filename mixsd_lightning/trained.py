"""What a run has left: from the path that a user names to the trained student and the settings that it was trained with."""

import importlib
import pickle
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jsonargparse import ArgumentParser
from torch import Tensor
from transformers import PreTrainedModel

from mixsd_lightning.callbacks.metrics_file import METRICS_FILE, read_metrics
from mixsd_lightning.checkpoint_io import PREVIOUS
from mixsd_lightning.data import CorpusDataModule
from mixsd_lightning.errors import UserError, printable
from mixsd_lightning.models import add_lora, load_student
from mixsd_lightning.sharded_checkpoint import is_sharded_checkpoint, read_sharded_checkpoint
from mixsd_lightning.untrusted import plain_values, read_yaml

CONFIG_FILE = "config.yaml"
Settings = dict[str, Any]
"""As in a run's ``config.yaml``: `model` and `data` have a `class_path` and `init_args`."""


@dataclass(frozen=True)
class Trained:
    """A checkpoint and what is known about its run."""

    weights: dict[str, Tensor]
    """The student's, by the names that they have in it; with LoRA those of the adapter alone."""
    settings: Settings
    step: int
    """Optimizer steps behind the weights."""
    metrics: list[dict[str, float]]
    """The validations of the run up to this step, oldest first."""

    @property
    def model_options(self) -> dict[str, Any]:
        """Settings of the method."""
        options: dict[str, Any] = self.settings["model"]["init_args"]
        return options

    def student(self, trust_remote_code: bool = False) -> PreTrainedModel:
        """The trained model, in eval mode; an adapter is in place and not merged.

        Args:
            trust_remote_code: Allow code that comes with the base model to run. What the run allowed does not count: its
                checkpoint may be somebody else's.

        Raises:
            UserError: if the base model cannot be loaded, or the weights are not of it.
        """
        options = self.model_options
        name = options["model_name_or_path"]
        student = load_student(name, trust_remote_code).eval()
        rank = options.get("lora_rank", 0)
        if rank:
            add_lora(student, rank, options["lora_alpha"])
        expected = {key for key in student.state_dict() if ".lora_" in key} if rank else set(student.state_dict())
        try:
            student.load_state_dict(self.weights, strict=False)
        except RuntimeError as error:  # other shapes
            raise UserError(
                f"The checkpoint does not fit its base model '{name}': {str(error).splitlines()[-1].strip()}"
            ) from error
        if wrong := expected ^ self.weights.keys():
            raise UserError(f"The checkpoint does not fit its base model '{name}': one of them has no '{min(wrong)}'.")
        return student.eval()


def read_trained(path: str | Path) -> Trained:
    """Read a run folder (its newest checkpoint), or a checkpoint: a file or a folder of sharded training.

    Nothing in a checkpoint is executed, and no module that it names is imported. Settings come from the run's ``config.yaml``, or
    from the checkpoint where that stands alone.

    Raises:
        UserError: if there is no checkpoint, or it cannot be read or was not made by a method of this library.
    """
    checkpoint_path = find_checkpoint(Path(path))
    checkpoint = _read_checkpoint(checkpoint_path)
    run = checkpoint_path.parent.parent
    try:
        weights, step, settings = (
            _weights_of(checkpoint),
            int(plain_values(checkpoint["global_step"])),
            _settings_of(checkpoint),
        )
    except (ValueError, TypeError, AttributeError, OverflowError) as error:
        raise UserError(f"'{checkpoint_path}' is no checkpoint of this library: {error}.") from error
    if (run / CONFIG_FILE).is_file():
        remembered = settings["model"]["init_args"]
        settings = read_settings(run / CONFIG_FILE)
        settings["model"]["init_args"] = {**remembered, **settings["model"]["init_args"]}
    if settings["model"]["init_args"].get("lora_rank"):  # sharded training saves the base model too
        weights = {name: tensor for name, tensor in weights.items() if ".lora_" in name}
    if not weights or "model_name_or_path" not in settings["model"]["init_args"]:
        raise UserError(f"'{checkpoint_path}' holds no student; give a checkpoint of a run of this library.")
    _check_model_options(settings["model"]["init_args"], checkpoint_path)
    metrics = read_metrics(run / METRICS_FILE)[0] if (run / METRICS_FILE).is_file() else []
    return Trained(weights, settings, step, [line for line in metrics if line["step"] <= step])


def find_checkpoint(path: Path) -> Path:
    """The checkpoint that a user means by a path.

    Raises:
        UserError: if there is none.
    """
    if path.is_file() or is_sharded_checkpoint(path):
        return path
    if not path.exists():
        raise UserError(f"There is no file or folder '{path}'; give a run folder (runs/<name>/version_<n>) or a checkpoint.")
    found = [p for p in (path / "checkpoints").glob("*") if p.suffix == ".ckpt" or is_sharded_checkpoint(p)]
    if not found:
        versions = sorted(version.name for version in path.glob("version_*"))
        hint = f"; its runs are {', '.join(versions)}" if versions else ""
        raise UserError(f"The folder '{path}' has no checkpoint in checkpoints/{hint}. Give a run folder or a checkpoint.")
    # Not by the clock alone, which may have been set back between the two.
    return max(found, key=lambda p: (p.name != PREVIOUS, p.stat().st_mtime_ns))


def read_settings(path: Path) -> Settings:
    """Read settings in the form of a run's ``config.yaml``.

    Raises:
        UserError: if they are not of that form.
    """
    settings = read_yaml(path)
    if not isinstance(settings, dict) or "model" not in settings:
        raise UserError(f"'{path}' is no config of a run: it needs model.class_path.")
    for part in ("model", "data"):
        if part not in settings:
            continue
        one = settings[part]
        options = one.get("init_args") if isinstance(one, dict) else None
        if not isinstance(one, dict) or not isinstance(one.get("class_path"), str) or not isinstance(options, dict | None):
            raise UserError(f"'{path}' is no config of a run: it needs {part}.class_path, and {part}.init_args with names.")
        one["init_args"] = options or {}
    return dict(settings)


def rebuild_corpus(settings: Settings, own: str | None = None) -> CorpusDataModule:
    """The corpus of a run, from its settings.

    To import a module is to run it, and the settings may be somebody else's. So nothing is imported but what the user names.

    Args:
        settings: Of the run.
        own: Class path of a corpus that is not of this library, to be imported if it is the one of the settings.

    Raises:
        UserError: if the settings name none, or it cannot be built here.
    """
    if "data" not in settings:
        raise UserError("the run's settings name no corpus")
    name, options = settings["data"]["class_path"], settings["data"]["init_args"]
    corpus_class = _corpus_class(name, may_import=name == own)
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(CorpusDataModule, "data", required=True)
    data = {
        "class_path": f"{corpus_class.__module__}.{corpus_class.__qualname__}",
        "init_args": {key: value for key, value in options.items() if not key.startswith("_")},
    }
    try:
        corpus: CorpusDataModule = parser.instantiate_classes(parser.parse_object({"data": data})).data
    except Exception as error:  # whatever a class of another version makes the parser raise
        reason = " ".join(str(error).split())
        raise UserError(f"the corpus {name} cannot be built: {reason}") from error
    return corpus


def _corpus_class(class_path: str, may_import: bool) -> type[CorpusDataModule]:
    """A corpus by its class path, or by its name alone if it is of this library.

    Raises:
        UserError: if there is none, or it would have to be imported and may not be.
    """
    module_name, _, name = class_path.rpartition(".")
    module_name = module_name or "mixsd_lightning"
    if may_import:
        try:
            importlib.import_module(module_name)
        except ImportError as error:
            raise UserError(f"--corpus: {module_name} cannot be imported: {error}") from error
    # Not getattr: a module may import others when it is asked for a name.
    found = vars(sys.modules[module_name]).get(name) if module_name in sys.modules else None
    if isinstance(found, type) and issubclass(found, CorpusDataModule):
        return found
    if may_import:
        raise UserError(f"--corpus: {class_path} is no corpus.")
    raise UserError(
        f"the corpus {class_path} cannot be built: it is not of this library, and files import nothing; if it is yours, "
        f"--corpus {class_path} allows it"
    )


def _read_checkpoint(path: Path) -> dict[str, Any]:
    try:
        if is_sharded_checkpoint(path):
            checkpoint = read_sharded_checkpoint(path)
        else:  # mapped: the states of the optimizer, twice as large as the weights, are not read
            checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        _ = checkpoint["state_dict"], checkpoint["global_step"]
    except pickle.UnpicklingError as error:
        raise UserError(
            f"'{path}' holds more than weights and plain values, so it was not opened: that could run any program. "
            "Give a checkpoint that this library wrote."
        ) from error
    except Exception as error:  # whatever a damaged file makes the loaders raise; the cause is kept and shown
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"'{path}' cannot be read as a checkpoint: {reason}") from error
    return dict(checkpoint)


def _weights_of(checkpoint: dict[str, Any]) -> dict[str, Tensor]:
    """The student's weights, by the names that they have in it.

    Raises:
        ValueError: if there is something else among them.
    """
    prefix = "student."
    weights = {
        name.removeprefix(prefix): tensor for name, tensor in checkpoint["state_dict"].items() if name.startswith(prefix)
    }
    if wrong := [name for name, tensor in weights.items() if not isinstance(tensor, Tensor)]:
        raise ValueError(f"'{printable(wrong[0])}' is no tensor")
    return weights


def _settings_of(checkpoint: dict[str, Any]) -> Settings:
    """Settings as a checkpoint remembers them.

    Raises:
        ValueError: if they are no plain values.
    """
    settings: Settings = {"model": {"class_path": "a method of this library", "init_args": {}}}
    for part, key in (("model", "hyper_parameters"), ("data", "datamodule_hyper_parameters")):
        options = dict(checkpoint.get(key, {}))
        class_path = options.pop("_class_path", None)
        options.pop("_instantiator", None)
        if part == "model" or class_path:
            settings[part] = {"class_path": str(class_path or "a method of this library"), "init_args": plain_values(options)}
    return settings


def _check_model_options(options: dict[str, Any], path: Path) -> None:
    rank, alpha = options.get("lora_rank", 0), options.get("lora_alpha", 0)
    if not isinstance(options["model_name_or_path"], str) or type(rank) is not int or not isinstance(alpha, int | float):
        raise UserError(f"'{path}': its settings have a base model or a LoRA rank that is none; were they edited?")
