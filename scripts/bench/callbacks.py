"""What watching costs: drift against reading the weights once, Fisher information against plain backward passes, and the share
of a fit that drift and the default retention suites take.

    python scripts/bench/callbacks.py    # about a quarter of an hour: the last part is a whole fit

SmolLM2-135M, SFT on KGFact-Small as configs/kgfact/sft.yaml has it, with nothing in the cache. The last line is JSON.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from mixsd_lightning import SFT, FisherDrift, Retention, disk_cache
from mixsd_lightning.cli import main as run_cli
from mixsd_lightning.evaluation.fisher import diagonal_fisher, fisher_sequences, log_likelihood
from mixsd_lightning.models import evaluating

CONFIG = Path(__file__).parents[2] / "configs" / "kgfact" / "sft.yaml"


def seconds_of(run: Callable[[], Any]) -> float:
    """How long a call takes."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def median_seconds(run: Callable[[], Any], repeats: int) -> float:
    """Median over several calls, after one that is not counted."""
    run()
    return statistics.median(seconds_of(run) for _ in range(repeats))


def bytes_per_second(num_bytes: int, repeats: int) -> float:
    """How fast memory is read and written, from copying."""
    source = torch.ones(num_bytes // 4)
    target = torch.empty_like(source)
    return 2 * num_bytes / median_seconds(lambda: target.copy_(source), repeats)


def measure_drift(method: SFT, repeats: int) -> tuple[float, float]:
    """Seconds of a drift measurement, and of reading its three sets of numbers once."""
    drift = FisherDrift(num_sequences=2)
    drift.prepare(method)
    num_bytes = 4 * sum(parameter.numel() for parameter in method.student.parameters())
    return median_seconds(lambda: drift.moves(method.student), repeats), 3 * num_bytes / bytes_per_second(num_bytes, repeats)


def measure_fisher(method: SFT, repeats: int) -> tuple[float, float]:
    """Seconds of the Fisher pass over some sequences, and of plain forward and backward passes over them."""
    model = method.student
    sequences = fisher_sequences(model, method.encoder, "held_out", "data", 8)

    def plain() -> None:
        with evaluating(model):
            for sequence in sequences:
                log_likelihood(model, sequence).backward()
                model.zero_grad()

    # Taking turns, so that both see the same machine.
    pairs = [(seconds_of(lambda: diagonal_fisher(model, sequences)), seconds_of(plain)) for _ in range(repeats + 1)]
    fisher, backward = zip(*pairs[1:], strict=True)
    return statistics.median(fisher), statistics.median(backward)


def measure_fit(epochs: int, folder: str) -> tuple[float, float]:
    """Seconds of a whole fit that writes to a folder, and of drift and retention in it."""
    watched = 0.0

    def timed(owner: type, name: str) -> None:
        method = getattr(owner, name)

        def wrapper(*args: Any, **options: Any) -> Any:
            nonlocal watched
            start = time.perf_counter()
            try:
                return method(*args, **options)
            finally:
                watched += time.perf_counter() - start

        setattr(owner, name, wrapper)

    for owner, names in ((FisherDrift, ("prepare", "moves")), (Retention, ("measure_base", "measure"))):
        for name in names:
            timed(owner, name)
    disk_cache.computed_dir = lambda: Path(folder, "computed")
    os.chdir(folder)
    total = seconds_of(lambda: run_cli(["fit", "--config", str(CONFIG), "--trainer.max_epochs", str(epochs)]))
    return total, watched


def main(repeats: int, epochs: int, folder: str) -> None:
    """The table, and the JSON line."""
    method = SFT()
    method.configure_model()
    drift, reading = measure_drift(method, repeats)
    fisher, backward = measure_fisher(method, repeats)
    del method
    fit, watched = measure_fit(epochs, folder)
    table = Table(title=f"Watching SmolLM2-135M, {torch.get_num_threads()} threads")
    for heading in ("measured", "seconds", "against", "seconds", "ratio"):
        table.add_column(heading, justify="right" if heading in ("seconds", "ratio") else "left")
    rows = [
        ("drift", drift, "reading weights, origin and Fisher once", reading),
        ("Fisher, 8 sequences", fisher, "forward and backward alone", backward),
        ("drift and retention", watched, f"a fit of {epochs} epochs", fit),
    ]
    for name, seconds, against, other in rows:
        table.add_row(name, f"{seconds:.2f}", against, f"{other:.2f}", f"{seconds / other:.2f}")
    Console().print(table)
    result = {
        "drift_vs_bandwidth": round(drift / reading, 2),
        "fisher_vs_backward": round(fisher / backward, 2),
        "retention_share_of_fit": round(watched / fit, 3),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--folder", help="keep the fit's run folder, in this folder")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        main(arguments.repeats, arguments.epochs, arguments.folder or temporary)
