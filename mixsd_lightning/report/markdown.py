"""``report.md``: the same tables as GitHub Markdown, with the figures beside it."""

from collections.abc import Iterable, Sequence

from mixsd_lightning.markdown import plain
from mixsd_lightning.report.measures import Measure, measured, tables
from mixsd_lightning.report.page import INTERVALS
from mixsd_lightning.report.recommendation import recommendation
from mixsd_lightning.report.settings import Corpus, Setting


def markdown(corpora: Sequence[Corpus], title: str, about: str, notes: Sequence[str]) -> str:
    """The whole file."""
    parts = [f"# {plain(title)}", plain(about)]
    for corpus in corpora:
        parts += [f"**{plain(corpus.name)}.**"] if len(corpora) > 1 else []
        parts.append(plain(" ".join(recommendation(corpus))))
    parts += ["![What was learnt against what was kept](pareto.png)", "![Over training](curves.png)", plain(INTERVALS)]
    for corpus in corpora:
        parts.append(f"## {plain(corpus.name)}")
        for table in tables(corpus):
            rows = [(setting, [_cell(setting, measure) for measure in table.columns]) for setting in corpus.rows]
            shown = [
                [plain(one.label), "" if one.is_base else str(len(one.runs)), *cells] for one, cells in rows if any(cells)
            ]
            parts.append(f"### {plain(table.title)}")
            parts.append(_table(["setting", "seeds", *(plain(measure.label) for measure in table.columns)], shown))
    parts += ["![Wrong answers by mode](errors.png)", "## What the numbers mean"]
    found = {measure.label: measure.meaning for corpus in corpora for table in tables(corpus) for measure in table.columns}
    parts.append("\n".join(f"* **{plain(label)}**: {plain(meaning)}" for label, meaning in found.items()))
    if notes:
        parts += ["## Notes", "\n".join(f"* {plain(note)}" for note in notes)]
    return "\n\n".join(parts) + "\n"


def _cell(setting: Setting, measure: Measure) -> str:
    found = measured(setting, measure.tag)
    if found is None:
        return ""
    return plain(" ".join(filter(None, [measure.write(found.value), measure.write_interval(found)])))


def _table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [headings, ["---", *["--:"] * (len(headings) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
