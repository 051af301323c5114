"""``report.html``: one page that needs nothing else, in light and dark, on a desk and on a phone.

Whatever comes from a file is escaped. Besides, the page forbids itself to load anything and to run any script but its own.
"""

import base64
import hashlib
from collections.abc import Sequence
from html import escape
from pathlib import Path
from string import Template

from mixsd_lightning.errors import printable
from mixsd_lightning.report import figures
from mixsd_lightning.report.measures import Measure, Table, measured, tables
from mixsd_lightning.report.numbers import Estimate
from mixsd_lightning.report.recommendation import chosen, recommendation
from mixsd_lightning.report.settings import METHOD, NULL, Corpus, Setting, seeds
from mixsd_lightning.report.svg import colour_variable, svg, swatch

INTERVALS = (
    "In brackets: 95 % intervals. Of a setting with several seeds, Student's t over the seeds; of one with a single seed, Wilson's "
    "interval from the number of answers for rates, and the bootstrap over examples for kept shares. Other numbers of a single "
    "seed have none. An empty cell was not measured."
)


def page(corpora: Sequence[Corpus], title: str, about: str, notes: Sequence[str]) -> str:
    """The whole page."""
    folder = Path(__file__).parent
    template, style, script = ((folder / name).read_text(encoding="utf-8") for name in ("page.html", "page.css", "page.js"))
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    body = [_verdicts(corpora)]
    body += [_corpus(number, corpus, is_alone=len(corpora) == 1) for number, corpus in enumerate(corpora)]
    body += [_meanings(corpora), _notes(notes)]
    return Template(template).substitute(
        title=escape(title),
        about=escape(about),
        body="\n".join(filter(None, body)),
        style=style,
        script=script,
        script_hash=f"sha256-{digest}",
    )


def _verdicts(corpora: Sequence[Corpus]) -> str:
    parts = []
    for corpus in corpora:
        parts += [f"<h3>{escape(corpus.name)}</h3>"] if len(corpora) > 1 else []
        first, *others = recommendation(corpus)
        parts.append(f"<p><strong>{escape(first)}</strong></p>")
        parts += [f"<p>{escape(sentence)}</p>" for sentence in others]
    return f'<section class="verdict" aria-label="In short">{"".join(parts)}</section>'


def _corpus(number: int, corpus: Corpus, is_alone: bool) -> str:
    parts = [f"<h2>{escape(corpus.name)}</h2>", _legend(corpus), _figures(number, corpus)]
    hint = "In brackets: 95 % intervals. Empty: not measured. A click on a heading sorts, and shows the best first."
    parts.append(f'<p class="hint">{escape(hint)} <a href="#meanings">What the numbers mean</a></p>')
    found = tables(corpus)
    parts += [_table(corpus, table) for table in found if not _is_errors(table)]
    parts += [_error_figures(number, corpus)]
    parts += [_table(corpus, table) for table in found if _is_errors(table)]
    parts += ["<h3>Settings</h3>", *(_settings(corpus, setting) for setting in corpus.settings)]
    return "\n".join(filter(None, parts))


def _is_errors(table: Table) -> bool:
    return table.columns[0].tag.startswith("errors/")


def _legend(corpus: Corpus) -> str:
    look = figures.looks(corpus)
    items = [f"<li>{swatch(look[row.label])}<span>{escape(row.label)}</span></li>" for row in corpus.rows]
    return f'<ul class="legend">{"".join(items)}</ul>'


def _figures(number: int, corpus: Corpus) -> str:
    drawn = [svg(f"p{number}", "What was learnt against what was kept", lambda axes: figures.draw_pareto(axes, corpus))]
    for place, (tag, title) in enumerate(figures.curve_panels(corpus)):

        def draw(axes: figures.Axes, tag: str = tag, title: str = title) -> None:
            figures.draw_curve(axes, corpus, tag, title)

        drawn.append(svg(f"c{number}-{place}", f"{title}, over optimizer steps", draw))
    return f'<div class="figures">{"".join(drawn)}</div>'


def _error_figures(number: int, corpus: Corpus) -> str:
    drawn = []
    for index, (place, modes) in enumerate(figures.error_panels(corpus).items()):
        num_rows = figures.num_error_rows(corpus, place)

        def draw(axes: figures.Axes, place: str = place, modes: Sequence[str] = modes, num_rows: int = num_rows) -> None:
            figures.draw_errors(axes, corpus, place, modes, num_rows)

        drawn.append(svg(f"e{number}-{index}", f"Wrong answers to {place} by mode", draw, figures.errors_size(num_rows)))
    if not drawn:
        return ""
    items = [
        f'<li><span class="block" style="background:{colour_variable(colour)}"></span>{escape(mode)}</li>'
        for mode, colour in figures.mode_legend(corpus).items()
    ]
    return f'<h3>Why answers are wrong</h3><ul class="legend">{"".join(items)}</ul><div class="figures">{"".join(drawn)}</div>'


def _table(corpus: Corpus, table: Table) -> str:
    best = chosen(corpus)
    head = ['<th scope="col" aria-sort="none"><button type="button">setting</button></th>']
    head += [_heading(measure) for measure in table.columns]
    head.append(_heading(Measure("", "seeds", "Runs that differ in their seeds alone; the numbers are their mean.")))
    rows = []
    for setting in corpus.rows:
        cells = [_cell(measure, measured(setting, measure.tag)) for measure in table.columns]
        if all(cell == _EMPTY for cell in cells):
            continue
        kind = ' class="base"' if setting.is_base else ' class="chosen"' if setting is best else ""
        label = f'<th scope="row" data-value="{escape(setting.label)}">{escape(setting.label)}</th>'
        count = _EMPTY if setting.is_base else f'<td data-value="{len(setting.runs)}">{len(setting.runs)}</td>'
        rows.append(f"<tr{kind}>{label}{''.join(cells)}{count}</tr>")
    title = escape(table.title)
    return (
        f'<h3>{title}</h3><div class="box" tabindex="0" role="region" aria-label="{title}"><table>'
        f"<thead><tr>{''.join(head)}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
    )


_EMPTY = "<td></td>"


def _heading(measure: Measure) -> str:
    first = ' data-first="ascending"' if measure.better == "lower" else ""
    return (
        f'<th scope="col" aria-sort="none"{first} title="{escape(measure.meaning)}">'
        f'<button type="button">{escape(measure.label)}</button></th>'
    )


def _cell(measure: Measure, found: Estimate | None) -> str:
    if found is None:
        return _EMPTY
    interval = measure.write_interval(found)
    small = f"<small>{escape(interval)}</small>" if interval else ""
    return f'<td data-value="{found.value!r}" title="{escape(found.how)}">{escape(measure.write(found.value))}{small}</td>'


def _settings(corpus: Corpus, setting: Setting) -> str:
    """Every setting of the runs, what differs first."""
    if len(setting.values) > 1:
        names = [*setting.differing, *(name for name in setting.values if name not in (METHOD, *setting.differing))]
        marks = dict.fromkeys(setting.differing, ' class="differs"')
        rows = [
            f'<tr{marks.get(name, "")}><th scope="row">{escape(name)}</th><td>{escape(setting.values.get(name, NULL))}</td></tr>'
            for name in names
        ]
        listed = f'<div class="box plain" tabindex="0" role="region" aria-label="settings"><table><tbody>{"".join(rows)}</tbody></table></div>'
    else:
        listed = "<p>There is no config.yaml that tells them.</p>"
    runs = []
    for run in setting.runs:
        chosen_seeds = ", ".join(f"{name} {value}" for name, value in seeds(run).items())
        cells = (run.name, f"{run.last['step']:g}", chosen_seeds, printable(str(run.folder)))
        runs.append(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in cells)}</tr>")
    heads = "".join(f'<th scope="col">{name}</th>' for name in ("run", "steps", "seeds", "folder"))
    differs = "Settings that differ between the settings compared here come first." if setting.differing else ""
    return (
        f"<details><summary>{escape(setting.label)}</summary>"
        f'<div class="box plain" tabindex="0" role="region" aria-label="runs"><table><thead><tr>{heads}</tr></thead>'
        f'<tbody>{"".join(runs)}</tbody></table></div><p class="hint">{differs}</p>{listed}</details>'
    )


def _meanings(corpora: Sequence[Corpus]) -> str:
    found = {measure.label: measure.meaning for corpus in corpora for table in tables(corpus) for measure in table.columns}
    items = "".join(f"<dt>{escape(label)}</dt><dd>{escape(meaning)}</dd>" for label, meaning in found.items())
    return f'<h2 id="meanings">What the numbers mean</h2><p>{escape(INTERVALS)}</p><dl>{items}</dl>'


def _notes(notes: Sequence[str]) -> str:
    if not notes:
        return ""
    return f"<h2>Notes</h2><ul>{''.join(f'<li>{escape(note)}</li>' for note in notes)}</ul>"
