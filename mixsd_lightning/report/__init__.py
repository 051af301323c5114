"""``python -m mixsd_lightning report``: runs -> tables, figures and one page that says which setting to use."""

import datetime
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from mixsd_lightning.arguments import OneLineArguments
from mixsd_lightning.atomic_file import write_atomically
from mixsd_lightning.errors import UserError, printable
from mixsd_lightning.report.checks import comparability
from mixsd_lightning.report.collect import find_runs
from mixsd_lightning.report.markdown import markdown
from mixsd_lightning.report.measures import measured, tables
from mixsd_lightning.report.page import page
from mixsd_lightning.report.png import curves_png, errors_png, pareto_png
from mixsd_lightning.report.recommendation import chosen, recommendation
from mixsd_lightning.report.settings import Corpus, group
from mixsd_lightning.report.spreadsheets import report_csv, runs_csv

__all__ = ["main", "write_report"]


def main(arguments: Sequence[str]) -> None:
    """Run the subcommand.

    Raises:
        UserError: if something that the user gave is wrong.
    """
    parser = OneLineArguments("report", _DESCRIPTION)
    parser.add_argument("runs", nargs="+", metavar="RUNS", help="run folders, or folders that contain some at any depth")
    parser.add_argument("--output", default="report", metavar="DIR", help="where the files go (default: %(default)s)")
    parser.add_argument("--title", help="of the page")
    options = parser.parse_args(arguments)
    corpora, notes = write_report(options.runs, options.output, options.title)
    _print_summary(corpora, notes, Path(options.output))


_DESCRIPTION = (
    "Compare finished runs: what each setting learnt, what it kept and what it cost, with intervals. Writes report.html, "
    "report.md, report.csv, runs.csv, pareto.png, curves.png and errors.png."
)


def write_report(
    runs: Sequence[str | Path], output: str | Path = "report", title: str | None = None
) -> tuple[list[Corpus], list[str]]:
    """Write all files of a report; returns what they are made from, and notes.

    Args:
        runs: Run folders, or folders that contain some at any depth.
        output: Folder for the files; made if it is not there.
        title: Of the page.

    Raises:
        UserError: if there is no run, a file of a run cannot be read, or the folder cannot be written to.
    """
    found, notes = find_runs(runs)
    corpora, more = group(found)
    notes += [*more, *(note for corpus in corpora for note in comparability(corpus))]
    folder = Path(output)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise UserError(f"--output: cannot write to '{folder}' ({error.strerror}); give another folder.") from None
    names = ", ".join(corpus.name for corpus in corpora)
    title = printable(title or "") or f"What was learnt and what was kept{f': {names}' if len(corpora) == 1 else ''}"
    num_settings, num_runs = sum(len(corpus.settings) for corpus in corpora), len(found)
    about = (
        f"{names}: {num_settings} setting{'s' * (num_settings != 1)} from {num_runs} run{'s' * (num_runs != 1)}, compared at the last "
        f"validation of each. Made by mixsd_lightning on {datetime.date.today():%d %B %Y}."
    )
    # Everything is made before anything is written.
    contents: dict[str, bytes] = {
        "report.md": markdown(corpora, title, about, notes).encode(),
        "report.csv": report_csv(corpora).encode(),
        "runs.csv": runs_csv(corpora).encode(),
        "pareto.png": pareto_png(corpora),
        "curves.png": curves_png(corpora),
        "errors.png": errors_png(corpora),
        "report.html": page(corpora, title, about, notes).encode(),
    }
    try:
        for name, content in contents.items():
            write_atomically(folder / name, content)
    except OSError as error:
        raise UserError(
            f"--output: cannot write to '{folder}' ({error.strerror}); make room or give another folder."
        ) from None
    return corpora, notes


def _print_summary(corpora: Sequence[Corpus], notes: Sequence[str], folder: Path) -> None:
    console = Console()
    for corpus in corpora:
        first = next(iter(tables(corpus)), None)
        if first is not None:
            table = Table(title=escape(corpus.name), title_justify="left")
            table.add_column("setting", overflow="fold")
            for measure in first.columns:
                table.add_column(escape(measure.label), justify="right")
            best = chosen(corpus)
            for setting in corpus.rows:
                found = [measured(setting, measure.tag) for measure in first.columns]
                cells = [
                    f"{measure.write(one.value)} {measure.write_interval(one)}".strip() if one else ""
                    for measure, one in zip(first.columns, found, strict=True)
                ]
                table.add_row(escape(setting.label), *map(escape, cells), style="bold" if setting is best else None)
            console.print(table)
        console.print(" ".join(recommendation(corpus)), markup=False, highlight=False)
    for note in notes:
        print(f"note: {note}", file=sys.stderr)
    print(f"Report: {folder / 'report.html'}")
