from pathlib import Path

import pytest
from made_runs import base_line, config, validation, write_run

from mixsd_lightning.errors import UserError
from mixsd_lightning.report.collect import find_runs


def test_runs_are_found_at_any_depth_and_once(tmp_path: Path) -> None:
    one = write_run(tmp_path / "a" / "b" / "version_0", config(), base_line(), validation(10, 1.0, 0.9))
    write_run(tmp_path / "c" / "version_0", None, validation(10, 0.5, 0.9))
    runs, notes = find_runs([tmp_path, one, one / "metrics.jsonl"])
    assert [run.name for run in runs] == [str(Path("b", "version_0")), str(Path("c", "version_0"))]
    assert [line["step"] for line in runs[0].lines] == [0, 10]
    assert runs[0].last["memorization/train"] == 1
    assert runs[1].config is None
    assert notes == []


def test_names_are_as_long_as_it_takes_to_tell_runs_apart(tmp_path: Path) -> None:
    for place in ("one", "two"):
        write_run(tmp_path / place / "sft" / "version_0", config(), base_line())
    assert [run.name for run in find_runs([tmp_path])[0]] == ["one/sft/version_0", "two/sft/version_0"]


def test_a_cut_last_line_is_left_out_with_a_note(tmp_path: Path) -> None:
    write_run(tmp_path / "run", config(), validation(10, 1.0, 0.9), tail='{"step": 20, "memoriz')
    (run,), notes = find_runs([tmp_path])
    assert [line["step"] for line in run.lines] == [10]
    assert notes == ["The last line of run/metrics.jsonl is cut; it was left out."]


def test_a_run_that_repeats_a_step_has_its_later_numbers(tmp_path: Path) -> None:
    write_run(tmp_path / "run", config(), validation(20, 0.5, 0.9), validation(10, 0.2, 0.9), validation(20, 0.6, 0.9))
    (run,), _ = find_runs([tmp_path])
    assert [(line["step"], line["memorization/train"]) for line in run.lines] == [(10, 0.2), (20, 0.6)]


def test_what_is_not_finite_is_not_there_and_told(tmp_path: Path) -> None:
    write_run(tmp_path / "run", config(), validation(10, 1.0, 0.9, drift__l2=float("nan")))
    (run,), (note,) = find_runs([tmp_path])
    assert "drift/l2" not in run.last
    assert note == "run: drift/l2 is not a finite number at step 10; the cells are empty."


def test_validations_of_checkpoints_and_empty_runs_are_told(tmp_path: Path) -> None:
    write_run(tmp_path / "run", config(), validation(10, 1.0, 0.9))
    write_run(tmp_path / "asked", {**config(), "verbose": True}, validation(10, 1.0, 0.9))
    write_run(tmp_path / "begun", config())
    runs, notes = find_runs([tmp_path])
    assert [run.name for run in runs] == ["run"]
    assert notes == [
        "asked is the validation of a checkpoint and not a training run; it was left out.",
        "begun has no finished validation yet; it was left out.",
    ]


@pytest.mark.parametrize(
    ("tail", "message"),
    [
        ("{half\n{}\n", "line 2: Expecting property name"),
        ('{"step": 3, "drift/l2": "<b>"}\n', "line 2: 'drift/l2' is not a number"),
        ("[1]\n", "line 2: this is no validation with its step"),
        ("[" * 100_000 + "\n", "line 2: "),
    ],
)
def test_a_broken_line_is_named(tail: str, message: str, tmp_path: Path) -> None:
    write_run(tmp_path / "run", config(), base_line(), tail=tail)
    with pytest.raises(UserError, match="metrics.jsonl, " + message):
        find_runs([tmp_path])


def test_what_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no folder 'nowhere'"):
        find_runs(["nowhere"])
    with pytest.raises(UserError, match="no run found in"):
        find_runs([tmp_path])
    folder = write_run(tmp_path / "run", config(), base_line())
    (folder / "metrics.jsonl").write_bytes(b"\xff\xfe{}")
    with pytest.raises(UserError, match="is no text"):
        find_runs([tmp_path])
    (folder / "config.yaml").write_text("model: [")
    with pytest.raises(UserError, match=r"config.yaml cannot be read: .*Mend it"):
        find_runs([tmp_path])
    (folder / "config.yaml").write_text("just words")
    with pytest.raises(UserError, match="holds no settings"):
        find_runs([tmp_path])
