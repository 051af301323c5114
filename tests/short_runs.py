"""Runs of a few steps from the command line, for tests of what interrupts them."""

import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

RUN = Path("runs/tiny/version_0")
"""Where the first of them has its files."""


def short_run(folder: Path, patch: pytest.MonkeyPatch, num_steps: int, method: str, **options: Any) -> str:
    """The config of a run of some steps, each validated, in an empty working folder; returns its path."""
    settings: dict[str, Any] = {
        "model": {"class_path": method, "init_args": {"max_new_tokens": 4, **options}},
        "data": {"class_path": "KGFact", "init_args": {"num_domains": 2, "num_entities": 2, "eval_splits": ["train"]}},
        "drift": {"num_sequences": 1},
        "retention": {"suites": ["probe"]},
        "trainer": {
            "accelerator": "cpu",
            "max_epochs": num_steps,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "logger": {"class_path": "TensorBoardLogger", "init_args": {"save_dir": "runs", "name": "tiny"}},
        },
    }
    patch.chdir(folder)
    patch.setattr(sys, "argv", ["mixsd_lightning"])
    (folder / "config.yaml").write_text(yaml.safe_dump(settings))
    return str(folder / "config.yaml")
