"""Draw memorization, retention and distance from the base model of several runs over training, from their metrics.jsonl.

python scripts/plot_runs.py results.png SFT=runs/kgfact-sft/version_0 MixSD=runs/kgfact-mixsd/version_0
"""

import json
import sys
from pathlib import Path

import matplotlib.pyplot as plt

PANELS = {
    "memorization/train": "facts recalled (exact match)",
    "retention/kept": "kept of the base model's skills",
    "retention/agreement_top1": "same next token as the base model",
}


def main(output: str, *named_runs: str) -> None:
    """Write the picture; ``named_runs`` are ``label=run folder``."""
    figure, axes = plt.subplots(1, len(PANELS), figsize=(4 * len(PANELS), 3.2), layout="constrained")
    for named_run in named_runs:
        label, _, folder = named_run.partition("=")
        lines = [json.loads(line) for line in (Path(folder) / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
        for axis, tag in zip(axes, PANELS, strict=True):
            points = [(line["step"], line[tag]) for line in lines if tag in line]
            axis.plot(*zip(*points, strict=True), marker="o", label=label)
    for axis, title in zip(axes, PANELS.values(), strict=True):
        axis.set(title=title, xlabel="optimizer step", ylim=(0, 1.05))
        axis.grid(alpha=0.3)
        axis.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    axes[0].legend()
    figure.savefig(output, dpi=120)


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(f"usage: {sys.argv[0]} OUTPUT.png LABEL=RUN_FOLDER ...")
    main(*sys.argv[1:])
