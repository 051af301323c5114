"""Run folders as `fit` leaves them, made by hand."""

import json
from pathlib import Path
from typing import Any

import yaml

BASE = {
    "memorization/train": 0.0,
    "memorization/train_count": 100.0,
    "memorization/taught": 0.0,
    "memorization/taught_count": 93.0,
    "retention/kept": 1.0,
    "retention/kept_low": 1.0,
    "retention/kept_high": 1.0,
    "retention/agreement_top1": 1.0,
    "drift/l2": 0.0,
    "errors/train/genuine": 1.0,
    "targets/accepted": 93.0,
    "targets/rejected": 7.0,
}


def config(method: str = "SFT", seed: int = 1, corpus: str = "KGFact", **changes: Any) -> dict[str, Any]:
    """Settings of a run; ``changes`` are of the model, or of ``data__...`` and ``trainer__...``."""
    model: dict[str, Any] = {"learning_rate": 0.0001, "model_name_or_path": "smollm2-135m"}
    if method == "MixSD":
        model |= {"mixing_rate": 0.3, "mixing_seed": seed}
    data: dict[str, Any] = {"batch_size": 16, "seed": 42, "eval_splits": ["train"]}
    trainer: dict[str, Any] = {"max_epochs": 20, "precision": "32-true", "logger": {"init_args": {"name": f"run-{seed}"}}}
    for name, value in changes.items():
        section, _, key = name.rpartition("__")
        {"": model, "data": data, "trainer": trainer}[section][key] = value
    return {
        "seed_everything": seed,
        "trainer": trainer,
        "model": {"class_path": f"mixsd_lightning.{method}", "init_args": model},
        "data": {"class_path": f"mixsd_lightning.{corpus}", "init_args": data},
        "drift": {"num_sequences": 24},
        "retention": {"suites": ["probe"]},
        "ckpt_path": None,
    }


def write_run(folder: Path, settings: dict[str, Any] | None = None, *lines: dict[str, float], tail: str = "") -> Path:
    """A run folder with a validation for each of ``lines``; ``tail`` follows them as it is."""
    folder.mkdir(parents=True)
    if settings is not None:
        (folder / "config.yaml").write_text("# lightning.pytorch==2.6.6\n" + yaml.safe_dump(settings))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + tail)
    return folder


def validation(step: int, learnt: float, kept: float, **more: float) -> dict[str, float]:
    """What is logged after some steps; ``a__b`` stands for the tag ``a/b``."""
    tags = {
        "memorization/train": learnt,
        "memorization/train_count": 100.0,
        "memorization/train_loose": learnt,
        "retention/kept": kept,
        "retention/kept_low": kept - 0.05,
        "retention/kept_high": kept + 0.05,
        "retention/probe/kept": kept,
        "retention/agreement_top1": kept,
        "retention/agreement_kl": 1 - kept,
        "drift/l2": 5.0,
        "errors/train/format": 0.0,
        "errors/train/cross_entity": (1 - learnt) / 2,
        "errors/train/genuine": (1 - learnt) / 2,
        "resources/fit_seconds": 600.0,
    }
    return {"step": step, "epoch": step, **tags, **{name.replace("__", "/"): value for name, value in more.items()}}


def base_line() -> dict[str, float]:
    """The validation before training."""
    return {"step": 0, "epoch": 0, **BASE}


def write_comparison(root: Path) -> Path:
    """SFT at two learning rates, and MixSD at three mixing rates, one of them with three seeds."""
    write_run(root / "sft" / "version_0", config("SFT"), base_line(), validation(60, 0.9, 0.7), validation(120, 1.0, 0.75))
    slow = config("SFT", learning_rate=0.00005)
    write_run(root / "sft" / "version_1", slow, base_line(), validation(60, 0.8, 0.8), validation(120, 0.98, 0.8))
    for seed, kept in ((1, 0.9), (2, 0.92), (3, 0.91)):
        settings = config("MixSD", seed)
        taught = {"memorization/taught": 0.98, "memorization/taught_count": 93.0}
        last = validation(120, 0.96, kept, **taught, targets__accepted=93.0, targets__rejected=7.0, targets__nll_base=2.6)
        write_run(root / "mixsd" / f"version_{seed}", settings, base_line(), validation(60, 0.7, kept + 0.02), last)
    for rate, learnt, kept in ((0.1, 0.99, 0.84), (0.7, 0.3, 0.97)):
        last = validation(120, learnt, kept)
        write_run(root / f"mixsd-{rate}" / "version_0", config("MixSD", mixing_rate=rate), base_line(), last)
    return root
