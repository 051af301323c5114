from pathlib import Path

from made_runs import base_line, config, validation, write_comparison, write_run

from mixsd_lightning.report.checks import comparability
from mixsd_lightning.report.collect import find_runs
from mixsd_lightning.report.settings import group


def notes(root: Path) -> list[str]:
    return [note for corpus in group(find_runs([root])[0])[0] for note in comparability(corpus)]


def test_comparable_runs_give_no_notes(tmp_path: Path) -> None:
    assert notes(write_comparison(tmp_path)) == []


def test_other_suites_are_told(tmp_path: Path) -> None:
    write_run(tmp_path / "one", config("SFT"), validation(4, 1.0, 0.8))
    write_run(tmp_path / "two", config("MixSD"), validation(4, 1.0, 0.8, retention__gsm8k__kept=0.5))
    assert notes(tmp_path) == [
        "KGFact-Small: kept (mean) is not over the same suites everywhere: probe by SFT; gsm8k, probe by MixSD."
    ]


def test_a_base_model_that_scored_differently_is_told(tmp_path: Path) -> None:
    write_run(tmp_path / "one", config("SFT"), base_line() | {"retention/probe": 0.61}, validation(4, 1.0, 0.8))
    write_run(tmp_path / "two", config("MixSD"), base_line() | {"retention/probe": 0.64}, validation(4, 1.0, 0.8))
    (note,) = notes(tmp_path)
    assert note.startswith("KGFact-Small: before training, retention/probe was 0.61 in one and 0.64 in two")
