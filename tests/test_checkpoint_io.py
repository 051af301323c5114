"""Checkpoint files: whole or not at all, and what is wrong with one is said."""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from mixsd_lightning.checkpoint_io import LAST, PREVIOUS, CheckpointFiles, put_last, remove, steps_of_resumable
from mixsd_lightning.errors import UserError
from mixsd_lightning.trained import find_checkpoint

CHECKPOINT: dict[str, Any] = {
    "global_step": 3,
    "state_dict": {"student.weight": torch.arange(4000.0)},
    "optimizer_states": [{"state": {0: {"exp_avg": torch.ones(4000)}}}],
}


def write(path: Path, **changes: Any) -> Path:
    CheckpointFiles().save_checkpoint(CHECKPOINT | changes, path)
    return path


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    path = write(tmp_path / "new/folder/last.ckpt")
    found = CheckpointFiles().load_checkpoint(path)
    torch.testing.assert_close(found, CHECKPOINT, rtol=0, atol=0)
    assert steps_of_resumable(path) == 3
    assert [one.name for one in path.parent.iterdir()] == ["last.ckpt"]


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.999])
def test_a_file_that_was_cut_short_is_recognised(tmp_path: Path, share: float) -> None:
    path = write(tmp_path / LAST)
    write(tmp_path / PREVIOUS)
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    for read in (steps_of_resumable, CheckpointFiles().load_checkpoint):
        with pytest.raises(UserError, match=r"last\.ckpt is damaged or cut short .*previous\.ckpt is the one before it"):
            read(path)


def test_a_single_byte_is_missed_before_training_goes_on(tmp_path: Path) -> None:
    path = write(tmp_path / LAST)
    content = bytearray(path.read_bytes())
    content[content.index(torch.arange(100.0, 200).numpy().tobytes())] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"last\.ckpt is damaged"):
        steps_of_resumable(path)


def test_weights_alone_are_nothing_to_go_on_from(tmp_path: Path) -> None:
    path = write(tmp_path / LAST)
    CheckpointFiles().save_checkpoint({"global_step": 3, "state_dict": {}}, path)
    with pytest.raises(UserError, match=r"weights without the optimizer's state"):
        steps_of_resumable(path)


def test_a_missing_file_is_said_to_be_missing(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"There is no checkpoint .*last\.ckpt"):
        CheckpointFiles().load_checkpoint(tmp_path / LAST)


@pytest.mark.skipif(sys.platform == "win32", reason="no such limit")
def test_a_full_disk_is_one_line_and_the_old_file_stays(tmp_path: Path) -> None:
    import resource

    path = write(tmp_path / LAST)
    before = path.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    try:
        with pytest.raises(UserError, match=r"last\.ckpt cannot be written: File too large\. The one before it is as it was"):
            write(path, global_step=4)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == before
    assert [one.name for one in tmp_path.iterdir()] == [LAST]


def test_programs_in_a_checkpoint_do_not_run(tmp_path: Path) -> None:
    torch.save({"global_step": 1, "path": Path}, tmp_path / LAST)  # a class, which weights do not need
    with pytest.raises(UserError, match="could run any program"):
        CheckpointFiles().load_checkpoint(tmp_path / LAST)


@pytest.mark.parametrize("is_folder", [False, True])
def test_the_last_becomes_the_previous(tmp_path: Path, is_folder: bool) -> None:
    for number in range(3):
        scratch = tmp_path / ".new"
        if is_folder:  # as strategies that shard write them
            scratch.mkdir()
            (scratch / "meta.pt").write_text(str(number))
        else:
            scratch.write_text(str(number))
        put_last(scratch)
    assert {path.name for path in tmp_path.iterdir()} == {LAST, PREVIOUS}
    content = [(tmp_path / name / "meta.pt" if is_folder else tmp_path / name).read_text() for name in (LAST, PREVIOUS)]
    assert content == ["2", "1"]
    remove(tmp_path / PREVIOUS)
    remove(tmp_path / PREVIOUS)  # it is not there any more
    assert {path.name for path in tmp_path.iterdir()} == {LAST}


def test_the_newest_is_the_last_whatever_the_clock_says(tmp_path: Path) -> None:
    import os

    write(tmp_path / "checkpoints" / LAST)
    write(tmp_path / "checkpoints" / PREVIOUS)
    os.utime(tmp_path / "checkpoints" / LAST, (0, 0))  # written in 1970
    assert find_checkpoint(tmp_path).name == LAST
    remove(tmp_path / "checkpoints" / LAST)
    assert find_checkpoint(tmp_path).name == PREVIOUS
