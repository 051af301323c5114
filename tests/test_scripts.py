"""Scripts that run others: what is finished is kept, what is not begins again, and the arithmetic of their tables."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import yaml
from scipy import stats

ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def scripts_are_importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))


@pytest.fixture
def config(tiny_model_path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A run of two steps."""
    model = {"class_path": "SFT", "init_args": {"model_name_or_path": tiny_model_path, "max_new_tokens": 4}}
    data = {
        "class_path": "KGFact",
        "init_args": {"num_domains": 2, "num_entities": 2, "batch_size": 4, "eval_splits": ["train"]},
    }
    settings: dict[str, Any] = {"model": model, "data": data, "drift": {"num_sequences": 2}}
    settings["trainer"] = {"accelerator": "cpu", "max_epochs": 1, "enable_checkpointing": False}
    settings["retention"] = {"suites": ["bits_per_byte"]}
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(settings))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    return str(path)


def test_finished_runs_are_not_run_again(config: str, tmp_path: Path) -> None:
    from grid import Run, run_all

    folder = tmp_path / "grid"
    first = [Run("one", (f"--config={config}",)), Run("two", (f"--config={config}", "--model.learning_rate=1e-3"))]
    found = run_all(first, folder)
    assert {name: [line["step"] for line in lines] for name, lines in found.items()} == {"one": [0, 1], "two": [0, 1]}
    assert found["one"][-1]["drift/l2"] != found["two"][-1]["drift/l2"]
    written = {name: (folder / name / "metrics.jsonl").stat().st_mtime_ns for name in found}

    (folder / "unfinished/three").mkdir(parents=True)  # it was killed
    (folder / "unfinished/three/metrics.jsonl").write_text("{}")
    changed = [first[0], Run("two", (f"--config={config}", "--model.learning_rate=1e-2")), Run("three", first[0].arguments)]
    again = run_all(changed, folder)
    assert again["one"] == found["one"]
    assert (folder / "one/metrics.jsonl").stat().st_mtime_ns == written["one"]
    assert (folder / "two/metrics.jsonl").stat().st_mtime_ns != written["two"]
    assert [line["step"] for line in again["three"]] == [0, 1]
    assert json.loads((folder / "two/arguments.json").read_text())[-1] == "--model.learning_rate=1e-2"
    assert list((folder / "unfinished").iterdir()) == []


def test_a_run_that_fails_says_why(config: str, tmp_path: Path) -> None:
    from grid import Run, run_all

    with pytest.raises(SystemExit) as stopped:
        run_all([Run("bad", (f"--config={config}", "--model.learning_rate=-1"))], tmp_path / "grid")
    assert "--model.learning_rate must be positive" in str(stopped.value)
    assert "bad failed" in str(stopped.value)
    assert not (tmp_path / "grid/bad").exists()


def test_the_interval_of_a_difference_is_newcombes() -> None:
    """His own example (1998, table II, 56/70 against 48/80, method 10)."""
    from ablation import difference

    assert difference((56 / 70, 70), (48 / 80, 80)) == pytest.approx((0.2, 0.0524, 0.3339), abs=1e-4)
    apart, low, high = difference((0.5, 400), (0.5, 400))
    half = stats.norm.ppf(0.975) * (2 * 0.25 / 400) ** 0.5
    assert (apart, low, high) == pytest.approx((0, -half, half), abs=2e-3)


def test_seeds_are_pooled_by_question() -> None:
    from ablation import row

    lines = [
        {"memorization/test": 1.0, "memorization/test_count": 100.0, "drift/l2": 1.0},
        {"memorization/test": 0.0, "memorization/test_count": 300.0, "drift/l2": 3.0},
    ]
    found = row("x", 1e-5, lines, (0.25, 400))
    assert (found.right, found.questions, found.seeds, found.drift_l2) == (0.25, 400, 2, 2.0)
    assert found.difference == 0
    assert found.low < 0.25 < found.high
    assert math.isnan(found.kept)  # it was not measured


def test_every_mechanism_of_the_ablation_is_one_change() -> None:
    from ablation import MECHANISMS, OFF, run_of

    options: Any = type("Options", (), {"data_dir": None, "examples": None})()
    for name, chosen in MECHANISMS.items():
        run = run_of("cose", options, name, "test", 1, method="UniSD", **{**OFF, **chosen})
        settings = dict(argument.removeprefix("--model.").split("=") for argument in run.arguments if "--model." in argument)
        changed = {key for key, value in OFF.items() if settings[key] != str(value)}
        assert len(changed) == 1 or name == "clipped divergence"
        assert "," not in run.name
