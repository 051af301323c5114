"""Every corpus teaches by every method, and the model can be asked all of its splits."""

import json
import math
import os
import sys
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
import torch
import yaml
from corpus_files import FOLDERS, SMALL, small_corpus, write_corpus_files
from lightning.pytorch import Callback, LightningModule, Trainer

from mixsd_lightning import OPSD, SFT, CorpusDataModule, KnowledgeModule, MixSD
from mixsd_lightning.cli import main
from mixsd_lightning.demonstrations import prompts
from mixsd_lightning.demonstrations.negatives import wrong_demonstrations
from mixsd_lightning.models import load_student
from mixsd_lightning.modules.supervised import SupervisedModule
from mixsd_lightning.target_likelihood import token_nlls

ROOT = Path(__file__).parents[2]
# Of the corpora that the method is published with.
CONFIGS_OF_UNISD = [path for path in sorted((ROOT / "configs").glob("*/unisd_star.yaml")) if "data_dir:" in path.read_text()]
QUICK: dict[str, Any] = {"max_new_tokens": 12, "warmup_steps": 0, "weight_decay": 0.0}
METHODS: dict[type[KnowledgeModule], dict[str, Any]] = {
    SFT: {},
    MixSD: {"max_attempts": 1, "on_reject": "gold"},
    OPSD: {"temperature": 0.0, "nll_every_n_steps": 0},
}


class Losses(Callback):
    """The loss of every step."""

    def __init__(self) -> None:
        self.values: list[float] = []

    def on_train_batch_end(self, trainer: Trainer, method: LightningModule, outputs: Any, batch: Any, index: int) -> None:
        self.values.append(float(trainer.callback_metrics["train/loss"]))


def few_examples(name: str, folder: Path, **options: Any) -> CorpusDataModule:
    """A small corpus of the published data, where they are on this machine; asks one question of each split."""
    published = Path(os.environ.get("MIXSD_DATA_DIR", folder))
    source = published if (published / FOLDERS.get(name, name.lower())).is_dir() else write_corpus_files(folder)
    return small_corpus(name, source, batch_size=2, max_eval_examples=1, **options)


def splits_with_examples(corpus: CorpusDataModule) -> list[str]:
    return [split for split, examples in corpus.build_splits(corpus.available_splits).items() if examples]


def quiet_trainer(folder: Path, **options: Any) -> Trainer:
    settings = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
    return Trainer(default_root_dir=folder, accelerator="cpu", num_sanity_val_steps=0, **settings, **options)


def check_training(name: str, method: KnowledgeModule, folder: Path) -> None:
    """Train two steps on a small corpus, see that something was learnt, and ask all splits."""
    corpus = few_examples(name, folder, eval_splits=["train"])
    examples, losses = corpus.split("train"), Losses()
    quiet_trainer(folder, max_steps=2, limit_val_batches=0, callbacks=[losses]).fit(method, corpus)

    assert len(losses.values) == 2
    assert all(math.isfinite(loss) and loss > 0 for loss in losses.values)
    assert method.taught_ids == {example.id for example in examples}
    base = load_student(method.model_name_or_path)
    for before, after in zip(base.parameters(), method.student.parameters(), strict=True):
        assert not torch.equal(before, after)
    if isinstance(method, SupervisedModule):
        nlls = token_nlls(method.student, method.training_items(examples), 4)
        assert len(nlls) == len(examples) >= 4
        assert fmean(nll for row in nlls for nll in row) < fmean(method.target_nlls)
    if isinstance(method, MixSD):
        written = [json.loads(line) for line in (folder / "targets/mixed.jsonl").read_text().splitlines()]
        assert [record["id"] for record in written] == [example.id for example in examples]
        assert all(record["token_ids"] for record in written)

    splits = splits_with_examples(corpus)
    validation = quiet_trainer(folder)
    validation.validate(method, few_examples(name, folder, eval_splits=splits), verbose=False)
    for split in splits:
        assert validation.callback_metrics[f"memorization/{split}"] in (0, 1)
        assert validation.callback_metrics[f"memorization/{split}_count"] == 1


@pytest.mark.parametrize("method_class", METHODS, ids=lambda method_class: method_class.__name__)
@pytest.mark.parametrize("name", SMALL)
def test_a_corpus_trains_by_every_method(
    name: str, method_class: type[KnowledgeModule], tiny_model_path: str, tmp_path: Path
) -> None:
    check_training(name, method_class(tiny_model_path, **QUICK, **METHODS[method_class]), tmp_path)


@pytest.mark.builtin_model
@pytest.mark.parametrize("name", SMALL)
def test_a_corpus_trains_the_builtin_model(name: str, tmp_path: Path) -> None:
    check_training(name, MixSD(**QUICK, **METHODS[MixSD]), tmp_path)


@pytest.mark.parametrize("name", SMALL)
def test_the_small_corpora_have_examples_in_every_split(name: str, tmp_path: Path) -> None:
    corpus = small_corpus(name, write_corpus_files(tmp_path))
    assert splits_with_examples(corpus) == list(corpus.available_splits)


@pytest.mark.builtin_model
@pytest.mark.parametrize("config", CONFIGS_OF_UNISD, ids=lambda path: path.parent.name)
def test_unisd_trains_as_its_config_says(config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = yaml.safe_load(config.read_text())["data"]["class_path"]
    published = Path(os.environ.get("MIXSD_DATA_DIR", tmp_path))
    source = published if (published / FOLDERS.get(name, name.lower())).is_dir() else write_corpus_files(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["mixsd_lightning"])
    # What the model writes on its own is tested where it is made; here one short attempt will do.
    monkeypatch.setattr(prompts, "wrong_demonstrations", partial(wrong_demonstrations, num_attempts=1, max_new_tokens=24))
    data = {"data_dir": source, "max_examples": 4, "batch_size": 2, "max_eval_examples": 1}
    trainer = {"max_steps": 2, "accelerator": "cpu", "num_sanity_val_steps": 0, "callbacks": "null"}
    flags = [f"--data.{key}={value}" for key, value in data.items()] + [
        f"--trainer.{key}={value}" for key, value in trainer.items()
    ]
    main(
        [
            "fit",
            f"--config={config}",
            *flags,
            "--model.max_new_tokens=12",
            "--model.temperature=0",
            "--model.mask_truncated=false",
            "--retention.suites=[bits_per_byte]",
            "--drift.num_sequences=2",
        ]
    )
    (line,) = [json.loads(text) for text in next(tmp_path.glob("runs/*/version_0/metrics.jsonl")).read_text().splitlines()]
    assert line["step"] == 2
    for tag in ("kl", "disagreement", "contrastive", "feature_loss", "effective_sample_size"):
        assert math.isfinite(line[f"train/{tag}"])
    assert line["train/kl"] > 0
    assert line["train/effective_sample_size"] < 1
    assert line["resources/generated_tokens"] > 0
