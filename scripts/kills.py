"""Kills this process at a certain call of what a run does, for scripts/survive.py."""

import io
import os
import signal
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from mixsd_lightning import checkpoint_io
from mixsd_lightning.modules import KnowledgeModule, opsd
from mixsd_lightning.target_store import TargetStore

MOMENTS: dict[str, tuple[Any, str]] = {
    "target building": (TargetStore, "append"),
    "rollout": (opsd, "roll_out"),
    "training step": (KnowledgeModule, "training_step"),
    "validation": (KnowledgeModule, "validation_step"),
    "checkpoint writing": (checkpoint_io.torch, "save"),
    "file on its way to disk": (os, "fsync"),
    "file renamed": (Path, "replace"),
}
"""What is counted, and where it is looked up when it is called."""


def die() -> None:
    """What the kernel does when it is out of memory."""
    os.kill(os.getpid(), signal.SIGKILL)


def count_calls(counts: Counter[str]) -> None:
    """Count the calls of all moments."""
    for moment in MOMENTS:
        _at_calls(moment, lambda moment=moment: counts.update([moment]))


def kill_at(moment: str, number: int, is_after: bool) -> None:
    """Kill this process at a certain call, before it is made or after."""
    calls = Counter[str]()

    def note() -> None:
        calls.update([moment])
        if calls[moment] == number:
            die()

    _at_calls(moment, note, is_after)


def _at_calls(moment: str, note: Callable[[], Any], is_after: bool = False) -> None:
    owner, name = MOMENTS[moment]
    original = getattr(owner, name)

    def replaced(*args: Any, **options: Any) -> Any:
        if not is_after:
            note()
        result = original(*args, **options)
        if is_after:
            note()
        return result

    setattr(owner, name, replaced)


def half_written(number: int) -> None:
    """Kill this process when it has written half of a checkpoint."""
    save, calls = torch.save, Counter[str]()

    def replaced(content: Any, file: Any, **options: Any) -> None:
        calls.update(["save"])
        if calls["save"] < number:
            return save(content, file, **options)
        whole = io.BytesIO()
        save(content, whole, **options)
        file.write(whole.getvalue()[: len(whole.getvalue()) // 2])
        file.flush()
        return die()

    torch.save = replaced
