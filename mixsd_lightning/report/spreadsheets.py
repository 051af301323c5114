"""``report.csv`` and ``runs.csv``: every number and every setting, for other programs."""

import csv
import io
from collections.abc import Iterable, Mapping, Sequence

from mixsd_lightning.errors import printable
from mixsd_lightning.report.measures import ACCEPTED_SHARE, measured
from mixsd_lightning.report.settings import METHOD, Corpus, seeds


def report_csv(corpora: Sequence[Corpus]) -> str:
    """A row for each setting: every number with the ends of its interval, then every setting.

    Cells of what was not measured are empty. Numbers are as logged: shares from 0 to 1, times in seconds.
    """
    rows: list[dict[str, object]] = []
    for corpus in corpora:
        for setting in corpus.rows:
            row: dict[str, object] = {"corpus": corpus.name, "setting": setting.label, METHOD: setting.method}
            row["seeds"] = "" if setting.is_base else len(setting.runs)
            tags = {tag for line in setting.lines for tag in line if not tag.endswith(("/kept_low", "/kept_high", "_count"))}
            for tag in sorted({*tags, ACCEPTED_SHARE}):
                if found := measured(setting, tag):
                    row[tag], row[f"{tag}_low"], row[f"{tag}_high"] = found.value, found.low, found.high
            row |= {f"setting:{name}": value for name, value in setting.values.items() if name != METHOD}
            rows.append(row)
    return _csv(rows, ("corpus", "setting", METHOD, "seeds"))


def runs_csv(corpora: Sequence[Corpus]) -> str:
    """A row for each run and validation, with every tag that was logged."""
    rows: list[dict[str, object]] = []
    for corpus in corpora:
        for setting in corpus.settings:
            for run in setting.runs:
                first = {
                    "corpus": corpus.name,
                    "setting": setting.label,
                    "run": run.name,
                    "folder": printable(str(run.folder)),
                }
                chosen = "; ".join(f"{name} {value}" for name, value in seeds(run).items())
                rows += [{**first, "seeds": chosen, **line} for line in run.lines]
    return _csv(rows, ("corpus", "setting", "run", "folder", "seeds", "step", "epoch"))


def _csv(rows: Sequence[Mapping[str, object]], first: Iterable[str]) -> str:
    names = {name for row in rows for name in row}
    # Settings stand after the numbers.
    columns = [*first, *sorted(names - set(first), key=lambda name: (name.startswith("setting:"), name))]
    buffer = io.StringIO(newline="")
    writer = csv.DictWriter(buffer, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: _inert(value) for name, value in row.items()} for row in rows)
    return buffer.getvalue()


def _inert(value: object) -> object:
    """Texts that a spreadsheet would run as a formula begin with an apostrophe."""
    return (
        f"'{value}" if isinstance(value, str) and value.startswith(("=", "+", "-", "@")) and not _is_number(value) else value
    )


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
