"""The PNG files of a report: panels side by side, with a legend.

They are drawn without pyplot, so they need no display and leave no global state.
"""

import io
from collections.abc import Callable, Sequence

from matplotlib.figure import Figure, SubFigure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from mixsd_lightning.report.figures import (
    curve_panels,
    draw_curve,
    draw_errors,
    draw_pareto,
    error_panels,
    literal,
    looks,
    mode_legend,
    styled,
)
from mixsd_lightning.report.settings import Corpus


def pareto_png(corpora: Sequence[Corpus]) -> bytes:
    """``pareto.png``: a panel for each corpus."""

    def draw(part: SubFigure, corpus: Corpus) -> None:
        draw_pareto(part.subplots(), corpus)
        _legend(part, corpus, columns=1 if _longest(corpus) > 34 else 2)

    heights = [3.6 + 0.2 * len(corpus.rows) / (1 if _longest(corpus) > 34 else 2) for corpus in corpora]
    return _png(corpora, 6.2, heights, draw)


def curves_png(corpora: Sequence[Corpus]) -> bytes:
    """``curves.png``: a row of panels for each corpus."""

    def draw(part: SubFigure, corpus: Corpus) -> None:
        panels = curve_panels(corpus)
        if not panels:
            return _nothing(part, "Nothing was validated over training.")
        for axes, (tag, title) in zip(part.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
            draw_curve(axes, corpus, tag, title)
        _legend(part, corpus, columns=2 if _longest(corpus) > 34 else 3, with_base=False)

    return _png(corpora, 12, [3.4 + 0.11 * len(corpus.settings) for corpus in corpora], draw)


def errors_png(corpora: Sequence[Corpus]) -> bytes:
    """``errors.png``: a row of panels for each corpus."""

    def draw(part: SubFigure, corpus: Corpus) -> None:
        panels = error_panels(corpus)
        if not panels:
            return _nothing(part, "No run has counted wrong answers by mode.")
        for axes, (place, modes) in zip(part.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True):
            draw_errors(axes, corpus, place, modes, len(corpus.rows))
        handles = [Patch(color=colour, label=mode) for mode, colour in mode_legend(corpus).items()]
        part.legend(handles=handles, loc="outside lower left", ncols=len(handles))
        return None

    width = max(4.0 * len(error_panels(corpus)) for corpus in corpora)
    return _png(corpora, max(4.3, width), [1.5 + 0.42 * len(corpus.rows) for corpus in corpora], draw)


def _png(
    corpora: Sequence[Corpus], width: float, heights: Sequence[float], draw: Callable[[SubFigure, Corpus], None]
) -> bytes:
    with styled():
        figure = Figure(figsize=(width, sum(heights)), layout="constrained", facecolor="white")
        parts = figure.subfigures(len(corpora), 1, squeeze=False, height_ratios=heights)[:, 0]
        for part, corpus in zip(parts, corpora, strict=True):
            draw(part, corpus)
            if len(corpora) > 1:
                part.suptitle(literal(corpus.name), x=0.01, ha="left", fontsize=11, fontweight="bold")
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=150)
        return buffer.getvalue()


def _legend(part: SubFigure, corpus: Corpus, columns: int, with_base: bool = True) -> None:
    look = looks(corpus)
    shown = corpus.rows if with_base else corpus.settings
    handles = [
        Line2D(
            [],
            [],
            color=mine.colour,
            marker=mine.marker,
            linestyle="none" if row.is_base else mine.dash,
            label=literal(row.label),
        )
        for row in shown
        for mine in [look[row.label]]
    ]
    part.legend(handles=handles, loc="outside lower left", ncols=min(columns, len(handles)))


def _nothing(part: SubFigure, text: str) -> None:
    axes = part.subplots()
    axes.axis("off")
    axes.text(0, 0.5, text)


def _longest(corpus: Corpus) -> int:
    return max((len(row.label) for row in corpus.rows), default=0)
