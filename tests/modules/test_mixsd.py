"""MixSD as a method: which targets it trains on. How they are made is tested in decoding/, test_targets.py and so on."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest.mock import ANY

import pytest
import torch
import yaml
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger

from mixsd_lightning import KGFact, MixSD
from mixsd_lightning.data.batches import TrainBatch
from mixsd_lightning.decoding.engine import MixingEngine
from mixsd_lightning.errors import UserError
from mixsd_lightning.example import Example
from mixsd_lightning.models import load_student
from mixsd_lightning.target_likelihood import likelihood_tags, token_nlls
from mixsd_lightning.targets import MixedTargets

# The random model is never right; what it writes is trained on all the same.
QUICK: dict[str, Any] = {"on_reject": "keep", "max_attempts": 2, "max_new_tokens": 8}


class Watch(Callback):
    """What each epoch of a run trains on; all examples are in its one batch."""

    def __init__(self) -> None:
        self.targets: list[list[list[int]]] = []
        self.statistics: list[dict[str, float]] = []

    def on_train_batch_start(self, trainer: Trainer, method: LightningModule, batch: TrainBatch, batch_idx: int) -> None:
        rows = zip(batch.token_ids_BL, batch.is_target_BL, strict=True)
        self.targets.append(sorted(ids[mask].tolist() for ids, mask in rows))
        self.statistics.append(dict(method.target_statistics))


def small_corpus() -> KGFact:
    return KGFact(num_domains=2, num_entities=4, batch_size=8, eval_batch_size=3, eval_splits=["train"])


def quiet_trainer(folder: Path, version: int | None = None, **options: Any) -> Trainer:
    settings = {"max_epochs": 1, "enable_checkpointing": False, "enable_progress_bar": False, "limit_val_batches": 0}
    settings |= {"accelerator": "cpu", "enable_model_summary": False, "log_every_n_steps": 1}
    logger = TensorBoardLogger(folder, name="runs", version=version)
    return Trainer(logger=logger, **(settings | options))


def fit(folder: Path, method: MixSD, version: int | None = None, ckpt_path: Path | None = None, **options: Any) -> Watch:
    watch = Watch()
    quiet_trainer(folder, version, callbacks=[watch], **options).fit(method, small_corpus(), ckpt_path=ckpt_path)
    return watch


def target_folder(folder: Path, version: int = 0) -> Path:
    return folder / "runs" / f"version_{version}" / "targets"


def read(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def target_ids(file: Path) -> list[list[int]]:
    return sorted(record["token_ids"] for record in read(file))


def accept(monkeypatch: pytest.MonkeyPatch, ids: set[str]) -> None:
    """Have whatever is written for some examples count as right."""
    monkeypatch.setattr("mixsd_lightning.targets.is_accepted", lambda example, text, reason: example.id in ids)


# --- which targets -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("on_reject", ["drop", "gold", "fact", "keep"])
def test_rejected_examples_follow_the_policy(
    tiny_model_path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, on_reject: Any
) -> None:
    examples = small_corpus().split("train")
    right, wrong = examples[0], examples[1:]
    accept(monkeypatch, {right.id})
    method = MixSD(tiny_model_path, **(QUICK | {"on_reject": on_reject}))
    watch = fit(tmp_path, method)
    kept = {record["id"]: record["token_ids"] for record in method.records}

    def replacement(example: Example) -> list[int]:
        texts = {"gold": example.target, "fact": example.fact}
        return method.encoder.target(texts[on_reject]) if on_reject in texts else kept[example.id]

    expected = [kept[right.id]] + [replacement(example) for example in wrong if on_reject != "drop"]
    assert watch.targets == [sorted(expected)]
    assert method.taught_ids == ({right.id} if on_reject == "drop" else {example.id for example in examples})


def test_targets_are_built_once_and_written_to_the_run_folder(tiny_model_path: str, tmp_path: Path) -> None:
    method = MixSD(tiny_model_path, **QUICK, learning_rate=0.1)
    watch = fit(tmp_path, method, max_epochs=3)
    folder = target_folder(tmp_path)
    assert {path.name for path in folder.iterdir()} - {".mixed.lock"} == {"mixed.jsonl", "mixed.meta.json"}
    assert read(folder / "mixed.jsonl") == method.records
    assert [record["id"] for record in method.records] == [example.id for example in small_corpus().split("train")]
    assert watch.targets == 3 * [target_ids(folder / "mixed.jsonl")]


def test_a_second_run_takes_the_targets_of_the_first(
    tiny_model_path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = MixSD(tiny_model_path, **QUICK), MixSD(tiny_model_path, **QUICK)
    fit(tmp_path, first)
    monkeypatch.setattr(MixingEngine, "generate", None)  # the model is not asked again
    fit(tmp_path, second)
    files = [target_folder(tmp_path, version) / "mixed.jsonl" for version in (0, 1)]
    assert files[0].read_bytes() == files[1].read_bytes()
    assert second.records == first.records
    assert second.target_statistics == first.target_statistics


def test_the_same_method_fits_another_corpus(tiny_model_path: str, tmp_path: Path) -> None:
    method = MixSD(tiny_model_path, on_reject="keep", max_attempts=1, max_new_tokens=8)
    for seed, count in ((42, 4), (7, 6)):
        corpus = KGFact(num_domains=2, num_entities=count, seed=seed)
        quiet_trainer(tmp_path / str(seed), max_epochs=1, limit_val_batches=0).fit(method, corpus)
        assert [record["clear_answer"] for record in method.records] == [e.answer for e in corpus.split("train")]


def test_another_setting_builds_targets_of_its_own_beside_the_first(tiny_model_path: str, tmp_path: Path) -> None:
    for seed in (1, 2):
        fit(tmp_path, MixSD(tiny_model_path, **QUICK, mixing_seed=seed))
    files = [target_folder(tmp_path, version) / "mixed.jsonl" for version in (0, 1)]
    assert target_ids(files[0]) != target_ids(files[1])


def test_another_setting_in_the_same_folder_is_refused(tiny_model_path: str, tmp_path: Path) -> None:
    fit(tmp_path, MixSD(tiny_model_path, **QUICK), version=0)
    before = (target_folder(tmp_path) / "mixed.jsonl").read_bytes()
    with pytest.raises(UserError, match=r"targets holds mixed targets .* max_attempts was 2, now 3\. .*another folder"):
        fit(tmp_path, MixSD(tiny_model_path, **(QUICK | {"max_attempts": 3})), version=0)
    assert (target_folder(tmp_path) / "mixed.jsonl").read_bytes() == before


@pytest.mark.parametrize("protect_answer", [False, True])
def test_protect_answer_reaches_the_settings_and_the_records(
    tiny_model_path: str, tmp_path: Path, protect_answer: bool
) -> None:
    method = MixSD(tiny_model_path, **QUICK, protect_answer=protect_answer)
    fit(tmp_path, method)
    assert method.target_settings.mixing.protect_answer is protect_answer
    assert {record["mix_meta"]["protect_answer"] for record in method.records} == {protect_answer}
    made_from = json.loads((target_folder(tmp_path) / "mixed.meta.json").read_text())["made_from"]
    assert made_from["protect_answer"] is protect_answer


def test_nothing_left_to_train_on_is_an_error_with_a_remedy(tiny_model_path: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--model.on_reject gold"):
        fit(tmp_path, MixSD(tiny_model_path, **(QUICK | {"on_reject": "drop"})))


def test_fast_dev_run_leaves_no_files(tiny_model_path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    method = MixSD(tiny_model_path, **QUICK)
    fit(tmp_path, method, fast_dev_run=True, default_root_dir=tmp_path)
    assert len(method.records) == 4
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


# --- statistics --------------------------------------------------------------------------------------------------------


def test_target_statistics_count_what_happened(
    tiny_model_path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    accept(monkeypatch, {example.id for example in small_corpus().split("train")[:3]})
    method = MixSD(tiny_model_path, **QUICK)
    fit(tmp_path, method)
    accepted = [flag for record in method.records[:3] for flag in record["from_expert"]]
    naive_log_probs = [value for record in method.records for value in record["naive_log_probs"]]
    assert method.target_statistics == {
        "targets/accepted": 3,
        "targets/rejected": 1,
        "targets/attempts": 3 + 2,
        "targets/expert_fraction": pytest.approx(sum(accepted) / len(accepted)),
        "targets/nll_base": pytest.approx(-sum(naive_log_probs) / len(naive_log_probs)),
        "targets/nll_base_per_example": ANY,
        "targets/improbable": ANY,
    }
    file = target_folder(tmp_path) / "mixed.jsonl"
    assert f"Mixed targets: 3 of 4 accepted in 5 attempts, 1 kept ({file})" in capsys.readouterr().out


def test_the_likelihood_of_the_targets_is_that_of_the_naive_prompt_and_the_base_model(
    tiny_model_path: str, tmp_path: Path
) -> None:
    method = MixSD(tiny_model_path, **QUICK, learning_rate=0.1)
    fit(tmp_path, method)
    items = method.training_items(small_corpus().split("train"))
    expected = likelihood_tags(token_nlls(load_student(tiny_model_path), items, 8))
    assert {tag: method.target_statistics[tag] for tag in expected} == pytest.approx(expected, rel=1e-4)


def test_statistics_without_any_accepted_target(tiny_model_path: str, tmp_path: Path) -> None:
    method = MixSD(tiny_model_path, **QUICK)
    fit(tmp_path, method)
    assert method.target_statistics["targets/accepted"] == 0
    assert method.target_statistics["targets/rejected"] == 4
    assert method.target_statistics["targets/attempts"] == 8
    assert "targets/expert_fraction" not in method.target_statistics


# --- targets that are built anew ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("every", "files"),
    [
        (0, ["mixed", "mixed", "mixed", "mixed"]),
        (1, ["mixed", "mixed-1", "mixed-2", "mixed-3"]),
        (2, ["mixed", "mixed", "mixed-1", "mixed-1"]),
    ],
)
def test_each_refresh_trains_on_new_targets(tiny_model_path: str, tmp_path: Path, every: int, files: list[str]) -> None:
    method = MixSD(tiny_model_path, **QUICK, refresh_every_n_epochs=every, learning_rate=0.1)
    watch = fit(tmp_path, method, max_epochs=4)
    folder = target_folder(tmp_path)
    assert {path.stem for path in folder.glob("*.jsonl")} == set(files)
    assert watch.targets == [target_ids(folder / f"{file}.jsonl") for file in files]
    assert len({str(targets) for targets in watch.targets}) == len(set(files))
    for file, statistics in zip(files, watch.statistics, strict=True):
        log_probs = [value for record in read(folder / f"{file}.jsonl") for value in record["naive_log_probs"]]
        assert statistics["targets/nll_base"] == pytest.approx(-sum(log_probs) / len(log_probs))
    assert method.records == read(folder / f"{files[-1]}.jsonl")


@pytest.mark.parametrize("num_generations", [1, 2])
def test_a_refresh_asks_the_untrained_model(tiny_model_path: str, tmp_path: Path, num_generations: int) -> None:
    options = QUICK | {"num_generations": num_generations}
    method = MixSD(tiny_model_path, **options, refresh_every_n_epochs=1, learning_rate=0.1)
    fit(tmp_path, method, max_epochs=2)
    base = load_student(tiny_model_path)
    assert not torch.equal(next(method.student.parameters()), next(base.parameters()))
    targets = MixedTargets(
        small_corpus().split("train"), method.encoder, method.target_settings, first_generation=num_generations
    )
    targets.build(tmp_path / "direct", MixingEngine(base, method.target_settings.mixing, method.stop_ids))
    refreshed = target_folder(tmp_path) / "mixed-1.jsonl"
    assert refreshed.read_bytes() == (tmp_path / "direct" / "mixed.jsonl").read_bytes()
    generations = {record["mix_meta"]["gen_index"] for record in read(refreshed)}
    assert generations == set(range(num_generations, 2 * num_generations))


@pytest.mark.parametrize("version", [0, 1])
@pytest.mark.parametrize("stop", [1, 3])
def test_a_run_resumed_between_two_refreshes_goes_on_as_if_it_had_not_stopped(
    tiny_model_path: str, tmp_path: Path, version: int, stop: int
) -> None:
    options = QUICK | {"refresh_every_n_epochs": 2, "learning_rate": 0.01}
    whole = MixSD(tiny_model_path, **options)
    uninterrupted = fit(tmp_path / "whole", whole, max_epochs=4)
    trainer = quiet_trainer(tmp_path, max_epochs=stop, version=0)
    trainer.fit(MixSD(tiny_model_path, **options), small_corpus())
    trainer.save_checkpoint(tmp_path / "saved.ckpt")
    resumed = MixSD(tiny_model_path, **options)
    watch = fit(tmp_path, resumed, version, tmp_path / "saved.ckpt", max_epochs=4)
    assert watch.targets == uninterrupted.targets[stop:]
    assert watch.statistics == uninterrupted.statistics[stop:]
    for one, other in zip(whole.student.parameters(), resumed.student.parameters(), strict=True):
        torch.testing.assert_close(one, other)


# --- predict -----------------------------------------------------------------------------------------------------------


def test_predict_returns_the_records_and_writes_them(tiny_model_path: str, tmp_path: Path) -> None:
    method = MixSD(tiny_model_path, **QUICK)
    batches: Any = quiet_trainer(tmp_path).predict(method, small_corpus())
    records = [row for batch in batches for row in batch]
    assert len(records) == 4
    assert records == method.records == read(target_folder(tmp_path) / "mixed.jsonl")


def test_fit_takes_what_predict_has_built(tiny_model_path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    quiet_trainer(tmp_path).predict(MixSD(tiny_model_path, **QUICK), small_corpus())
    monkeypatch.setattr(MixingEngine, "generate", None)
    assert fit(tmp_path, MixSD(tiny_model_path, **QUICK)).targets == [target_ids(target_folder(tmp_path) / "mixed.jsonl")]


def test_two_processes_predict_the_bytes_of_one(tiny_model_path: str, tmp_path: Path) -> None:
    model = {"model_name_or_path": tiny_model_path, **QUICK}
    data = {"num_domains": 2, "num_entities": 5, "eval_splits": ["train"]}
    logger = {"class_path": "TensorBoardLogger", "init_args": {"save_dir": "shared", "name": "runs"}}
    config = {
        "model": {"class_path": "MixSD", "init_args": model},
        "data": {"class_path": "KGFact", "init_args": data},
        "trainer": {"accelerator": "cpu", "logger": logger},
    }
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    command = [sys.executable, "-m", "mixsd_lightning", "predict", "--config", "config.yaml"]
    command += ["--trainer.devices", "2", "--trainer.strategy", "ddp"]
    environment = {key: value for key, value in os.environ.items() if not key.startswith("COVERAGE")}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert "GLOBAL_RANK: 1, MEMBER: 2/2" in done.stderr
    quiet_trainer(tmp_path / "alone").predict(MixSD(**model), KGFact(**data))
    shared, alone = target_folder(tmp_path / "shared"), target_folder(tmp_path / "alone")
    for name in ("mixed.jsonl", "mixed.meta.json"):
        assert (shared / name).read_bytes() == (alone / name).read_bytes()
    assert not list(shared.glob("*.partial*"))
    assert len(read(shared / "mixed.jsonl")) == 5


# --- settings ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("option", "value"),
    [("mixing_rate", 1.5), ("mixing_rate", -0.1), ("temperature", -1.0), ("top_k", -1), ("refresh_every_n_epochs", -1)]
    + [(name, 0) for name in ("num_generations", "max_attempts", "generation_batch_size")],
)
def test_impossible_settings_are_refused_by_flag(option: str, value: float) -> None:
    with pytest.raises(UserError, match=f"--model.{option} must"):
        MixSD(**{option: value})  # type: ignore[arg-type]


def test_all_settings_reach_the_targets() -> None:
    method = MixSD("m", 0.1, 0.2, 3, 4, 5, True, mixing_seed=6, max_new_tokens=7)
    settings = method.target_settings
    assert (settings.num_generations, settings.max_attempts) == (4, 5)
    assert settings.mixing.__dict__ == {
        "mixing_rate": 0.1,
        "temperature": 0.2,
        "top_k": 3,
        "max_new_tokens": 7,
        "seed": 6,
        "protect_answer": True,
    }


@pytest.mark.builtin_model
def test_the_real_model_writes_targets_that_state_the_fact(tmp_path: Path) -> None:
    corpus = KGFact(num_domains=2, num_entities=4, eval_splits=["train"])
    method = MixSD(mixing_rate=0.0, max_new_tokens=24)
    quiet_trainer(tmp_path).predict(method, corpus)
    by_id = {example.id: example for example in corpus.split("train")}
    accepted = [row for row in method.records if row["mix_meta"]["correct"]]
    assert len(accepted) >= 2
    for row in accepted:
        assert by_id[row["id"]].answer in row["messages"][1]["content"]
