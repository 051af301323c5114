"""Figures for TensorBoard. They are drawn without pyplot, so they need no display and leave no global state."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

from mixsd_lightning.evaluation.drift import Moved, Place


def drift_figure(moves: Mapping[Place, Moved]) -> Figure:
    """Heat map of Fisher-weighted drift over layers and kinds of module, on a logarithmic scale."""
    kinds = sorted({place.kind for place in moves})
    layers: list[int | None] = [*sorted({place.layer for place in moves if place.layer is not None})]
    if any(place.layer is None for place in moves):
        layers.append(None)
    grid = np.full((len(kinds), len(layers)), np.nan)
    for place, move in moves.items():
        if move.fisher > 0:
            grid[kinds.index(place.kind), layers.index(place.layer)] = np.log10(move.fisher)
    figure = Figure(figsize=(max(4.0, 0.28 * len(layers) + 2), 0.4 * len(kinds) + 1.2), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(np.ma.masked_invalid(grid), aspect="auto", cmap="viridis")
    axes.set_yticks(range(len(kinds)), kinds)
    axes.set_xticks(range(len(layers)), ["none" if layer is None else str(layer) for layer in layers], fontsize=7)
    axes.set_xlabel("layer")
    figure.colorbar(image, label="log10 of Fisher drift")
    return figure


def pareto_figure(points: Sequence[tuple[int, float, float]]) -> Figure:
    """What was learnt against what was kept, one point per validation, joined in the order of training.

    Args:
        points: (step, memorization, kept share), rates in [0, 1].
    """
    figure = Figure(figsize=(4.2, 3.8), layout="constrained")  # what TensorBoard shows without scrolling
    axes = figure.subplots()
    _, learnt, kept = zip(*points, strict=True)
    axes.plot(learnt, kept, "o-", color="#2a6f97")
    for index, (step, x, y) in enumerate(points):
        offset = (5, -11 if index % 2 else 5)  # points of late validations lie close together
        axes.annotate(str(step), (x, y), textcoords="offset points", xytext=offset, fontsize=8)
    axes.set_xlim(-0.03, 1.03)
    axes.set_ylim(min(0.5, *kept) - 0.03, max(1.0, *kept) + 0.05)
    axes.axhline(1, color="0.7", linewidth=0.8, zorder=0)
    axes.set_xlabel("training questions answered (memorization/train)")
    axes.set_ylabel("kept of the base model's skills (retention/kept)")
    axes.set_title("learnt and kept, by training step")
    axes.grid(alpha=0.3)
    return figure
