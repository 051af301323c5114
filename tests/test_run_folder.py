"""Whose a run folder is, and which folders a logger's settings give."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from jsonargparse import Namespace

from mixsd_lightning.errors import UserError
from mixsd_lightning.run_folder import UNFINISHED, claim, is_of_run, is_running, logged_folders


def test_a_folder_belongs_to_one_process_until_it_is_gone(tmp_path: Path) -> None:
    steps = [
        "from pathlib import Path",
        "from mixsd_lightning.run_folder import claim",
        f"lock = claim(Path({str(tmp_path)!r}))",
    ]
    program = "\n".join([*steps, "print('ready', flush=True)", "input()"])
    other = subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert other.stdout is not None
    other.stdout.readline()
    try:
        assert is_running(tmp_path)
        with pytest.raises(UserError, match=r"Another process is training in .*--trainer\.logger\.init_args\.name"):
            claim(tmp_path)
    finally:
        other.kill()  # which gives it no chance to tidy up
        other.wait()
    assert (tmp_path / UNFINISHED).exists()
    assert not is_running(tmp_path)
    claim(tmp_path).release()


def test_a_checkpoint_is_of_the_run_whose_folder_it_lies_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert is_of_run("a/checkpoints/last.ckpt", tmp_path / "a")
    assert not is_of_run("b/checkpoints/last.ckpt", tmp_path / "a")
    assert not is_of_run("a/last.ckpt", tmp_path / "a")
    assert not is_of_run(None, tmp_path / "a")


def board(**options: Any) -> Namespace:
    return Namespace(class_path="TensorBoardLogger", init_args=Namespace(**{"version": None, **options}))


def test_folders_come_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    for name in ("version_2", "version_10", "version_1", "version_x", "other"):
        (tmp_path / "runs/tiny" / name).mkdir(parents=True)
    logger = board(save_dir=str(tmp_path / "runs"), name="tiny")
    assert [path.name for path in logged_folders(logger, None)] == ["version_10", "version_2", "version_1"]
    assert logged_folders([logger], None) == logged_folders(logger, None)


@pytest.mark.parametrize(
    ("logger", "folders"),
    [
        (board(save_dir="runs", name="a", version=3), ["runs/a/version_3"]),
        (board(save_dir="runs", name="a", version="mine"), ["runs/a/mine"]),
        (board(save_dir="runs", name=None, version="mine"), ["runs/mine"]),
        (False, ["root"]),
        (None, ["root"]),
        (True, []),
        (Namespace(class_path="Other", init_args=Namespace(save_dir="runs")), []),
    ],
)
def test_settings_may_name_the_folder(logger: Any, folders: list[str]) -> None:
    assert logged_folders(logger, "root") == [Path(folder) for folder in folders]
