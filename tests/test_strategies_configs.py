"""The overlays for several devices go on top of any config, and what cannot run says so in one line."""

import importlib.util
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from lightning.pytorch.cli import LightningCLI
from lightning.pytorch.strategies import DDPStrategy, DeepSpeedStrategy, ModelParallelStrategy

from mixsd_lightning.cli import MixSDCLI, main
from mixsd_lightning.errors import UserError
from mixsd_lightning.modules.strategies import check_accumulation, check_strategy, is_sharding

ROOT = Path(__file__).parents[1]
OVERLAYS = ROOT / "configs/strategies"
BASES = ["quickstart.yaml", "kgfact/unisd_star.yaml", "lora.yaml"]
CPU = ["--trainer.accelerator", "cpu", "--trainer.devices", "2"]


@pytest.fixture(autouse=True)
def nothing_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["mixsd_lightning"])
    monkeypatch.setattr(LightningCLI, "_run_subcommand", lambda self, subcommand: None)


def arguments(base: str, overlay: str) -> list[str]:
    first = ["--config", str(ROOT / "configs/quickstart.yaml")] if base == "lora.yaml" else []
    return ["fit", *first, "--config", str(ROOT / "configs" / base), "--config", str(OVERLAYS / f"{overlay}.yaml")]


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize(("overlay", "kind"), [("ddp", DDPStrategy), ("fsdp", ModelParallelStrategy)])
def test_an_overlay_changes_the_strategy_alone(base: str, overlay: str, kind: type) -> None:
    cli = MixSDCLI([*arguments(base, overlay), *CPU])
    assert type(cli.trainer.strategy) is kind
    assert cli.trainer.world_size == 2
    assert is_sharding(cli.trainer) == (overlay == "fsdp")
    plain = MixSDCLI([*arguments(base, overlay)[:-2], "--trainer.accelerator", "cpu"])
    assert cli.model.hparams == plain.model.hparams
    assert cli.datamodule.hparams == plain.datamodule.hparams
    assert [type(callback) for callback in cli.trainer.callbacks] == [type(callback) for callback in plain.trainer.callbacks]


def test_every_key_of_an_overlay_is_explained() -> None:
    paths = sorted(OVERLAYS.glob("*.yaml"))
    assert [path.stem for path in paths] == ["ddp", "deepspeed", "fsdp"]
    for path in paths:
        assert set(yaml.safe_load(path.read_text())) == {"trainer"}
        for line in path.read_text().splitlines():
            key, _, rest = line.partition(":")
            if line and not line.startswith("#") and rest and not key.endswith(("class_path", "tensor_parallel_size")):
                assert " # " in rest, line


@pytest.mark.parametrize("has_deepspeed", [False, True])
def test_deepspeed_ends_in_one_line_where_it_cannot_run(
    has_deepspeed: bool, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object() if has_deepspeed else None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit) as ended:
        main(arguments("quickstart.yaml", "deepspeed"))
    assert ended.value.code == 2
    said = [line for line in capsys.readouterr().err.splitlines() if "Seed set" not in line]
    reason = "needs a GPU and there is none" if has_deepspeed else "is not installed; pip install deepspeed"
    assert len(said) == 1
    assert said[0].startswith("error: --trainer.strategy: DeepSpeed")
    assert reason in said[0]


@pytest.mark.parametrize(
    ("strategy", "complaint"),
    [
        ("fsdp", "first generation"),
        ("fsdp_cpu_offload", "first generation"),
        ({"class_path": "lightning.pytorch.strategies.FSDPStrategy"}, "first generation"),
        ("deepspeed_stage_3", "stage 3"),
        ("deepspeed_stage_3_offload", "stage 3"),
        ({"class_path": "lightning.pytorch.strategies.DeepSpeedStrategy", "init_args": {"stage": 3}}, "stage 3"),
    ],
)
def test_strategies_that_take_weights_apart_in_other_ways_are_refused(strategy: Any, complaint: str) -> None:
    with pytest.raises(UserError, match=complaint):
        check_strategy(strategy)


@pytest.mark.parametrize(
    "strategy", ["auto", "ddp", "ddp_find_unused_parameters_true", DDPStrategy(), ModelParallelStrategy()]
)
def test_others_are_not(strategy: Any) -> None:
    check_strategy(strategy)


def test_deepspeed_takes_whole_batches_alone() -> None:
    engine = object.__new__(DeepSpeedStrategy)  # whose constructor wants the package
    check_accumulation(SimpleNamespace(strategy=engine, accumulate_grad_batches=1))  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"--trainer\.accumulate_grad_batches must be 1 with DeepSpeed"):
        check_accumulation(SimpleNamespace(strategy=engine, accumulate_grad_batches=2))  # type: ignore[arg-type]
