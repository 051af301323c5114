"""Panels of figures, which :mod:`mixsd_lightning.report.png` writes as files and :mod:`mixsd_lightning.report.svg` puts on the page."""

import re
import warnings
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, MaxNLocator

from mixsd_lightning.report.measures import KEPT, MODES, TOP1, measured, memorization_tags, over_seeds
from mixsd_lightning.report.numbers import Estimate
from mixsd_lightning.report.settings import Corpus

# Okabe and Ito (2008), "Color Universal Design": told apart with every common kind of colour vision. Their yellow is too pale on
# white, and their black is the ink.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00")
INK = "#1b1f24"
# Marks differ too: colours alone are not enough for everybody, and are too few for a grid.
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
Dash = Literal["-", "--", "-.", ":"]
DASHES: Sequence[Dash] = ("-", "--", "-.", ":")
MODE_COLOURS = dict(zip(MODES, ("#e69f00", "#d55e00", "#cc79a7", "#56b4e9", "#0072b2"), strict=True))

_STYLE: Any = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.7,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "grid.color": INK,
    "grid.alpha": 0.15,
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "svg.fonttype": "none",  # text stays text
}
_PERCENT = FuncFormatter(lambda value, _: f"{100 * value:.0f} %")
_ROUND = (1, 2, 5, 10)
"""Ticks stand at whole per cents."""
PANEL = (4.3, 3.3)


@dataclass(frozen=True)
class Look:
    """How a setting is drawn, everywhere."""

    colour: str
    marker: str
    dash: Dash


def looks(corpus: Corpus) -> dict[str, Look]:
    """Label -> look. Settings that differ in the mixing rate alone share a colour."""
    families: dict[object, int] = {}
    members: dict[int, int] = defaultdict(int)
    found = {}
    for setting in corpus.settings:
        family = families.setdefault(setting.family, len(families))
        place = members[family]
        members[family] += 1
        marker = MARKERS[(family + place) % len(MARKERS)]
        found[setting.label] = Look(COLOURS[family % len(COLOURS)], marker, DASHES[place % len(DASHES)])
    for base in corpus.bases:
        found[base.label] = Look(INK, "*", ":")
    return found


# --- panels --------------------------------------------------------------------------------------------------------------


def draw_pareto(axes: Axes, corpus: Corpus) -> None:
    """What was learnt against what was kept, with intervals; a curve joins settings that differ in the mixing rate alone."""
    learnt_tag = next(iter(memorization_tags(corpus)), "")
    look = looks(corpus)
    curves: dict[object, list[tuple[float, float, float]]] = defaultdict(list)
    for setting in corpus.rows:
        learnt, keeps = measured(setting, learnt_tag), measured(setting, KEPT)
        if learnt is None or keeps is None:
            continue
        mine = look[setting.label]
        axes.errorbar(
            learnt.value,
            keeps.value,
            xerr=_arms(learnt),
            yerr=_arms(keeps),
            color=mine.colour,
            marker=mine.marker,
            markersize=9 if setting.is_base else 6,
            elinewidth=0.8,
            zorder=3,
            clip_on=False,
        )
        if setting.rate is not None:
            curves[setting.family].append((setting.rate, learnt.value, keeps.value))
    above = False
    for setting in corpus.settings:
        points = sorted(curves.pop(setting.family, []))
        if len(points) > 1:
            axes.plot([x for _, x, _ in points], [y for _, _, y in points], color=look[setting.label].colour, linewidth=1.2)
            # The ends alone, and the next curve's on the other side: rates between them lie too close, and the legend has them.
            for rate, x, y in (points[0], points[-1]):
                offset = (-5, 5 if above else -11)
                axes.annotate(f"λ {rate:g}", (x, y), offset, textcoords="offset points", fontsize=8, ha="right")
            above = not above
    axes.set_xlim(-0.03, 1.03)
    axes.set(
        xlabel=f"right answers: {literal(learnt_tag.removeprefix('memorization/'))}", ylabel="kept of the base model's score"
    )
    axes.set_title("Learnt and kept (best: top right)")
    axes.xaxis.set_major_formatter(_PERCENT)
    axes.yaxis.set_major_formatter(_PERCENT)
    axes.yaxis.set_major_locator(MaxNLocator(7, steps=_ROUND))
    axes.grid(True)


def draw_curve(axes: Axes, corpus: Corpus, tag: str, title: str) -> None:
    """A share over optimizer steps: mean over seeds, and its 95 % interval as a band where there are several."""
    look = looks(corpus)
    # In a comparison, one run measures the base model for all.
    start = measured(corpus.bases[0], tag) if len(corpus.bases) == 1 else None
    for setting in corpus.settings:
        steps = sorted({line["step"] for run in setting.runs for line in run.lines if tag in line})
        found = [
            over_seeds([line for run in setting.runs for line in run.lines if line["step"] == step], tag) for step in steps
        ]
        points = [(step, one) for step, one in zip(steps, found, strict=True) if one is not None]
        if not points:
            continue
        if start and points[0][0] > 0:
            points.insert(0, (0, start))
        mine = look[setting.label]
        axes.plot(
            [step for step, _ in points],
            [one.value for _, one in points],
            color=mine.colour,
            marker=mine.marker,
            markersize=4.5,
            linestyle=mine.dash,
            linewidth=1.4,
            clip_on=False,
        )
        band = [(step, one.low, one.high) for step, one in points if one.num_seeds > 1 and one.low is not None]
        lows, highs = [low for _, low, _ in band if low is not None], [high for _, _, high in band if high is not None]
        if band:
            axes.fill_between([step for step, _, _ in band], lows, highs, color=mine.colour, alpha=0.15, linewidth=0)
    axes.set(xlabel="optimizer step")
    axes.set_title(title)
    axes.yaxis.set_major_formatter(_PERCENT)
    axes.yaxis.set_major_locator(MaxNLocator(7, steps=_ROUND))
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.grid(True)


def draw_errors(axes: Axes, corpus: Corpus, place: str, modes: Sequence[str], num_rows: int) -> None:
    """Wrong answers to a split or suite: a bar for each setting, made of the shares of the modes.

    Bars are equally thick in panels with the same ``num_rows`` to an inch.
    """
    row = 0
    for setting in corpus.rows:
        shares = {mode: found.value for mode in modes if (found := measured(setting, f"errors/{place}/{mode}"))}
        if not shares:
            continue
        left = 0.0
        for mode, share in shares.items():
            axes.barh(row, share, left=left, height=0.42, color=_mode_colour(mode), edgecolor="none")
            left += share
        axes.text(0, row - 0.28, literal(_shortened(setting.label)), va="bottom", fontsize=8.5)
        axes.annotate(f"{100 * left:.0f} %", (left, row), (4, 0), textcoords="offset points", va="center", fontsize=8.5)
        row += 1
    axes.set_ylim(num_rows - 0.6, -0.85)
    axes.set_xlim(0, 1.12)
    axes.set_xticks([0, 0.25, 0.5, 0.75, 1])
    axes.xaxis.set_major_formatter(_PERCENT)
    axes.yaxis.set_visible(False)
    axes.spines["left"].set_visible(False)
    axes.set_title(f"Wrong answers: {literal(place)}")
    axes.grid(True, axis="x")
    axes.set_axisbelow(True)


def curve_panels(corpus: Corpus) -> list[tuple[str, str]]:
    """Tags and titles of what is drawn over training."""
    tags = {tag for setting in corpus.settings for run in setting.runs for line in run.lines for tag in line}
    learnt = next(iter(memorization_tags(corpus)), "")
    panels = [(learnt, f"Right answers: {literal(learnt.removeprefix('memorization/'))}")]
    panels += [(KEPT, "Kept of the base model's score"), (TOP1, "Same next token as the base model")]
    return [(tag, title) for tag, title in panels if tag in tags]


def error_panels(corpus: Corpus) -> dict[str, list[str]]:
    """Split or suite -> modes that were counted on it."""
    tags = {tag for row in corpus.rows for line in row.lines for tag in line}
    found: dict[str, list[str]] = defaultdict(list)
    for tag in tags:
        if counted := re.fullmatch(r"errors/(.+)/([^/]+)", tag):
            found[counted[1]].append(counted[2])
    splits = [tag.removeprefix("memorization/") for tag in memorization_tags(corpus)]
    places = sorted(found, key=lambda place: (splits.index(place) if place in splits else len(splits), place))
    return {
        place: sorted(found[place], key=lambda mode: (mode not in MODES, [*MODES, mode].index(mode), mode)) for place in places
    }


def num_error_rows(corpus: Corpus, place: str) -> int:
    """Settings whose wrong answers to a split or suite were counted."""
    return sum(any(tag.startswith(f"errors/{place}/") for line in row.lines for tag in line) for row in corpus.rows)


def errors_size(num_rows: int) -> tuple[float, float]:
    """Size of a panel of wrong answers."""
    return PANEL[0], 0.9 + 0.42 * num_rows


def mode_legend(corpus: Corpus) -> dict[str, str]:
    """Mode in words -> colour, of the modes that were counted."""
    counted = {mode for modes in error_panels(corpus).values() for mode in modes}
    known = [mode for mode in MODES if mode in counted]
    return {mode.replace("_", " "): _mode_colour(mode) for mode in [*known, *sorted(counted - set(known))]}


# --- small things --------------------------------------------------------------------------------------------------------


@contextmanager
def styled() -> Iterator[None]:
    """How all figures look."""
    with mpl.rc_context(_STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*[Gg]lyph.*")  # names may be written in any script
        warnings.filterwarnings("ignore", ".*constrained_layout not applied.*")
        yield


def _arms(found: Estimate) -> list[list[float]] | None:
    if found.low is None or found.high is None:
        return None
    return [[max(0.0, found.value - found.low)], [max(0.0, found.high - found.value)]]


def _mode_colour(mode: str) -> str:
    return MODE_COLOURS.get(mode, COLOURS[2])


def _shortened(text: str, most: int = 52) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"


def literal(text: str) -> str:
    """A text that matplotlib neither sets as a formula nor leaves out of a legend."""
    text = text.replace("$", r"\$")
    return f" {text}" if text.startswith("_") else text
