"""What a method has to do differently under the strategies that Lightning trains with."""

import importlib.util
import signal
import sys
from collections.abc import Mapping
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.plugins.precision import MixedPrecision, Precision
from lightning.pytorch.strategies import DeepSpeedStrategy, ModelParallelStrategy
from lightning.pytorch.strategies.launchers import _SubprocessScriptLauncher
from lightning.pytorch.utilities.enums import GradClipAlgorithmType

from mixsd_lightning.errors import UserError

_CONFIGS = "configs/strategies"


def is_sharding(trainer: Trainer) -> bool:
    """Whether the ranks are to hold parts of the model (FSDP2)."""
    return isinstance(trainer.strategy, ModelParallelStrategy)


def owns_gradients(trainer: Trainer) -> bool:
    """Whether gradients belong to an engine that makes the step of the optimizer by itself (DeepSpeed)."""
    return isinstance(trainer.strategy, DeepSpeedStrategy)


def check_strategy(strategy: Any) -> None:
    """Refuse what cannot run, before anything is loaded.

    Args:
        strategy: As in a config: a name, a class with its arguments, or an object.

    Raises:
        UserError: for strategies that this library, or this machine, cannot run.
    """
    name = strategy
    options: Mapping[str, Any] = {}
    if hasattr(strategy, "get") and strategy.get("class_path"):
        name, options = strategy["class_path"].rpartition(".")[2], dict(strategy.get("init_args") or {})
    if not isinstance(name, str):
        name = type(strategy).__name__
    name = name.lower()
    if name.startswith("fsdp"):
        raise UserError(f"--trainer.strategy: '{name}' is FSDP of the first generation; use {_CONFIGS}/fsdp.yaml, the second.")
    if name.startswith("deepspeed"):
        if "stage_3" in name or options.get("stage") == 3:
            raise UserError(
                "--trainer.strategy: stage 3 of DeepSpeed takes weights apart in a way of its own; "
                f"use {_CONFIGS}/fsdp.yaml for models that do not fit, or stage 2 ({_CONFIGS}/deepspeed.yaml)."
            )
        if importlib.util.find_spec("deepspeed") is None:
            raise UserError(
                f"--trainer.strategy: DeepSpeed is not installed; pip install deepspeed, or use {_CONFIGS}/fsdp.yaml."
            )
        if not torch.cuda.is_available():
            raise UserError(f"--trainer.strategy: DeepSpeed needs a GPU and there is none; use {_CONFIGS}/ddp.yaml.")


def check_accumulation(trainer: Trainer) -> None:
    """Refuse micro-batches where the tokens of all of them cannot be counted before gradients are averaged.

    Raises:
        UserError: if there are any.
    """
    if owns_gradients(trainer) and trainer.accumulate_grad_batches > 1:
        raise UserError(
            "--trainer.accumulate_grad_batches must be 1 with DeepSpeed, which averages micro-batches whatever their number of "
            f"tokens. Raise --data.batch_size, or use {_CONFIGS}/fsdp.yaml."
        )


def end_other_ranks(trainer: Trainer) -> None:
    """End the processes that Lightning has started beside this one: they would wait for it.

    Other launchers (torchrun, SLURM with ``--kill-on-bad-exit``) do that by themselves, and so does Lightning where the first process
    is not the one that failed.
    """
    launcher = trainer.strategy.launcher
    if isinstance(launcher, _SubprocessScriptLauncher):
        launcher.kill(signal.SIGTERM if sys.platform == "win32" else signal.SIGKILL)


def clip_gradients(
    module: LightningModule, optimizer: torch.optim.Optimizer, value: float | None, algorithm: str | None
) -> None:
    """What Lightning does, and with autocast too."""
    precision = module.trainer.precision_plugin
    if isinstance(precision, MixedPrecision) and precision.scaler is None:
        # Lightning would refuse, because the optimizer is fused; that matters to gradient scalers alone.
        Precision.clip_gradients(precision, optimizer, value or 0.0, GradClipAlgorithmType(algorithm or "norm"))
    else:
        module.clip_gradients(optimizer, value, algorithm)
