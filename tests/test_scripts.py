"""Scripts that run others: what is finished is kept, what is not goes on, and the arithmetic of their tables."""

import csv
import json
import math
from pathlib import Path
from typing import Any

import pytest
import yaml
from ablation import MECHANISMS, OFF, Row, difference, print_markdown, row, run_of
from compare import KGFACT, PRESETS, Preset, benchmarks, markdown
from compare import main as compare
from compare import run_of as compared_run
from grid import Run, run_all
from plan import ParsedOnly
from scipy import stats

from mixsd_lightning.callbacks.metrics_file import METRICS_FILE, read_metrics
from mixsd_lightning.report.settings import BASE

ROOT = Path(__file__).parents[1]
KILLS_AT_THE_SECOND_CHECKPOINT = """
import os, signal
from pathlib import Path
replace, done = Path.replace, []
def replaced(self, target):
    done.extend([target] * (Path(target).name == "last.ckpt"))
    return os.kill(os.getpid(), signal.SIGKILL) if len(done) == 2 else replace(self, target)
Path.replace = replaced
"""


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

    folder = tmp_path / "grid"
    first = [Run("one", (f"--config={config}",)), Run("two", (f"--config={config}", "--model.learning_rate=1e-3"))]
    found = run_all(first, folder, jobs=2)
    assert {name: [line["step"] for line in lines] for name, lines in found.items()} == {"one": [0, 1], "two": [0, 1]}
    assert found["one"][-1]["drift/l2"] != found["two"][-1]["drift/l2"]
    written = {name: (folder / name / "metrics.jsonl").stat().st_mtime_ns for name in found}

    again = run_all([first[0], Run("two", (f"--config={config}", "--model.learning_rate=1e-2"))], folder)
    assert again["one"] == found["one"]
    assert (folder / "one/metrics.jsonl").stat().st_mtime_ns == written["one"]
    assert (folder / "two/metrics.jsonl").stat().st_mtime_ns != written["two"]
    assert [line["step"] for line in again["two"]] == [0, 1]
    assert json.loads((folder / "two/arguments.json").read_text())[-1] == "--model.learning_rate=1e-2"
    assert list((folder / "unfinished").iterdir()) == []


def test_a_run_that_was_killed_goes_on(config: str, tmp_path: Path) -> None:
    options = ("--trainer.max_epochs=3", "--trainer.enable_checkpointing=true", "--trainer.num_sanity_val_steps=0")
    run = Run("one", (f"--config={config}", *options))
    (tmp_path / "sitecustomize.py").write_text(KILLS_AT_THE_SECOND_CHECKPOINT)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit):
        patch.setenv("PYTHONPATH", f"{tmp_path}:{ROOT}")
        run_all([run], tmp_path / "grid")
    unfinished = tmp_path / "grid/unfinished/one"
    assert len((unfinished / "metrics.jsonl").read_text().splitlines()) == 2
    # What is written behind a checkpoint does not count.
    first = json.loads((unfinished / "metrics.jsonl").read_text().splitlines()[0])
    found = run_all([run], tmp_path / "grid")
    assert [line["step"] for line in found["one"]] == [1, 2, 3]
    assert found["one"][0] == first
    assert "from step 1 (previous.ckpt)" in (tmp_path / "grid/one/log.txt").read_text()
    assert [path.name for path in (tmp_path / "grid/one/checkpoints").iterdir()] == ["last.ckpt"]


def test_a_run_that_fails_says_why(config: str, tmp_path: Path) -> None:

    rates = {"bad": -1, "beside": 1e-3, "later": 1e-3}
    # Long enough to end behind the run that fails, on a busy machine, too.
    longer = "--trainer.max_epochs=20"
    runs = [Run(name, (f"--config={config}", f"--model.learning_rate={rate}", longer)) for name, rate in rates.items()]
    with pytest.raises(SystemExit) as stopped:
        run_all(runs, tmp_path / "grid", jobs=2)
    assert "--model.learning_rate must be positive" in str(stopped.value)
    assert "bad failed" in str(stopped.value)
    # What ran beside it is not lost, and what was to come is not begun.
    assert {path.name for path in (tmp_path / "grid").iterdir()} == {"unfinished", "beside"}


def test_a_comparison_ends_in_a_report_and_a_table(
    tiny_model_path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    preset = Preset(
        KGFACT,
        [("SFT", {}), ("MixSD-0.5", {"mixing_rate": 0.5, "on_reject": "gold"})],
        steps=3,
        validations=1,
        seeds=(5,),
        learning_rates=(1e-3,),
        model={"model_name_or_path": tiny_model_path, "max_new_tokens": 4, "weight_decay": 0.0},
        data={"num_domains": 2, "num_entities": 2, "batch_size": 4, "eval_splits": "[train]"},
    )
    compare(preset, tmp_path, str(tmp_path / "table.csv"))

    page = (tmp_path / "report/report.html").read_text()
    assert "MixSD" in page
    base, sft, mixsd = csv.DictReader((tmp_path / "table.csv").open())
    assert [one["method"] for one in (base, sft, mixsd)] == [BASE, "SFT", "MixSD"]
    assert (mixsd["mixing_rate"], mixsd["seeds"], sft["mixing_rate"], base["seeds"]) == ("0.5", "1", "", "")
    for name, written in (("SFT", sft), ("MixSD-0.5", mixsd)):
        last = read_metrics(tmp_path / f"runs/{name}-lr0.001-seed5/{METRICS_FILE}")[0][-1]
        assert last["step"] == 3
        assert float(written["kept"]) == pytest.approx(last["retention/kept"], rel=1e-3)
        assert float(written["fisher_drift"]) == pytest.approx(last["drift/fisher"], rel=1e-3)


def test_the_interval_of_a_difference_is_newcombes() -> None:
    """His own example (1998, table II, 56/70 against 48/80, method 10)."""
    assert difference((56 / 70, 70), (48 / 80, 80)) == pytest.approx((0.2, 0.0524, 0.3339), abs=1e-4)
    apart, low, high = difference((0.5, 400), (0.5, 400))
    half = stats.norm.ppf(0.975) * (2 * 0.25 / 400) ** 0.5
    assert (apart, low, high) == pytest.approx((0, -half, half), abs=2e-3)


def test_seeds_are_pooled_by_question() -> None:

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

    options: Any = type("Options", (), {"data_dir": None, "examples": None, "steps": None, "batch_size": None})()
    for name, chosen in MECHANISMS.items():
        run = run_of("cose", options, name, "test", 1, method="UniSD", **{**OFF, **chosen})
        settings = dict(argument.removeprefix("--model.").split("=") for argument in run.arguments if "--model." in argument)
        changed = {key for key, value in OFF.items() if settings[key] != str(value)}
        assert len(changed) == 1 or name == "clipped divergence"
        assert "," not in run.name


@pytest.mark.parametrize("corpus", ["scienceqa", "cose"])
def test_the_readme_has_the_table_of_the_file(corpus: str, capsys: pytest.CaptureFixture[str]) -> None:
    with (ROOT / f"docs/results/ablation_{corpus}.csv").open() as file:
        read = csv.DictReader(file)
        rows = [
            Row(**{key: value if key == "method" else float(value or "nan") for key, value in line.items()}) for line in read
        ]
    print_markdown(rows)
    assert capsys.readouterr().out in (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", ["kgfact_small", "kgfact_variants", "kgfunc"])
def test_the_readme_has_the_comparison_of_the_file(name: str) -> None:
    assert markdown(ROOT / f"docs/results/{name}.csv") in (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.mark.filterwarnings("ignore:.*args parameter is intended to run from within Python")
@pytest.mark.parametrize("name", sorted(PRESETS))
def test_every_run_of_a_comparison_is_what_its_name_says(name: str) -> None:
    preset = PRESETS[name]
    kinds = {(run_name.partition("-")[0], *settings): (run_name, settings) for run_name, settings in preset.compared}
    for run_name, settings in kinds.values():
        run = compared_run(preset, run_name, 5, 3e-5, settings, benchmarks("some folder"))
        parsed = ParsedOnly(["fit", *run.arguments])
        method, corpus = parsed.model, parsed.datamodule
        assert type(method).__name__ == run_name.partition("-")[0]
        given: dict[str, Any] = {"learning_rate": 3e-5, **preset.model, **settings}
        found = {key: corpus.hparams[key.removeprefix("data.")] if "." in key else method.hparams[key] for key in given}
        assert found == given
        suites = [suite if isinstance(suite, str) else suite.name for suite in parsed.config_init.fit.retention.suites]
        assert suites == ["probe", "bits_per_byte", "agreement", "lambada", "hellaswag"]
        assert (corpus.hparams["seed"], parsed.trainer.max_steps) == (5, preset.steps)
        assert f"-lr{given['learning_rate']:g}-seed5" in run.name


def test_what_two_comparisons_share_runs_once() -> None:
    """Variants begin with runs of the comparison, which a common folder already has."""
    runs = {
        name: {
            (run := compared_run(PRESETS[name], run_name, 42, rate, settings)).name: run.arguments
            for run_name, settings in PRESETS[name].compared
            for rate in (3e-5, 6e-5)
        }
        for name in ("kgfact", "variants")
    }
    shared = runs["kgfact"].keys() & runs["variants"].keys()
    assert shared == {f"{name}-lr{rate}-seed42" for name in ("SFT", "MixSD-0.3-protected") for rate in ("3e-05", "6e-05")}
    assert all(runs["kgfact"][name] == runs["variants"][name] for name in shared)
    for preset in PRESETS.values():
        names = [compared_run(preset, run_name, 42, 6e-5, settings).name for run_name, settings in preset.compared]
        assert len(set(names)) == len(names)
