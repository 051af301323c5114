from pathlib import Path
from typing import Any

import pytest
from made_runs import config, validation, write_comparison, write_run

from mixsd_lightning.report.collect import find_runs
from mixsd_lightning.report.recommendation import chosen, recommendation
from mixsd_lightning.report.settings import Corpus, group


def corpus_of(root: Path, **runs: tuple[float, float]) -> Corpus:
    """SFT at several batch sizes: `b8=(memorization, kept)`."""
    for name, (learnt, kept) in runs.items():
        write_run(root / name, config("SFT", data__batch_size=int(name[1:])), validation(10, learnt, kept))
    return group(find_runs([root])[0])[0][0]


def test_the_choice_keeps_most_among_those_that_learnt_enough(tmp_path: Path) -> None:
    corpus = group(find_runs([write_comparison(tmp_path)])[0])[0][0]
    best = chosen(corpus)
    assert best is not None
    assert best.label == "MixSD, λ 0.3, learning rate 0.0001"  # λ 0.7 keeps more and has learnt 30 %
    first, second, third = recommendation(corpus)
    assert first == (
        "Use MixSD, λ 0.3, learning rate 0.0001: it keeps 91.0 % [89, 93] of what the base model could do and answers "
        "96.0 % [90, 98] of the taught questions right."
    )
    assert second == (
        "Of the 4 settings that learnt at least 95 % as much as the best, it keeps most; next is MixSD, λ 0.1, learning rate "
        "0.0001 with 84.0 % [79, 89], but the two intervals overlap: these runs do not show which of them keeps more."
    )
    assert third.startswith("Some settings were run with one seed")


@pytest.mark.parametrize(
    ("runs", "said"),
    [
        ({"b8": (1.0, 0.9), "b16": (1.0, 0.7)}, "with 70.0 % [65, 75], and no interval overlaps with its own."),
        (
            {"b8": (1.0, 0.9), "b16": (1.0, 0.85), "b32": (1.0, 0.82)},
            "overlaps with that of SFT, batch_size 16 and SFT, batch_size 32:",
        ),
        (
            {"b8": (1.0, 0.8), "b16": (0.5, 0.9)},
            "; SFT, batch_size 16 keeps 90.0 % [85, 95] and answers 50.0 % [40, 60] of them.",
        ),
        ({"b8": (1.0, 0.8)}, "It is the only setting here"),
    ],
)
def test_the_second_sentence_says_how_sure_that_is(runs: dict[str, Any], said: str, tmp_path: Path) -> None:
    assert said in recommendation(corpus_of(tmp_path, **runs))[1]


def test_missing_intervals_are_said(tmp_path: Path) -> None:
    for size in (8, 16):
        line = validation(10, 1.0, 0.9)
        del line["retention/kept_low"]
        write_run(tmp_path / str(size), config("SFT", data__batch_size=size), line)
    corpus = group(find_runs([tmp_path])[0])[0][0]
    assert "how sure that is cannot be said" in recommendation(corpus)[1]


def test_nothing_is_recommended_without_reason(tmp_path: Path) -> None:
    assert recommendation(corpus_of(tmp_path / "a", b8=(0.0, 1.0))) == [
        "No setting answers any of the taught questions right, so none can be recommended."
    ]
    write_run(tmp_path / "b" / "run", config(), {"step": 4, "drift/l2": 1.0})
    assert recommendation(group(find_runs([tmp_path / "b"])[0])[0][0]) == [
        "No run has measured memorization, so no setting can be recommended."
    ]
    write_run(tmp_path / "c" / "run", config(), {"step": 4, "memorization/train": 1.0})
    assert recommendation(group(find_runs([tmp_path / "c"])[0])[0][0]) == [
        "The settings that learnt enough have not measured retention/kept, so none can be recommended."
    ]
