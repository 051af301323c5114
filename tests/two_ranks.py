"""Fits of every method under a strategy, with all that they leave; run by two processes, and by one to compare with."""

import os
import sys
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.strategies import ModelParallelStrategy

from mixsd_lightning import OPSD, SFT, KGFact, MixSD, UniSD
from mixsd_lightning.callbacks import CollapseAlert, Completions, ErrorModes, FisherDrift, MetricsFile, Resources, Retention
from mixsd_lightning.cli import main
from mixsd_lightning.errors import UserError
from mixsd_lightning.evaluation.suites.agreement import Agreement
from mixsd_lightning.evaluation.suites.bits_per_byte import BitsPerByte
from mixsd_lightning.models import effective_parameters, load_student
from mixsd_lightning.modules.base import KnowledgeModule
from mixsd_lightning.sharding import local, whole

METHODS: dict[str, tuple[type[KnowledgeModule], dict[str, Any]]] = {
    "SFT": (SFT, {}),
    "MixSD": (MixSD, {"on_reject": "keep", "temperature": 1.0, "mixing_rate": 0.5, "max_attempts": 3}),
    "OPSD": (OPSD, {"num_rollouts": 2, "max_divergence_quantile": 0.7, "nll_every_n_steps": 1, "updates_per_rollout": 2}),
    "UniSD": (UniSD, {"num_contexts": 2, "ema_decay": 0.5, "feature_layers": [1, -1]}),
    "LoRA": (OPSD, {"teacher": "ema", "ema_decay": 0.5, "lora_rank": 2}),
}

STRATEGIES: dict[str, Any] = {"ddp": lambda: "ddp", "fsdp": ModelParallelStrategy}

NUM_EXAMPLES = 5
"""In global batches of four: of the last, the second rank has nothing."""


class Steps(Callback):
    """What is logged at every training step."""

    def __init__(self) -> None:
        self.logged: list[dict[str, float]] = []

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        found = {
            tag: float(value) for tag, value in trainer.callback_metrics.items() if tag.startswith(("train/", "targets/"))
        }
        self.logged.append(found)


class Failing(Callback):
    """Something is wrong on one rank alone."""

    def on_train_batch_start(self, trainer: Trainer, *args: Any) -> None:
        if trainer.global_rank == 1:
            raise UserError("what the second rank says.")


class Kept(Callback):
    """Whose rollouts this rank has made for the first batch, and whose a checkpoint would hold."""

    def on_train_batch_end(self, trainer: Trainer, method: LightningModule, *args: Any) -> None:
        if trainer.global_step == 1:
            checkpoint: dict[str, Any] = {"state_dict": {}}
            method.on_save_checkpoint(checkpoint)
            self.own, self.saved = sorted(method._rollouts), sorted(checkpoint["rollouts"])


def corpus(num_ranks: int) -> KGFact:
    size = 4 // num_ranks
    return KGFact(num_domains=2, num_entities=NUM_EXAMPLES, batch_size=size, eval_batch_size=size)


def trainer(folder: Path, callbacks: list[Callback], **options: Any) -> Trainer:
    settings: dict[str, Any] = {
        "accelerator": "cpu",
        "logger": TensorBoardLogger(folder, name="runs"),
        "num_sanity_val_steps": -1,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": False,
        "log_every_n_steps": 1,
        "gradient_clip_val": 1.0,
        "max_epochs": 2,
    }
    return Trainer(callbacks=callbacks, **(settings | options))


def whole_weights(method: LightningModule) -> dict[str, torch.Tensor]:
    """What a student computes with, an adapter's change in it."""
    return {name: whole(local(value), like=value).clone() for name, value in effective_parameters(method.student)}


def fit_all(model_path: str, text: str, folder: Path, rank: int = 0, **options: Any) -> dict[str, Any]:
    """Fit every method; returns logged numbers and the weights before and after."""
    found: dict[str, Any] = {}
    before = {name: value.detach() for name, value in load_student(model_path).named_parameters()}
    for name, (kind, settings) in METHODS.items():
        steps = Steps()
        torch.manual_seed(rank)  # adapters begin at random
        method = kind(model_path, max_new_tokens=6, learning_rate=1e-3, warmup_steps=1, **settings)
        watchers = [FisherDrift(num_sequences=2, quadratic=True), Retention([BitsPerByte(text), Agreement(4)]), ErrorModes()]
        watchers += [Completions(), CollapseAlert(), Resources(), steps, MetricsFile()]
        asked = {name: make() if name == "strategy" else make for name, make in options.items()}
        fit = trainer(folder / name, watchers, **asked)
        fit.fit(method, corpus(options.get("devices", 1)))
        fit.save_checkpoint(folder / name / "end.ckpt")
        found[name] = {"steps": steps.logged, "before": before, "weights": whole_weights(method)}
    return found


def fit_and_resume(model_path: str, folder: Path, strategy: Any) -> dict[str, Any]:
    """The ends of a run and of one that went on from its checkpoint, and whose rollouts a checkpoint holds."""
    settings: dict[str, Any] = METHODS["OPSD"][1] | {
        "teacher": "ema",
        "ema_decay": 0.5,
        "max_new_tokens": 6,
        "learning_rate": 1e-3,
    }
    ends, kept = [], Kept()
    for ckpt_path in (None, folder / "run/runs/version_0/checkpoints/epoch=0.ckpt"):
        saves = ModelCheckpoint(every_n_epochs=1, save_top_k=-1, filename="{epoch}", save_on_train_epoch_end=True)
        options = {"strategy": strategy(), "devices": 2, "enable_checkpointing": True, "limit_val_batches": 0}
        method = OPSD(model_path, **settings)
        trainer(folder / "run", [saves, kept], **options).fit(method, corpus(2), ckpt_path=ckpt_path)
        assert method.teacher is not None
        ends.append({"weights": whole_weights(method), "teacher": method.teacher.state_dict()})
    return {"ends": ends, "own": kept.own, "saved": kept.saved}


def run_rank(rank: int, model_path: str, text: str, folder: str, port: int) -> None:
    """One of two ranks, as torchrun would start it."""
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "GROUP_RANK": "0", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "TORCHELASTIC_RUN_ID": "test"}
    os.environ |= {"MIXSD_CACHE_DIR": f"{folder}/cache"}
    os.chdir(folder)
    for name, strategy in STRATEGIES.items():
        found = fit_all(model_path, text, Path(folder, name), rank, strategy=strategy, devices=2)
        found["resumed"] = fit_and_resume(model_path, Path(folder, name), strategy)
        torch.save(found, f"{folder}/{name}-{rank}.pt")
    with Path(folder, f"errors-{rank}.txt").open("w") as errors:
        os.dup2(errors.fileno(), sys.stderr.fileno())
    options = [f"--model.model_name_or_path={model_path}", "--data=KGFact", "--data.num_domains=2", "--data.num_entities=4"]
    options += ["--drift.num_sequences=1", "--retention.suites=[]", "--trainer.accelerator=cpu", "--trainer.devices=2"]
    options += ["--trainer.strategy=ddp", "--trainer.max_epochs=1", "--trainer.callbacks=two_ranks.Failing"]
    main(["fit", "--model=SFT", *options])  # does not return
