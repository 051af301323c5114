"""What happens when the disk is full, a folder cannot be written to or a file has gone: one line, and nothing is lost."""

import errno
import os
import sys
from pathlib import Path
from typing import Any

import pytest
from short_runs import RUN, short_run

from mixsd_lightning.atomic_file import write_atomically
from mixsd_lightning.callbacks import MetricsFile
from mixsd_lightning.cli import main
from mixsd_lightning.resume import read_config


@pytest.fixture
def config(tiny_model_path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A run of two steps."""
    return short_run(tmp_path, monkeypatch, 2, "MixSD", model_name_or_path=tiny_model_path, on_reject="gold", max_attempts=1)


def refusal(config: str, capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    capsys.readouterr()
    with pytest.raises(SystemExit) as done:
        main(["fit", "--config", config, *arguments])
    assert done.value.code == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    return line


def finish(config: str) -> list[str]:
    """The same command again: it has to come to its end in the first folder."""
    main(["fit", "--config", config])
    assert [path.name for path in RUN.parent.iterdir()] == ["version_0"]
    return (RUN / "metrics.jsonl").read_text().splitlines()


@pytest.mark.skipif(sys.platform == "win32", reason="no such limit")
def test_a_disk_that_fills_up_stops_the_run_and_room_lets_it_go_on(
    config: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import resource

    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    write = MetricsFile.on_validation_end

    def fills_up(self: MetricsFile, trainer: Any, pl_module: Any) -> None:
        write(self, trainer, pl_module)
        if pl_module.completed_steps == 2:  # one checkpoint is there, the second does not fit
            resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))

    try:
        with monkeypatch.context() as patch:
            patch.setattr(MetricsFile, "on_validation_end", fills_up)
            said = refusal(config, capsys)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "checkpoints/.last.ckpt.whole cannot be written: File too large" in said
    assert "make room, and the same command goes on" in said
    lines = finish(config)
    assert "from step 1 (last.ckpt)" in capsys.readouterr().out
    assert len(lines) == 3


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EACCES])
def test_what_cannot_be_written_is_named(
    config: str, number: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Errors of the system where they come up; tests may run as a user whom no permission stops."""

    def refuse(path: Path, content: bytes) -> None:
        raise OSError(number, os.strerror(number), str(path))

    with monkeypatch.context() as patch:
        patch.setattr("mixsd_lightning.callbacks.run_claim.write_atomically", refuse)
        said = refusal(config, capsys)
    assert f"runs/tiny/version_0/config.yaml: {os.strerror(number)}. Make room or make it writable" in said
    write_atomically(Path("x"), b"")  # and the folder of the test can be written to


def test_a_file_where_the_folder_should_be_is_named(config: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("runs").write_text("")
    assert "runs" in refusal(config, capsys)


def test_an_error_that_is_no_fault_of_the_disk_is_shown_whole(config: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: Any, *arguments: Any) -> None:
        raise OSError(errno.ECONNRESET, "reset")

    monkeypatch.setattr(MetricsFile, "on_validation_end", broken)
    with pytest.raises(OSError, match="reset"):
        main(["fit", "--config", config])


def test_targets_that_vanish_are_built_again(
    config: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(self: MetricsFile, trainer: Any, pl_module: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(MetricsFile, "on_validation_end", killed)
        main(["fit", "--config", config])
    built = (RUN / "targets/mixed.jsonl").read_bytes()
    (RUN / "targets/mixed.jsonl").unlink()
    finish(config)
    assert (RUN / "targets/mixed.jsonl").read_bytes() == built


@pytest.mark.parametrize("content", ["model: [", "- a list", "\udcff"])
def test_a_damaged_config_of_a_run_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / "config.yaml").write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(ValueError, match=r"config\.yaml .* Mend it, or give --resume off\."):
        read_config(tmp_path)
