"""The same command again: what it goes on with, what it says, and where it ends."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from short_runs import RUN, short_run
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from mixsd_lightning.callbacks import MetricsFile
from mixsd_lightning.cli import main
from mixsd_lightning.resume import continued, differences, unfinished_run
from mixsd_lightning.run_folder import UNFINISHED, claim

ROOT = Path(__file__).parents[1]


class KilledError(Exception):
    """The process is gone."""


@pytest.fixture
def config(tiny_model_path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A run of three steps."""
    return short_run(tmp_path, monkeypatch, 3, "SFT", model_name_or_path=tiny_model_path)


def kill_after(validation: int, config: str, *arguments: str) -> None:
    """A run that ends when it has written so many lines of metrics."""
    seen: list[int] = []
    write = MetricsFile.on_validation_end

    def killed(self: MetricsFile, *arguments: Any) -> None:
        write(self, *arguments)
        seen.append(1)
        if len(seen) == validation:
            raise KilledError

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KilledError):
        patch.setattr(MetricsFile, "on_validation_end", killed)
        main(["fit", "--config", config, *arguments])


def steps(folder: Path = RUN) -> list[int]:
    return [int(json.loads(line)["step"]) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def runs() -> list[str]:
    return sorted(path.name for path in RUN.parent.iterdir())


def test_the_same_command_goes_on_in_the_same_folder(config: str, capsys: pytest.CaptureFixture[str]) -> None:
    kill_after(3, config)  # before training, and after steps 1 and 2; the last checkpoint is of step 1
    assert steps() == [0, 1, 2]
    assert (RUN / UNFINISHED).exists()
    written = (RUN / "config.yaml").read_bytes()
    capsys.readouterr()

    main(["fit", "--config", config])
    assert "Going on with runs/tiny/version_0 from step 1 (last.ckpt)" in capsys.readouterr().out
    assert runs() == ["version_0"]
    assert steps() == [0, 1, 2, 3]
    assert (RUN / "config.yaml").read_bytes() == written
    assert not (RUN / UNFINISHED).exists()
    events = EventAccumulator(str(RUN))
    events.Reload()
    assert [event.step for event in events.Scalars("drift/l2")] == [0, 1, 2, 3]

    # What is finished is not gone on with, and what the user calls off neither.
    kill_after(3, config)
    assert runs() == ["version_0", "version_1"]
    main(["fit", "--config", config, "--resume", "off", "--trainer.max_epochs", "1"])
    assert runs() == ["version_0", "version_1", "version_2"]
    assert steps(RUN.with_name("version_1")) == [0, 1, 2]

    # A finished run can be trained further, if the user says so.
    capsys.readouterr()
    main(["fit", "--config", config, "--resume", str(RUN), "--trainer.max_epochs", "4"])
    assert "trainer.max_epochs is 3 there and 4 here" in capsys.readouterr().out
    assert steps() == [0, 1, 2, 3, 4]
    assert len(runs()) == 3


def test_another_configuration_is_another_run(config: str, capsys: pytest.CaptureFixture[str]) -> None:
    kill_after(2, config)
    main(["fit", "--config", config, "--model.learning_rate", "0.5", "--trainer.max_epochs", "1"])
    said = capsys.readouterr().out
    assert "runs/tiny/version_0 was not finished, but has another configuration: " in said
    assert "model.init_args.learning_rate is 0.0001 there and 0.5 here" in said
    assert runs() == ["version_0", "version_1"]
    assert steps() == [0, 1]


def test_a_run_without_a_checkpoint_begins_again_in_its_folder(config: str, capsys: pytest.CaptureFixture[str]) -> None:
    kill_after(1, config)
    (RUN / "checkpoints").mkdir()
    (RUN / "checkpoints/.last.ckpt.whole.ab12").write_bytes(b"half of it")
    main(["fit", "--config", config, "--trainer.max_epochs", "3"])
    assert "has no checkpoint yet: it begins again" in capsys.readouterr().out
    assert (runs(), steps()) == (["version_0"], [0, 1, 2, 3])


@pytest.mark.parametrize("damage", ["cut", "gone", "weights"])
def test_a_damaged_checkpoint_is_said_and_the_one_before_it_taken(
    config: str, damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    kill_after(4, config)  # last.ckpt is of step 2
    last = RUN / "checkpoints/last.ckpt"
    if damage == "cut":
        last.write_bytes(last.read_bytes()[:1000])
    elif damage == "gone":
        last.unlink()
    else:
        kept = torch.load(last, weights_only=True)
        del kept["optimizer_states"]
        torch.save(kept, last)
    (RUN / "metrics.jsonl").unlink()  # vanished, too
    found = continued(RUN)
    assert (found.checkpoint, found.step) == (RUN / "checkpoints/previous.ckpt", 1)
    said = capsys.readouterr().out
    reason = {"cut": "last.ckpt is damaged or cut short", "gone": "", "weights": "without the optimizer's state"}[damage]
    assert reason in said
    assert not last.exists()  # or it would become the previous one
    if damage == "cut":
        main(["fit", "--config", config])
        assert steps() == [0, 1, 2, 3]


def test_a_folder_that_is_named_must_fit(config: str, capsys: pytest.CaptureFixture[str]) -> None:
    fixed = ("--trainer.logger.init_args.version", "0")
    kill_after(3, config, *fixed)

    def refused(*arguments: str) -> str:
        with pytest.raises(SystemExit) as done:
            main(["fit", "--config", config, *arguments])
        assert done.value.code == 2
        return capsys.readouterr().err

    assert "model.init_args.learning_rate is 0.0001 there and 0.5 here" in refused(*fixed, "--model.learning_rate", "0.5")
    lock = claim(RUN)
    assert "version_0 is being trained by another process" in refused(*fixed)
    (RUN / "metrics.jsonl").rename("kept.jsonl")  # the other has just begun
    assert "Another process is training in runs/tiny/version_0" in refused(*fixed, "--resume", "off")
    Path("kept.jsonl").rename(RUN / "metrics.jsonl")
    lock.release()
    (RUN / "config.yaml").rename("kept.yaml")
    assert "its config.yaml is gone" in refused(*fixed)
    Path("kept.yaml").rename(RUN / "config.yaml")
    (RUN / UNFINISHED).unlink()
    assert "version_0 holds a run already" in refused(*fixed)
    assert "version_0 holds a run already" in refused(*fixed, "--resume", "off")
    assert "'nowhere' is no run folder" in refused("--resume", "nowhere")
    assert steps() == [0, 1, 2]


def test_what_is_running_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "config.yaml").write_text("{}")
    lock = claim(tmp_path)
    assert unfinished_run([tmp_path], {}, is_fixed=False) is None
    assert "is being trained by another process; this is a run of its own" in capsys.readouterr().out
    lock.release()
    assert unfinished_run([tmp_path], {}, is_fixed=False) is not None


def test_differences_are_named_up_to_a_limit() -> None:
    assert differences({"a": {"b": 1}, "resume": "auto"}, {"a": {"b": 1}}) == ""
    assert differences({"a": {"b": 1}}, {"a": {"b": 1, "c": None}}) == ""  # the default
    many = {str(number): number for number in range(9)}
    assert differences(many, {}).endswith("5 is 5 there and None here and 3 more")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="copies of a process")
def test_killed_runs_end_where_undisturbed_ones_do() -> None:
    """Real signals, at moments that are the same each time; `scripts/survive.py` is for more of them."""
    command = [sys.executable, str(ROOT / "scripts/survive.py"), "--runs", "8", "--seed", "5"]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)})
    assert json.loads(done.stdout.splitlines()[-1]) == {"runs": 8, "lost": 0, "different": 0}, done.stdout
    assert done.returncode == 0
