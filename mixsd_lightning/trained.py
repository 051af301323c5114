"""What a run has left: from the path that a user names to the trained student and the settings that it was trained with."""

import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from jsonargparse import ArgumentParser
from torch import Tensor
from transformers import PreTrainedModel

from mixsd_lightning.callbacks.metrics_file import METRICS_FILE, read_metrics
from mixsd_lightning.data import CorpusDataModule
from mixsd_lightning.errors import UserError
from mixsd_lightning.models import add_lora, load_student
from mixsd_lightning.sharded_checkpoint import is_sharded_checkpoint, read_sharded_checkpoint

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

    Nothing in a checkpoint is executed. Settings come from the run's ``config.yaml``, or from the checkpoint where that stands
    alone.

    Raises:
        UserError: if there is no checkpoint, or it cannot be read or was not made by a method of this library.
    """
    checkpoint_path = find_checkpoint(Path(path))
    checkpoint = _read_checkpoint(checkpoint_path)
    prefix = "student."
    weights = {
        name.removeprefix(prefix): tensor for name, tensor in checkpoint["state_dict"].items() if name.startswith(prefix)
    }
    run = checkpoint_path.parent.parent
    settings = _settings_of(checkpoint)
    if (run / CONFIG_FILE).is_file():
        remembered = settings["model"]["init_args"]
        settings = read_settings(run / CONFIG_FILE)
        settings["model"]["init_args"] = {**remembered, **settings["model"]["init_args"]}
    if not weights or "model_name_or_path" not in settings["model"]["init_args"]:
        raise UserError(f"'{checkpoint_path}' holds no student; give a checkpoint of a run of this library.")
    step = int(checkpoint["global_step"])
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
    return max(found, key=lambda p: p.stat().st_mtime_ns)


def read_settings(path: Path) -> Settings:
    """Read settings in the form of a run's ``config.yaml``.

    Raises:
        UserError: if they are not of that form.
    """
    try:
        settings = yaml.safe_load(path.read_text(encoding="utf-8"))
        for part in {"model", "data"} & settings.keys():
            settings[part].setdefault("init_args", {})
        _ = settings["model"]["class_path"]
    except (AttributeError, KeyError, TypeError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"'{path}' is no config of a run: it needs model.class_path.") from error
    return dict(settings)


def rebuild_corpus(settings: Settings) -> CorpusDataModule:
    """The corpus of a run, from its settings.

    Raises:
        UserError: if the settings name none, or it cannot be built here.
    """
    if "data" not in settings:
        raise UserError("the run's settings name no corpus")
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(CorpusDataModule, "data", required=True)
    data = {**settings["data"], "init_args": {k: v for k, v in settings["data"]["init_args"].items() if not k.startswith("_")}}
    try:
        corpus: CorpusDataModule = parser.instantiate_classes(parser.parse_object({"data": data})).data
    except Exception as error:  # whatever a class that is not here, or is another version, makes the parser raise
        reason = " ".join(str(error).split())
        raise UserError(f"the corpus {settings['data'].get('class_path')} cannot be built: {reason}") from error
    return corpus


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
    except (OSError, RuntimeError, EOFError, KeyError, TypeError, ValueError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"'{path}' cannot be read as a checkpoint: {reason}") from error
    return dict(checkpoint)


def _settings_of(checkpoint: dict[str, Any]) -> Settings:
    """Settings as a checkpoint remembers them."""
    settings: Settings = {"model": {"class_path": "a method of this library", "init_args": {}}}
    for part, key in (("model", "hyper_parameters"), ("data", "datamodule_hyper_parameters")):
        options = dict(checkpoint.get(key, {}))
        class_path = options.pop("_class_path", None)
        options.pop("_instantiator", None)
        if part == "model" or class_path:
            settings[part] = {"class_path": class_path or "a method of this library", "init_args": options}
    return settings
