"""What the benchmarks against TRL share: its environment, and steps of ours timed in the same way."""

import json
import os
import site
import subprocess
import sys
import tempfile
import time
import venv
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer
from memory import peak_megabytes
from platformdirs import user_cache_path
from rich.console import Console
from rich.table import Table

from mixsd_lightning import KGFact
from mixsd_lightning.modules import KnowledgeModule

TRL = "trl==1.16.0"
WORKER = Path(__file__).with_name("trl_worker.py")


def run_trl(job: dict[str, Any]) -> dict[str, Any]:
    """Run the worker on a job; seconds of each step and peak megabytes."""
    with tempfile.NamedTemporaryFile("w", suffix=".json", encoding="utf-8") as file:
        json.dump(job, file)
        file.flush()
        return _last_line([str(trl_python()), str(WORKER), file.name])


def run_ours(script: str, *arguments: str) -> dict[str, Any]:
    """Run a benchmark script's own `--only ours` in a process of its own."""
    return _last_line([sys.executable, script, "--only", "ours", *arguments])


def trl_python() -> Path:
    """The interpreter of an environment that has TRL on top of what this one has, made if there is none."""
    folder = Path(os.environ.get("MIXSD_CACHE_DIR") or user_cache_path("mixsd_lightning")) / TRL.replace("==", "-")
    python = folder / ("Scripts" if sys.platform == "win32" else "bin") / "python"
    if not (folder / "complete").is_file():
        venv.create(folder, with_pip=True, clear=True)
        own = subprocess.check_output([python, "-c", "import site; print(site.getsitepackages()[0])"], text=True).strip()
        Path(own, "parent.pth").write_text("\n".join(site.getsitepackages()), encoding="utf-8")
        subprocess.run([python, "-m", "pip", "install", "--quiet", TRL], check=True)
        (folder / "complete").touch()
    return python


def time_training(method: KnowledgeModule, corpus: KGFact, precision: str) -> None:
    """Train one epoch and print the JSON line that :func:`run_ours` reads."""
    watch = Stopwatch()
    trainer = Trainer(
        accelerator="cpu",
        precision=precision,  # type: ignore[arg-type]
        max_epochs=1,
        gradient_clip_val=1.0,
        limit_val_batches=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[watch],
    )
    trainer.fit(method, corpus)
    print(json.dumps({"seconds": watch.seconds, "lengths": watch.lengths, "megabytes": peak_megabytes()}))


class Stopwatch(Callback):
    """Seconds of each training step, optimizer included, and the mean length of its completions."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.lengths: list[float] = []

    def on_train_batch_start(self, *_: Any) -> None:
        """Start."""
        self._start = time.perf_counter()

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        """Stop."""
        self.seconds.append(time.perf_counter() - self._start)
        if "train/completion_length" in trainer.callback_metrics:
            self.lengths.append(float(trainer.callback_metrics["train/completion_length"]))


def matmul_rate(dtype: torch.dtype) -> float:
    """Multiplications and additions a second of a large matrix product, the best of several."""
    left, right = torch.randn(1024, 576, dtype=dtype), torch.randn(576, 1536, dtype=dtype)
    best = float("inf")
    for _ in range(30):
        start = time.perf_counter()
        left @ right
        best = min(best, time.perf_counter() - start)
    return 2 * left.shape[0] * left.shape[1] * right.shape[1] / best


def print_table(title: str, rows: dict[str, list[str]], headings: list[str]) -> None:
    """Modes with what was measured of them."""
    table = Table(title=title)
    for heading in ("mode", *headings):
        table.add_column(heading, justify="left" if heading == "mode" else "right")
    for mode, cells in rows.items():
        table.add_row(mode, *cells)
    Console().print(table)


def _last_line(command: list[str]) -> dict[str, Any]:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(done.stderr)
    return dict(json.loads(done.stdout.splitlines()[-1]))
