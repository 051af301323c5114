"""Which setting to use and why, in three plain sentences."""

from mixsd_lightning.report.measures import KEPT, Measure, kept, measured, memorization, memorization_tags
from mixsd_lightning.report.numbers import Estimate
from mixsd_lightning.report.settings import Corpus, Setting

ENOUGH = 0.95
"""Share of the best memorization that a setting needs to be considered."""


def chosen(corpus: Corpus) -> Setting | None:
    """The setting that keeps most among those with at least 95 % of the best memorization; None where nobody learnt."""
    ranked = _ranked(corpus)
    return ranked[0][0] if ranked else None


def recommendation(corpus: Corpus) -> list[str]:
    """Three sentences; fewer where there is nothing to choose."""
    tag = _learnt_tag(corpus)
    ranked = _ranked(corpus)
    if tag is None or not ranked:
        return [_why_not(corpus, tag)]
    learnt = memorization(corpus, tag)
    setting, keeps = ranked[0]
    knows = measured(setting, tag)
    assert knows is not None
    first = (
        f"Use {setting.label}: it keeps {_told(kept(), keeps)} of what the base model could do "
        f"and answers {_told(learnt, knows)} of {_questions(tag)} right."
    )
    return [first, _comparison(corpus, ranked), _certainty(corpus)]


def _learnt_tag(corpus: Corpus) -> str | None:
    return next(iter(memorization_tags(corpus)), None)


def _ranked(corpus: Corpus) -> list[tuple[Setting, Estimate]]:
    """Settings that learnt enough, with what they keep, most first."""
    tag = _learnt_tag(corpus)
    learnt = {id(one): found.value for one in corpus.settings if tag and (found := measured(one, tag))}
    best = max(learnt.values(), default=0.0)
    if best <= 0:
        return []
    enough = [one for one in corpus.settings if learnt.get(id(one), 0.0) >= ENOUGH * best]
    ranked = [(one, keeps) for one in enough if (keeps := measured(one, KEPT))]
    return sorted(ranked, key=lambda one: (-one[1].value, -learnt[id(one[0])]))


def _comparison(corpus: Corpus, ranked: list[tuple[Setting, Estimate]]) -> str:
    if len(corpus.settings) == 1:
        return "It is the only setting here, so there is nothing to compare it with."
    (_, keeps), *others = ranked
    tag = _learnt_tag(corpus)
    if not others:
        told = "No other setting learnt 95 % as much as the best, which is what it takes to be considered"
        keep_more = [
            (found.value, one) for one in corpus.settings if (found := measured(one, KEPT)) and found.value > keeps.value
        ]
        if not keep_more or tag is None:
            return f"{told}."
        other = max(keep_more, key=lambda one: one[0])[1]
        more, knows = measured(other, KEPT), measured(other, tag)
        answers = f"and answers {_told(memorization(corpus, tag), knows)} of them" if knows else "and was not asked"
        return f"{told}; {other.label} keeps {_told(kept(), more)} {answers}." if more else f"{told}."
    told = f"Of the {len(ranked)} settings that learnt at least 95 % as much as the best, it keeps most"
    second, next_best = others[0]
    told += f"; next is {second.label} with {_told(kept(), next_best)}"
    overlaps = [(other.label, keeps.overlaps(found)) for other, found in others]
    if any(overlap is None for _, overlap in overlaps):
        return f"{told}, and as some intervals are missing, how sure that is cannot be said."
    same = [label for label, overlap in overlaps if overlap]
    if not same:
        return f"{told}, and no interval overlaps with its own."
    if same == [second.label]:
        return f"{told}, but the two intervals overlap: these runs do not show which of them keeps more."
    names = " and ".join([", ".join(same[:-1]), same[-1]] if len(same) > 1 else same)
    return f"{told}, but the first interval overlaps with that of {names}: these runs do not show which of them keeps more."


def _certainty(corpus: Corpus) -> str:
    numbers = sorted({len(setting.runs) for setting in corpus.settings})
    if numbers == [1]:
        runs = "It was run" if len(corpus.settings) == 1 else "Every setting was run"
        return (
            f"{runs} with one seed, so the 95 % intervals in brackets cover other questions but not other seeds, "
            "which may turn a small difference around."
        )
    if numbers[0] > 1:
        told = str(numbers[0]) if len(numbers) == 1 else f"{numbers[0]} to {numbers[-1]}"
        return f"The 95 % intervals in brackets are over {told} seeds of each setting, so they cover what a new seed would change."
    return (
        "Some settings were run with one seed: their 95 % intervals in brackets cover other questions but not other seeds, and "
        "are not the same thing as the intervals over seeds of the others."
    )


def _why_not(corpus: Corpus, tag: str | None) -> str:
    if not corpus.settings:
        return "No run has been validated after training yet, so there is nothing to choose."
    if tag is None:
        return "No run has measured memorization, so no setting can be recommended."
    if all((found := measured(one, tag)) is None or found.value <= 0 for one in corpus.settings):
        return f"No setting answers any of {_questions(tag)} right, so none can be recommended."
    return f"The settings that learnt enough have not measured {KEPT}, so none can be recommended."


def _questions(tag: str) -> str:
    split = tag.removeprefix("memorization/")
    return "the taught questions" if split == "train" else f"the {split} questions"


def _told(measure: Measure, found: Estimate) -> str:
    return " ".join(filter(None, [measure.write(found.value), measure.write_interval(found)]))
