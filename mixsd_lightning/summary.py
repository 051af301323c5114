"""What a run gave, in a few lines: read from its ``metrics.jsonl``."""

from pathlib import Path

from rich.console import Console
from rich.table import Table

from mixsd_lightning.callbacks.metrics_file import METRICS_FILE, read_metrics
from mixsd_lightning.evaluation.metrics import wilson_interval
from mixsd_lightning.evaluation.suites.probe import everyday_questions

_LABELS = {
    "retention/kept": "kept of the base model's score (mean)",
    "retention/probe": "everyday questions answered",
    "retention/bits_per_byte": "bits per byte, held-out text",
    "retention/agreement_top1": "same next token as the base model",
    "retention/agreement_kl": "KL from the base model, nats a token",
    "drift/l2": "drift (L2)",
    "drift/fisher": "drift (Fisher-weighted)",
}
_PERCENT = ("memorization/", "retention/kept", "retention/probe", "retention/agreement_top1")


def print_summary(folder: Path) -> None:
    """Print the first and the last validation of a run side by side, and where everything is."""
    lines, _ = read_metrics(folder / METRICS_FILE)
    first, after = lines[0], lines[-1]
    before = first if first["step"] == 0 else {}  # a resumed run has not seen the base model
    table = Table(title=f"Before training and after {after['step']:.0f} steps", title_justify="left")
    table.add_column("measure")
    table.add_column("before", justify="right")
    table.add_column("after", justify="right")
    for tag in sorted(after):
        if tag.startswith("memorization/") and not tag.endswith(("_count", "_loose")):
            split, count = tag.removeprefix("memorization/"), int(after[f"{tag}_count"])
            table.add_row(f"answers right: {split} ({count})", _show(tag, before, count), _show(tag, after, count))
    for tag, label in _LABELS.items():
        if tag in after:
            count = len(everyday_questions()) if tag == "retention/probe" else 0
            table.add_row(label, _show(tag, before, count), _show(tag, after, count))
    console = Console()
    console.print(table)
    if "targets/attempts" in after:
        total = after["targets/accepted"] + after["targets/rejected"]
        console.print(
            f"Mixed targets: {after['targets/accepted']:.0f} of {total:.0f} accepted in "
            f"{after['targets/attempts']:.0f} attempts."
        )
    if "targets/nll_base" in after:
        console.print(f"Targets under the base model: {after['targets/nll_base']:.2f} nats a token.")
    # Not wrapped and not coloured: these two lines are for copying.
    print(f"Run folder: {folder}")
    print(f"Look at the curves: tensorboard --logdir {folder.parent}")


def _show(tag: str, metrics: dict[str, float], count: int = 0) -> str:
    if tag not in metrics:
        return "-"
    value = metrics[tag]
    if not tag.startswith(_PERCENT):
        return f"{value:.3g}"
    if not count:
        return f"{value:.1%}"
    low, high = wilson_interval(value, count)
    return f"{value:.1%} [{low:.0%}, {high:.0%}]"
