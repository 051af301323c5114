import json
from pathlib import Path

import pytest

from mixsd_lightning.summary import print_summary

BASE = {"step": 0, "memorization/train": 0.0, "memorization/train_count": 100, "retention/kept": 1.0, "drift/l2": 0.0}
TRAINED = {"step": 40, "memorization/train": 0.9, "memorization/train_count": 100, "retention/kept": 0.8, "drift/l2": 2.5}


def summary(folder: Path, capsys: pytest.CaptureFixture[str], *lines: dict[str, float]) -> str:
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    print_summary(folder)
    return capsys.readouterr().out


def test_before_and_after_stand_side_by_side(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    printed = summary(tmp_path, capsys, BASE, TRAINED | {"step": 20, "retention/kept": 0.1}, TRAINED)
    (memorized,) = [line for line in printed.splitlines() if "answers right: train (100)" in line]
    assert "0.0%" in memorized
    assert "90.0% [83%, 94%]" in memorized
    (kept,) = [line for line in printed.splitlines() if "kept of the base" in line]
    assert "100.0%" in kept
    assert "80.0%" in kept
    assert "after 40 steps" in printed
    assert f"Run folder: {tmp_path}" in printed


def test_a_resumed_run_shows_no_trained_state_as_before(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    printed = summary(tmp_path, capsys, TRAINED | {"step": 30, "memorization/train": 0.5}, TRAINED)
    (memorized,) = [line for line in printed.splitlines() if "answers right: train (100)" in line]
    assert "50.0%" not in memorized
    assert "90.0%" in memorized


def test_target_counts_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    counts = {"targets/accepted": 42.0, "targets/rejected": 6.0, "targets/attempts": 442.0, "targets/nll_base": 2.87}
    printed = summary(tmp_path, capsys, BASE, TRAINED | counts)
    assert "42 of 48 accepted in 442 attempts" in printed
    assert "2.87 nats a token" in printed
