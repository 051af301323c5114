"""The command line as a user types it, in process; what it writes is checked on disk."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from corpus_files import SMALL, write_corpus_files
from lightning.pytorch.cli import LightningCLI
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from mixsd_lightning.cli import MixSDCLI, default_precision, main
from mixsd_lightning.records import DataSet

ROOT = Path(__file__).parents[1]


@pytest.fixture
def config(tiny_model_path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A run of six steps with the tiny model, in an empty working folder."""
    settings: dict[str, Any] = {
        "model": {
            "class_path": "MixSD",
            "init_args": {
                "model_name_or_path": tiny_model_path,
                "on_reject": "gold",
                "max_attempts": 2,
                "max_new_tokens": 8,
                "learning_rate": 1e-3,
            },
        },
        "data": {"class_path": "KGFact", "init_args": {"num_domains": 3, "num_entities": 4, "batch_size": 4}},
        "drift": {"num_sequences": 2},
        "trainer": {
            "accelerator": "cpu",
            "max_epochs": 2,
            "logger": {"class_path": "TensorBoardLogger", "init_args": {"save_dir": "runs", "name": "tiny"}},
        },
    }
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["mixsd_lightning"])
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(settings))
    return str(path)


def metrics(version: int) -> list[dict[str, float]]:
    lines = Path(f"runs/tiny/version_{version}/metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def test_six_steps_write_exactly_the_promised_files_and_validate_repeats_the_numbers(
    config: str, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["fit", "--config", config])
    folder = Path("runs/tiny/version_0")
    files = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    targets = [r"targets/\.mixed\.lock", r"targets/mixed\.jsonl", r"targets/mixed\.meta\.json"]
    checkpoints = [r"checkpoints/last\.ckpt", r"checkpoints/previous\.ckpt"]
    patterns = [*checkpoints, r"config\.yaml", r"events\.out\.tfevents\..*", r"hparams\.yaml", r"metrics\.jsonl"]
    for file, pattern in zip(files, [*patterns, *targets], strict=True):
        assert re.fullmatch(pattern, file)

    lines = metrics(0)
    assert [line["step"] for line in lines] == [0, 3, 6]
    expected = {"step", "epoch", "retention/kept", "retention/bits_per_byte", "retention/bits_per_byte/kept"}
    expected |= {"memorization/train", "memorization/train_loose", "memorization/paraphrase", "targets/nll_base"}
    expected |= {"drift/fisher", "drift/l2", "drift/sensitivity", "retention/agreement_kl", "retention/probe"}
    expected |= {"drift/fisher/attention", "retention/kept_low", "retention/probe/geography", "targets/improbable"}
    expected |= {"errors/train/format", "errors/probe/leakage"}
    assert expected <= lines[-1].keys()
    assert lines[0]["drift/l2"] == 0 < lines[1]["drift/l2"] < lines[2]["drift/l2"]
    assert lines[0]["retention/kept"] == 1 != lines[2]["retention/kept"]

    events = EventAccumulator(str(folder))
    events.Reload()
    for tag in ("drift/l2", "memorization/train", "retention/kept"):
        shown = [(event.step, event.value) for event in events.Scalars(tag)]
        assert shown == [(line["step"], pytest.approx(line[tag])) for line in lines]

    printed = capsys.readouterr().out
    for words in (
        "answers right: train (12)",
        "drift (Fisher-weighted)",
        "0 of 12 accepted",
        "Run folder: runs/tiny/version_0",
    ):
        assert words in printed
    assert "tensorboard --logdir runs/tiny" in printed

    # The saved config alone repeats the run, and the checkpoint alone repeats its last validation.
    for version, command in ((1, "validate"), (2, "test")):
        main([command, "--config", f"{folder}/config.yaml", "--ckpt_path", f"{folder}/checkpoints/last.ckpt"])
        (again,) = metrics(version)
        assert again["step"] == 6
        for tag, value in again.items():
            if tag != "epoch":
                assert value == pytest.approx(lines[-1][tag], rel=1e-5), tag


def test_what_the_user_says_beats_the_checkpoint(config: str, monkeypatch: pytest.MonkeyPatch) -> None:
    main(["fit", "--config", config])
    checkpoint = "runs/tiny/version_0/checkpoints/last.ckpt"
    continued = ["fit", "--config", config, "--ckpt_path", checkpoint, "--trainer.max_epochs", "3"]
    rates: list[float] = []

    def remember(self: MixSDCLI) -> None:
        rates.extend(group["lr"] for group in self.trainer.optimizers[0].param_groups)

    monkeypatch.setattr(MixSDCLI, "after_fit", remember)
    main([*continued, "--model.learning_rate", "0.5", "--model.warmup_steps", "6"])
    assert rates == [0.5]
    saved = yaml.safe_load(Path("runs/tiny/version_1/config.yaml").read_text())
    assert saved["model"]["init_args"]["learning_rate"] == 0.5
    assert [line["step"] for line in metrics(1)] == [9]
    main([*continued, "--model", "SFT"])
    saved = yaml.safe_load(Path("runs/tiny/version_2/config.yaml").read_text())
    assert saved["model"]["class_path"].endswith("SFT")


def test_predict_writes_targets_without_training(config: str) -> None:
    main(["predict", "--config", config])
    (written,) = Path("runs/tiny/version_0/targets").glob("*.jsonl")
    assert len(written.read_text().splitlines()) == 12


def test_print_config_shows_every_default(config: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as done:
        main(["fit", "--config", config, "--print_config"])
    assert done.value.code == 0
    shown = yaml.safe_load(capsys.readouterr().out)
    assert shown["model"]["init_args"]["mixing_rate"] == 0.3
    assert shown["data"]["init_args"]["seed"] == 42
    assert shown["retention"]["suites"] == ["probe", "bits_per_byte", "agreement"]


def test_overrides_of_the_architecture_parse(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["mixsd_lightning"])
    monkeypatch.setattr(LightningCLI, "_run_subcommand", lambda self, subcommand: None)
    arguments = "--model MixSD --model.mixing_rate 0.3 --model.temperature 0.0 --data KGFact --data.num_domains 5"
    cli = MixSDCLI(["fit", *arguments.split(), "--data.num_entities", "10"])
    assert (cli.model.target_settings.mixing.mixing_rate, cli.datamodule.num_domains) == (0.3, 5)


def test_the_configs_of_a_corpus_differ_in_the_method_alone() -> None:
    """So that what their runs give can be compared."""

    def rest(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
        config = yaml.safe_load(path.read_text())
        config["trainer"]["logger"]["init_args"].pop("name")
        return config.pop("model")["init_args"], config

    for folder in {path.parent for path in (ROOT / "configs").rglob("sft.yaml")}:
        options, others = rest(folder / "sft.yaml")
        for path in folder.glob("*.yaml"):
            assert rest(path)[1] == others
            assert options.items() <= rest(path)[0].items()


def config_name(path: Path) -> str:
    return str(path.relative_to(ROOT / "configs").with_suffix(""))


@pytest.fixture
def parsed_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing runs, and data that would be fetched are small files of ours."""
    monkeypatch.setattr(sys, "argv", ["mixsd_lightning"])
    monkeypatch.setattr(LightningCLI, "_run_subcommand", lambda self, subcommand: None)
    monkeypatch.chdir(write_corpus_files(tmp_path))
    monkeypatch.setattr(DataSet, "_hub_rows", lambda self: self.rows(str(tmp_path)))


# Where DeepSpeed cannot run, its overlay is refused (test_strategies_configs.py).
RUNNABLE = sorted(path for path in (ROOT / "configs").rglob("*.yaml") if path.stem != "deepspeed")


@pytest.mark.usefixtures("parsed_only")
@pytest.mark.parametrize("path", RUNNABLE, ids=config_name)
def test_every_shipped_config_parses_and_instantiates(path: Path) -> None:
    is_whole = "data" in yaml.safe_load(path.read_text())
    base = [] if is_whole else ["--config", str(ROOT / "configs" / "quickstart.yaml")]
    cli = MixSDCLI(["fit", *base, "--config", str(path)])
    for split in (cli.datamodule.train_split, *cli.datamodule.eval_splits):
        assert cli.datamodule.split(split)


# What a corpus is first shown with.
DEFAULT_CONFIGS = sorted([*(ROOT / "configs").glob("*/mixsd.yaml"), *(ROOT / "configs").glob("*/unisd_star.yaml")])


@pytest.mark.usefixtures("parsed_only")
@pytest.mark.parametrize("method", ["SFT", "OPSD", "MixSD", "UniSD"])
@pytest.mark.parametrize("path", DEFAULT_CONFIGS, ids=config_name)
def test_a_config_serves_every_method(path: Path, method: str) -> None:
    options = yaml.safe_load(path.read_text())["model"]["init_args"]
    cli = MixSDCLI(["fit", "--config", str(path), "--model", method, "--trainer.logger.init_args.name", "another"])
    assert type(cli.model).__name__ == method
    assert cli.trainer.logger.name == "another"
    shared = ("model_name_or_path", "learning_rate", "weight_decay", "warmup_steps", "max_new_tokens")
    assert {name: getattr(cli.model, name) for name in shared} == {name: options[name] for name in shared}


def test_every_corpus_has_a_config() -> None:
    configs = {path: yaml.safe_load(path.read_text()) for path in DEFAULT_CONFIGS}
    assert {path.parent.name: config["data"]["class_path"] for path, config in configs.items()} == {
        name.lower(): name for name in SMALL
    }
    for path, config in configs.items():
        name, method = config["trainer"]["logger"]["init_args"]["name"], config["model"]["class_path"]
        assert name == f"{path.parent.name}-{method.lower()}"


@pytest.mark.parametrize("path", sorted((ROOT / "configs").rglob("*.yaml")), ids=config_name)
def test_every_option_of_model_and_data_is_explained(path: Path) -> None:
    config, text = yaml.safe_load(path.read_text()), path.read_text()
    for part in {"model", "data"} & config.keys():
        for option in config[part]["init_args"]:
            assert re.search(rf"^    {option}: .* # \S", text, re.MULTILINE), option


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--model", "MixedSD"], r"--model: there is no method 'MixedSD'; choose from .*MixSD, OPSD, .*SFT"),
        (["--model", "SupervisedModule"], r"choose from .*MixSD, OPSD, .*SFT"),
        (["--data", "KGFacts"], r"--data: there is no corpus 'KGFacts'; choose from .*KGFact, KGFunc"),
        (["--model.mixing_rat", "0.3"], r"no option 'mixing_rat' here\. Did you mean --model\.mixing_rate\?"),
        (["--trainer.max_epoch", "3"], r"no option 'trainer\.max_epoch' here\. Did you mean --trainer\.max_epochs\?"),
        (["--model.mixing_rate", "1.5"], r"--model\.mixing_rate must be between 0 and 1, got 1\.5\."),
        (["--model.mixing_rate", "half"], r"--model\.mixing_rate: Expected .*float.* Got value: half\."),
        (["--model.model_name_or_path", "/no/such/folder"], r"--model\.model_name_or_path: cannot load '/no/such/folder'"),
        (["--data.num_domains", "1"], r"--data\.num_domains must be 2 to 14, got 1\."),
        (["--data.expert_context", "fact_last"], r"there is no 'fact_last'; choose from knowledge_base, .*earlier_turn\."),
        (["--data.eval_splits", "[unseen]"], r"--data\.eval_splits: KGFact has no split 'unseen'"),
        (["--model.max_new_tokens", "9000"], r"the model's window has 8192\. .*--model\.max_new_tokens"),
        (["--ckpt_path", "no.ckpt"], r"--ckpt_path: there is no file or folder 'no\.ckpt'"),
        (["--retention.suites", "[none]"], r"--retention\.suites: there is no suite 'none'"),
        (
            ["--retention.suites", "[{class_path: Agreement, init_args: {num_question: 4}}]"],
            r"mean init_args\.num_questions\?",
        ),
        (["--retention.suites", "[{class_path: BitsPerByte, init_args: {text_file: no.txt}}]"], r"cannot read text_file 'no"),
        (
            ["--retention.suites", "[{class_path: GSM8K, init_args: {data_dir: nowhere}}]"],
            r"data_dir 'nowhere' has no records",
        ),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_mistakes_end_in_one_line_and_write_nothing(
    config: str, arguments: list[str], complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as done:
        main(["fit", "--config", config, *arguments])
    assert done.value.code == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert re.search(complaint, errors[0])
    assert not Path("runs").exists()


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("model:\n  class_path: MixSD\n  init_args: {mixing_rte: 0.3}\ndata: KGFact\n", "Did you mean --model.mixing_rate?"),
        ("modle: MixSD\ndata: KGFact\n", "there is no option 'modle' here"),
        ("model: [\n", "Problems parsing config"),
    ],
)
def test_mistakes_in_a_config_file_end_in_one_line(
    config: str, text: str, complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("broken.yaml").write_text(text)
    with pytest.raises(SystemExit) as done:
        main(["fit", "--config", "broken.yaml"])
    assert done.value.code == 2
    assert complaint in capsys.readouterr().err.splitlines()[-1]


def test_the_module_runs_as_a_program() -> None:
    command = [sys.executable, "-m", "mixsd_lightning", "fitt"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert "Traceback" not in done.stderr


def test_precision_follows_the_hardware(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("torch.backends.mps.is_available", lambda: False)
    monkeypatch.setattr("torch.cpu.get_capabilities", lambda: {"avx512_bf16": True})
    assert default_precision("auto") == "bf16-mixed"
    monkeypatch.setattr("torch.cpu.get_capabilities", lambda: {"avx512_bf16": False, "amx_bf16": False})
    assert default_precision("auto") == "32-true"
    assert default_precision("cpu") == "32-true"
