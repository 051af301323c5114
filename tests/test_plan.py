"""What the plan of a run prints, against counts and its own formulas."""

import re
from pathlib import Path

import pytest
import yaml
from plan import main

from mixsd_lightning import SFT, KGFact
from mixsd_lightning.errors import UserError
from mixsd_lightning.sizes import PUBLISHED, shape_by_name

ROOT = Path(__file__).parents[1]


@pytest.fixture
def config(tiny_model_path: str, tmp_path: Path) -> str:
    """Twelve facts in batches of four, two epochs."""
    settings = {
        "model": {"class_path": "MixSD", "init_args": {"model_name_or_path": tiny_model_path, "max_new_tokens": 8}},
        "data": {"class_path": "KGFact", "init_args": {"num_domains": 3, "num_entities": 4, "batch_size": 4}},
        "trainer": {"accelerator": "cpu", "devices": 1, "max_epochs": 2, "precision": "32-true", "logger": False},
    }
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(settings))
    return str(path)


def plan(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """What is printed, with single spaces."""
    main(arguments)
    return " ".join(capsys.readouterr().out.split())


def test_a_plan_counts_steps_tokens_and_parts(
    config: str, tiny_model_path: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    said = plan(capsys, "--config", config)
    items = SFT(tiny_model_path).training_items(KGFact(num_domains=3, num_entities=4).split("train"))
    assert "6 optimizer steps, 3 validations" in said
    assert f"an epoch is {sum(item.num_tokens for item in items):,} tokens" in said
    assert f"{shape_by_name(tiny_model_path).num_parameters:,} parameters" in said
    assert "counted with its tokenizer" in said
    assert {"targets", "training", "answers", "retention"} <= set(said.split())
    opsd = plan(capsys, "--config", config, "--model", "OPSD")
    assert {"rollouts", "teacher"} <= set(opsd.split())
    assert "targets │" not in opsd
    assert "4 optimizer steps" in plan(capsys, "--config", config, "--trainer.max_steps", "4")
    assert not (tmp_path / "runs").exists()


def test_a_faster_device_takes_less_time(config: str, capsys: pytest.CaptureFixture[str]) -> None:
    def seconds(*arguments: str) -> float:
        found = re.search(r"│ training │ [\d,]+ │ [\d.e+]+ │ ([\d.]+) s", plan(capsys, "--config", config, *arguments))
        assert found
        return float(found[1])

    slow = seconds("--teraflops", "0.0001")
    assert slow > 1
    assert seconds("--teraflops", "0.0002") == pytest.approx(slow / 2, abs=0.1)


@pytest.mark.parametrize("name", sorted(PUBLISHED))
def test_the_papers_models_are_planned_without_the_hub(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    file = ROOT / "configs/paper/kgfact_small.yaml"
    said = plan(capsys, "--config", str(file), "--model.model_name_or_path", name)
    assert f"{shape_by_name(name).num_parameters:,} parameters" in said
    assert "no tokenizer within reach" in said
    assert "210 optimizer steps, 7 validations" in said


@pytest.mark.parametrize(("flag", "value"), [("--teraflops", "0"), ("--utilisation", "1.5"), ("--attempts", "0.5")])
def test_a_device_must_make_sense(config: str, flag: str, value: str) -> None:
    with pytest.raises(UserError, match="must be positive"):
        main(["--config", config, flag, value])
