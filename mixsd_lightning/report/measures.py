"""The numbers of a report: what they are called, what they mean, how they are written, and in which table they stand."""

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from mixsd_lightning.evaluation.error_modes import HELD_OUT_MODES, INJECTED_MODES
from mixsd_lightning.report.collect import Line
from mixsd_lightning.report.numbers import Estimate, Measurement, estimate
from mixsd_lightning.report.settings import Corpus, Setting

KEPT, TOP1, KL = "retention/kept", "retention/agreement_top1", "retention/agreement_kl"
ACCEPTED_SHARE = "targets/accepted_share"
MODES = (*dict.fromkeys(mode for mode in (*INJECTED_MODES, *HELD_OUT_MODES) if mode != "genuine"), "genuine")

_SPLITS = {
    "train": "the questions that were taught",
    "taught": "the taught questions that have a training target (MixSD may have dropped some)",
    "paraphrase": "the taught facts asked in other words",
    "two_hop": "questions that need two facts in a row",
    "retrieval": "facts that were not taught, with the answer among other lines in the prompt",
    "unseen_inputs": "taught functions on numbers that were not shown",
    "locality": "other facts, which should stay true",
}
_MODE_MEANINGS = {
    "format": "no answer can be found in it",
    "cross_entity": "it names something else of the corpus",
    "leakage": "it names something that was taught and that the question is not about",
    "collapse": "hardly more than the answer, where reasoning or code was asked for",
    "genuine": "simply wrong",
}


@dataclass(frozen=True)
class Measure:
    """A number that is compared."""

    tag: str
    label: str
    meaning: str
    form: str = "number"
    """`percent`, `number`, `minutes` or `megabytes`."""
    better: str = ""
    """`higher`, `lower`, or nothing where neither is better."""

    def write(self, value: float) -> str:
        """The value as people read it."""
        match self.form:
            case "percent":
                return f"{100 * value:.1f} %"
            case "minutes":
                return f"{value / 60:.1f}"
            case "megabytes":
                return f"{value:.0f}"
            case _:
                return "0" if abs(value) < 1e-5 else f"{value:.3g}"

    def write_interval(self, found: Estimate) -> str:
        """The ends of its interval in brackets; nothing where there is none."""
        if found.low is None or found.high is None:
            return ""
        if self.form == "percent":
            return f"[{100 * found.low:.0f}, {100 * found.high:.0f}]"
        return f"[{self.write(found.low)}, {self.write(found.high)}]"


@dataclass(frozen=True)
class Table:
    """Columns that are read together."""

    title: str
    columns: Sequence[Measure]


def tables(corpus: Corpus) -> list[Table]:
    """Everything that was measured on a corpus, the most important first. Columns that nobody has are not there."""
    tags = {tag for row in corpus.rows for line in row.lines for tag in line}
    splits = [memorization(corpus, tag) for tag in memorization_tags(corpus)]
    suites = sorted(found[1] for tag in tags if (found := re.fullmatch(r"retention/([^/]+)/kept", tag)))
    errors = sorted((found[1], found[2]) for tag in tags if (found := re.fullmatch(r"errors/(.+)/([^/]+)", tag)))
    order = [measure.tag.removeprefix("memorization/") for measure in splits]
    errors.sort(key=lambda one: (order.index(one[0]) if one[0] in order else len(order), one[0], _mode_rank(one[1])))
    everything = [
        Table("Learnt and kept", [*splits[:1], kept(), *splits[1:], _top1(), _kl()]),
        Table("Kept, by suite, and how far the model moved", [*map(_suite, suites), *_DISTANCES]),
        Table("Targets and costs", _COSTS),
        Table("Wrong answers, by mode", [_error(place, mode) for place, mode in errors]),
    ]
    trimmed = [Table(table.title, [one for one in table.columns if _present(one.tag, tags)]) for table in everything]
    return [table for table in trimmed if table.columns]


def memorization_tags(corpus: Corpus) -> list[str]:
    """Tags of exact matches, the taught questions first."""
    tags = {tag for row in corpus.rows for line in row.lines for tag in line}
    found = {tag for tag in tags if re.fullmatch(r"memorization/(?!.*_(loose|count)$).+", tag)}
    first = [f"memorization/{corpus.train_split}", "memorization/taught", "memorization/paraphrase"]
    return sorted(found, key=lambda tag: (first.index(tag) if tag in first else len(first), tag))


def memorization(corpus: Corpus, tag: str) -> Measure:
    """Exact matches of a split."""
    split = tag.removeprefix("memorization/")
    asked = _SPLITS.get(split) or next((text for known, text in _SPLITS.items() if split.startswith(known)), "")
    asked = f": {asked}" if asked else ""
    meaning = f"Share of answers to the split '{split}'{asked} that match the gold answer exactly."
    return Measure(tag, f"right: {split}", meaning, "percent", "higher")


def kept() -> Measure:
    """What is left of the base model's skills."""
    meaning = "Mean over suites of the share of the base model's score that is left; 100 % is nothing lost."
    return Measure(KEPT, "kept (mean)", meaning, "percent", "higher")


def _top1() -> Measure:
    return Measure(
        TOP1, "same next token", "Share of tokens at which model and base model rank the same one first.", "percent", "higher"
    )


def _kl() -> Measure:
    return Measure(
        KL, "KL from base", "KL divergence from the base model along its own answers, nats a token.", better="lower"
    )


def _suite(name: str) -> Measure:
    meaning = f"Share of the base model's score in the suite '{name}' that is left."
    return Measure(f"retention/{name}/kept", f"kept: {name}", meaning, "percent", "higher")


def _error(place: str, mode: str) -> Measure:
    meaning = f"Share of all answers to '{place}' that are wrong in this way: {_MODE_MEANINGS.get(mode, mode)}."
    return Measure(f"errors/{place}/{mode}", f"{place}: {mode.replace('_', ' ')}", meaning, "percent", "lower")


_DISTANCES = [
    Measure(
        "drift/fisher",
        "drift (Fisher)",
        "How far the weights moved, weighted by the base model's Fisher information.",
        better="lower",
    ),
    Measure("drift/l2", "drift (L2)", "How far the weights moved, plain length.", better="lower"),
]
_COSTS = [
    Measure("targets/nll_base", "targets' NLL", "How improbable the training targets are under the base model, nats a token."),
    Measure(
        ACCEPTED_SHARE,
        "targets accepted",
        "Share of questions for which MixSD accepted an answer as target.",
        "percent",
        "higher",
    ),
    Measure(
        "resources/fit_seconds", "minutes", "Minutes of the whole fit by the clock, validations included.", "minutes", "lower"
    ),
    Measure("resources/train_seconds", "minutes of steps", "Minutes of training steps alone.", "minutes", "lower"),
    Measure("resources/peak_memory_mb", "peak memory, MB", "Largest memory of the process, in MB.", "megabytes", "lower"),
    Measure("resources/peak_gpu_memory_mb", "peak GPU memory, MB", "Largest memory on the GPU, in MB.", "megabytes", "lower"),
    Measure("step", "steps", "Optimizer steps behind the last validation, which all numbers are of."),
]


def measured(setting: Setting, tag: str) -> Estimate | None:
    """A number of a setting over its seeds; None where no run has it."""
    return over_seeds(setting.lines, tag)


def over_seeds(lines: Iterable[Line], tag: str) -> Estimate | None:
    """A number over one line from each seed."""
    found = [measurement for line in lines if (measurement := _measurement(line, tag)) is not None]
    if not found:
        return None
    is_rate = tag.startswith(("memorization/", "errors/")) or tag in (ACCEPTED_SHARE, TOP1)
    return estimate(found, lowest=-math.inf if tag.startswith("train/") else 0.0, highest=1.0 if is_rate else math.inf)


def _measurement(line: Line, tag: str) -> Measurement | None:
    if tag == ACCEPTED_SHARE:
        if not {"targets/accepted", "targets/rejected"} <= line.keys():
            return None
        total = line["targets/accepted"] + line["targets/rejected"]
        return Measurement(line["targets/accepted"] / total, int(total)) if total else None
    if tag not in line:
        return None
    counted = re.fullmatch(r"errors/(.+)/[^/]+", tag)
    count = line.get(f"memorization/{counted[1]}_count" if counted else f"{tag.removesuffix('_loose')}_count", 0)
    return Measurement(line[tag], int(count), line.get(f"{tag}_low"), line.get(f"{tag}_high"))


def _present(tag: str, tags: set[str]) -> bool:
    return tag in tags or (tag == ACCEPTED_SHARE and {"targets/accepted", "targets/rejected"} <= tags)


def _mode_rank(mode: str) -> int:
    return MODES.index(mode) if mode in MODES else len(MODES)
