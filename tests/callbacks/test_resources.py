"""What a run uses is what clocks, counters and the kernel say, over resumptions too."""

import json
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from mixsd_lightning import OPSD, SFT, KGFact, KnowledgeModule, MetricsFile, Resources
from mixsd_lightning.callbacks.energy import EnergyMeter

QUICK: dict[str, Any] = {"max_new_tokens": 4, "warmup_steps": 0}


class Slow(Callback):
    """Takes its time, in steps or between them."""

    def __init__(self, seconds: float, is_in_steps: bool) -> None:
        self._seconds, self._is_in_steps = seconds, is_in_steps

    def on_before_optimizer_step(self, *args: Any) -> None:
        time.sleep(self._seconds * self._is_in_steps)

    def on_train_epoch_start(self, *args: Any) -> None:
        time.sleep(self._seconds * (not self._is_in_steps))


def fit(folder: Path, method: KnowledgeModule, *others: Callback, epochs: int = 1, **options: Any) -> list[dict[str, float]]:
    """Lines of the metrics file."""
    data = KGFact(num_domains=2, num_entities=2, batch_size=3, eval_splits=["train"], max_eval_examples=1)
    trainer = Trainer(
        default_root_dir=folder,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        max_epochs=epochs,
        callbacks=[Resources(), *others, MetricsFile()],
    )
    trainer.fit(method, data, **options)
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_tokens_are_those_that_were_trained_on_and_generated(tiny_model_path: str, tmp_path: Path) -> None:
    method = SFT(tiny_model_path, **QUICK)
    lines = fit(tmp_path / "sft", method, epochs=2)
    examples = KGFact(num_domains=2, num_entities=2).split("train")
    once = sum(len(method.encoder.target(example.target)) for example in examples)
    assert [line["resources/trained_tokens"] for line in lines] == [once, 2 * once]
    assert all("resources/generated_tokens" not in line for line in lines)
    for line in lines:
        rate = line["resources/trained_tokens"] / line["resources/train_seconds"]
        assert line["resources/tokens_per_second"] == pytest.approx(rate)

    rolled = fit(tmp_path / "opsd", OPSD(tiny_model_path, skip_first_tokens=1, mask_truncated=False, **QUICK))[0]
    assert rolled["resources/generated_tokens"] == rolled["resources/trained_tokens"] + len(examples)


@pytest.mark.parametrize("is_in_steps", [True, False])
def test_time_is_that_of_the_clock(tiny_model_path: str, tmp_path: Path, is_in_steps: bool) -> None:
    began = time.monotonic()
    line = fit(tmp_path, SFT(tiny_model_path, **QUICK), Slow(0.5, is_in_steps))[0]
    elapsed = time.monotonic() - began
    assert 0.5 < line["resources/fit_seconds"] < elapsed
    assert line["resources/train_seconds"] < line["resources/fit_seconds"]
    if is_in_steps:
        assert line["resources/train_seconds"] > 0.5
    else:
        assert line["resources/train_seconds"] < line["resources/fit_seconds"] - 0.5


def test_a_resumed_run_counts_on(tiny_model_path: str, tmp_path: Path) -> None:
    saved = ModelCheckpoint(tmp_path / "saved", save_last=True)
    first = fit(tmp_path / "first", SFT(tiny_model_path, **QUICK), Slow(0.5, True), saved)[-1]
    again = fit(tmp_path / "again", SFT(tiny_model_path, **QUICK), epochs=2, ckpt_path=str(tmp_path / "saved/last.ckpt"))[-1]
    assert again["resources/trained_tokens"] == 2 * first["resources/trained_tokens"]
    for name in ("fit_seconds", "train_seconds"):
        assert again[f"resources/{name}"] > first[f"resources/{name}"] > 0.5


@pytest.mark.skipif(sys.platform == "win32", reason="the system does not tell")
def test_memory_is_the_largest_there_was() -> None:
    """In a process of its own: after other tests, more than there ever was would be gigabytes."""
    program = """
from mixsd_lightning.callbacks.resources import peak_memory_mb
before = peak_memory_mb()
block = b"x" * (int(before * 1e6) + 200_000_000)
del block
print(peak_memory_mb() - before)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert float(done.stdout.splitlines()[-1]) > 150


def counters(folder: Path, joules: dict[str, float], size: float = 1000.0) -> Path:
    for zone, energy in joules.items():
        (folder / zone).mkdir(exist_ok=True)
        (folder / zone / "energy_uj").write_text(f"{round(energy * 1e6)}\n")
        (folder / zone / "max_energy_range_uj").write_text(f"{round(size * 1e6)}\n")
    return folder


def test_packages_are_added_up_and_their_parts_are_not(tmp_path: Path) -> None:
    meter = EnergyMeter(counters(tmp_path, {"intel-rapl:0": 10, "intel-rapl:1": 990, "intel-rapl:0:0": 5, "other": 1}))
    counters(tmp_path, {"intel-rapl:0": 12.5, "intel-rapl:1": 4, "intel-rapl:0:0": 7, "other": 3})
    assert meter.read() == pytest.approx(2.5 + 14)  # the second has started again at 1000
    assert meter.read() == 0


def test_without_a_meter_there_is_no_energy(tmp_path: Path) -> None:
    assert EnergyMeter(tmp_path).read() is None
    unreadable = tmp_path / "intel-rapl:0"
    unreadable.mkdir()
    assert EnergyMeter(tmp_path).read() is None
    (unreadable / "energy_uj").write_text("secret")
    (unreadable / "max_energy_range_uj").write_text("1")
    assert EnergyMeter(tmp_path).read() is None


def test_cards_are_asked_through_their_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in for the library: there is no card here."""
    used = {"GPU-a": 5000, "GPU-b": 7000}
    library = SimpleNamespace(
        NVMLError=RuntimeError,
        nvmlInit=lambda: None,
        nvmlDeviceGetHandleByUUID=lambda uuid: uuid,
        nvmlDeviceGetTotalEnergyConsumption=lambda handle: used[handle],
    )
    monkeypatch.setitem(sys.modules, "pynvml", library)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: SimpleNamespace(uuid="ab"[index]))
    meter = EnergyMeter(tmp_path)
    used["GPU-a"], used["GPU-b"] = 6500, 7250
    assert meter.read() == pytest.approx(1.75)
