"""Whether numbers that stand side by side are numbers of the same thing."""

import re
from collections import defaultdict
from collections.abc import Sequence

from mixsd_lightning.report.collect import Run
from mixsd_lightning.report.settings import BASE, Corpus, all_settings, seeds

_APART = 0.01


def comparability(corpus: Corpus) -> list[str]:
    """Notes on what makes a comparison lame: other suites, or a base model that scored differently."""
    notes = []
    suites: dict[str, list[str]] = defaultdict(list)
    for setting in corpus.settings:
        names = {found[1] for line in setting.lines for tag in line if (found := re.fullmatch(r"retention/([^/]+)/kept", tag))}
        if names:
            suites[", ".join(sorted(names))].append(setting.label)
    if len(suites) > 1:
        told = "; ".join(f"{names} by {labels[0]}{_others(labels)}" for names, labels in suites.items())
        notes.append(f"{corpus.name}: kept (mean) is not over the same suites everywhere: {told}.")
    return notes + _base_scores(corpus)


def _base_scores(corpus: Corpus) -> list[str]:
    """The base model answers alike in every run, unless it was asked something else."""
    firsts: dict[tuple[str, str], list[Run]] = defaultdict(list)
    for setting in corpus.settings:
        for run in setting.runs:
            if run.lines[0]["step"] == 0:
                model = all_settings(run).get("model.model_name_or_path", BASE)
                firsts[model, seeds(run).get("data.seed", "")].append(run)
    notes = []
    for same in firsts.values():
        tags = sorted(
            {tag for run in same for tag in run.lines[0] if re.fullmatch(r"retention/[^/]+|memorization/[^/]+", tag)}
        )
        for tag in tags:
            found = sorted((run.lines[0][tag], run.name) for run in same if tag in run.lines[0] and "taught" not in tag)
            if found and found[-1][0] - found[0][0] > _APART * max(1.0, abs(found[-1][0])):
                (low, low_name), (high, high_name) = found[0], found[-1]
                notes.append(
                    f"{corpus.name}: before training, {tag} was {low:.3g} in {low_name} and {high:.3g} in {high_name}: "
                    "they were not asked the same, perhaps by another version of the library."
                )
    return notes


def _others(labels: Sequence[str]) -> str:
    return f" and {len(labels) - 1} more" if len(labels) > 1 else ""
