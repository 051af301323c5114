"""Panels as SVG for the page, where they follow its colours, light or dark."""

import io
import re
from collections.abc import Callable, Mapping

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mixsd_lightning.report.figures import COLOURS, INK, PANEL, Look, styled


def svg(name: str, description: str, draw: Callable[[Axes], None], size: tuple[float, float] = PANEL) -> str:
    """A panel as an `<svg>` element for the page; ink is the text's colour, the others are variables of its style sheet.

    Args:
        name: Tells its ids from those of others on the page.
        description: What a screen reader says.
        draw: Draws it.
        size: In inches.
    """
    with styled(), mpl.rc_context({"svg.hashsalt": name}):
        figure = Figure(figsize=size, layout="constrained")
        draw(figure.subplots())
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    drawn = buffer.getvalue()
    drawn = re.sub(r"<metadata>.*?</metadata>", "", drawn[drawn.index("<svg") :], flags=re.DOTALL)
    drawn = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{name}-", drawn)
    drawn = drawn.replace("xlink:href", "href").replace(INK, "currentColor")
    for number, colour in enumerate(COLOURS, 1):
        drawn = drawn.replace(colour, f"var(--series-{number})")
    label = description.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;")
    return re.sub(
        r"<svg [^>]*?viewBox=\"([^\"]+)\"[^>]*>",
        rf'<svg viewBox="\1" role="img" aria-label="{_backslashed(label)}">',
        drawn,
        count=1,
    )


def swatch(look: Look) -> str:
    """A setting's mark for the page's legend."""
    paths: Mapping[str, str] = {
        "o": "M16 6a4 4 0 1 0 .01 0z",
        "s": "M12 6h8v8h-8z",
        "^": "M16 5l5 9h-10z",
        "D": "M16 4.5l5.5 5.5-5.5 5.5-5.5-5.5z",
        "v": "M16 15l5-9h-10z",
        "P": "M14 5h4v3h3v4h-3v3h-4v-3h-3v-4h3z",
        "X": "M11 7l2-2 3 3 3-3 2 2-3 3 3 3-2 2-3-3-3 3-2-2 3-3z",
        "*": "M16 3.5l1.8 4.5 4.7.3-3.6 3 1.2 4.7-4.1-2.6-4.1 2.6 1.2-4.7-3.6-3 4.7-.3z",
    }
    colour = colour_variable(look.colour)
    line = "none" if look.colour == INK else colour
    dashes = {"-": "", "--": "5 3", "-.": "6 2 1 2", ":": "1.5 2.5"}[look.dash]
    return (
        f'<svg class="swatch" viewBox="0 0 32 20" aria-hidden="true"><path d="M1 10h30" style="stroke:{line};'
        f'stroke-width:1.6;stroke-dasharray:{dashes or "none"}"/><path d="{paths[look.marker]}" style="fill:{colour}"/></svg>'
    )


def colour_variable(colour: str) -> str:
    """A colour of the figures as the page's style sheet names it."""
    return f"var(--series-{COLOURS.index(colour) + 1})" if colour in COLOURS else "currentColor"


def _backslashed(text: str) -> str:
    return text.replace("\\", r"\\")
