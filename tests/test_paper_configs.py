"""Configs at the paper's scale: each goes with each of its models and each method, and says what the paper says."""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from corpus_files import write_corpus_files
from lightning.pytorch import Trainer
from lightning.pytorch.cli import LightningCLI
from trained_runs import untrained

from mixsd_lightning import OPSD, SFT, KGFact, MixSD
from mixsd_lightning.cli import MixSDCLI
from mixsd_lightning.modules import KnowledgeModule
from mixsd_lightning.records import DataSet
from mixsd_lightning.sizes import PUBLISHED

ROOT = Path(__file__).parents[1]
CORPORA = sorted(path for path in (ROOT / "configs/paper").glob("*.yaml") if path.stem != "opsd")
MODELS = sorted((ROOT / "configs/models").glob("*.yaml"))


@pytest.fixture(autouse=True)
def nothing_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["mixsd_lightning"])
    monkeypatch.setattr(LightningCLI, "_run_subcommand", lambda self, subcommand: None)
    monkeypatch.chdir(write_corpus_files(tmp_path))
    monkeypatch.setattr(DataSet, "_hub_rows", lambda self: self.rows(str(tmp_path)))


def test_they_are_the_papers() -> None:
    assert [path.stem for path in CORPORA] == ["kgfact_large", "kgfact_small", "kgfunc", "mquake", "simpleqa"]
    models = {yaml.safe_load(path.read_text())["model"]["init_args"]["model_name_or_path"] for path in MODELS}
    assert models == set(PUBLISHED)


@pytest.mark.parametrize("path", CORPORA, ids=lambda path: path.stem)
def test_a_corpus_is_taught_as_in_the_paper(path: Path) -> None:
    cli = MixSDCLI(["fit", "--config", str(path)])
    assert cli.model.warmup_steps == 20
    assert 1e-6 <= cli.model.learning_rate <= 1e-4
    assert cli.datamodule.batch_size * cli.trainer.accumulate_grad_batches == 16
    assert cli.model.lora_rank == 0
    assert cli.trainer.precision == "bf16-mixed"
    examples = cli.datamodule.split("train")
    assert {example.answer_format for example in examples} == {"boxed"}
    sizes = {"kgfact_small": 100, "kgfact_large": 525, "kgfunc": 1603}
    if path.stem in sizes:
        assert len(examples) == sizes[path.stem]
    # Steps: 30 epochs of facts, or 100 of a larger corpus; the last is validated.
    if cli.trainer.max_steps > 0:
        assert cli.trainer.max_steps == 100
        assert cli.trainer.max_steps % cli.trainer.val_check_interval == 0
    else:
        assert cli.trainer.max_epochs % cli.trainer.check_val_every_n_epoch == 0


@pytest.mark.parametrize("model", MODELS, ids=lambda path: path.stem)
@pytest.mark.parametrize("method", ["MixSD", "SFT", "OPSD"])
def test_a_model_goes_on_top(model: Path, method: str) -> None:
    corpus = ROOT / "configs/paper/kgfact_small.yaml"
    layers = ["--config", str(corpus), "--config", str(model)]
    layers += ["--config", str(ROOT / "configs/paper/opsd.yaml")] if method == "OPSD" else ["--model", method]
    cli = MixSDCLI(["fit", *layers])
    own = yaml.safe_load(model.read_text())
    assert type(cli.model).__name__ == method
    assert cli.model.model_name_or_path == own["model"]["init_args"]["model_name_or_path"]
    assert cli.model.student_settings.gradient_checkpointing is own["model"]["init_args"]["gradient_checkpointing"]
    assert cli.trainer.precision == own["trainer"]["precision"]
    assert cli.model.learning_rate == 1e-5
    assert cli.model.warmup_steps == 20


@pytest.mark.parametrize("path", CORPORA, ids=lambda path: path.stem)
def test_opsd_goes_on_top_of_every_corpus(path: Path) -> None:
    cli = MixSDCLI(["fit", "--config", str(path), "--config", str(ROOT / "configs/paper/opsd.yaml")])
    settings = cli.model.divergence_settings
    assert (settings.kind, settings.top_k) == ("reverse_kl", 64)
    assert cli.model.max_new_tokens == yaml.safe_load(path.read_text())["model"]["init_args"]["max_new_tokens"]


@pytest.mark.parametrize("method", ["SFT", "SFT checkpointed", "MixSD", "OPSD"])
def test_a_model_trains_with_all_states_in_bf16(tiny_model_path: str, method: str, tmp_path: Path) -> None:
    """What qwen3-8b.yaml asks for."""
    shared: dict[str, Any] = {"learning_rate": 1e-2, "warmup_steps": 0, "max_new_tokens": 4}
    shared["gradient_checkpointing"] = method == "SFT checkpointed"
    kinds: dict[str, tuple[type[KnowledgeModule], dict[str, Any]]] = {
        "MixSD": (MixSD, {"max_attempts": 1, "on_reject": "gold"}),
        "OPSD": (OPSD, {}),
    }
    kind, own = kinds.get(method, (SFT, {}))
    module = kind(tiny_model_path, **shared, **own)
    corpus = KGFact(num_domains=2, num_entities=3, batch_size=3, answer_format="boxed")
    options: dict[str, Any] = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = Trainer(accelerator="cpu", precision="bf16-true", max_epochs=3, default_root_dir=tmp_path, **options)
    before = {name: parameter.clone() for name, parameter in untrained(tiny_model_path).student.named_parameters()}
    trainer.fit(module, corpus)
    assert trainer.global_step == 3
    for name, parameter in module.student.named_parameters():
        assert parameter.dtype == torch.bfloat16
        assert not torch.equal(parameter, before[name].bfloat16()), name
    assert torch.isfinite(trainer.callback_metrics["train/loss"])
    assert trainer.callback_metrics["memorization/train_count"] == 3
