"""MixSD as a method: which targets it trains on. How targets are made is tested in decoding/ and test_targets.py."""

import json
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import TensorBoardLogger

from mixsd_lightning import KGFact, MixSD
from mixsd_lightning.errors import UserError
from mixsd_lightning.example import Example


def fit(folder: Path, method: MixSD) -> tuple[MixSD, KGFact]:
    corpus = KGFact(num_domains=2, num_entities=4, eval_splits=["train"])
    Trainer(
        accelerator="cpu",
        max_steps=1,
        logger=TensorBoardLogger(folder, name="runs"),
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
    ).fit(method, corpus)
    return method, corpus


def record(example: Example, correct: bool) -> dict[str, Any]:
    return {"id": example.id, "token_ids": [1, 2, 3], "mix_meta": {"correct": correct}}


@pytest.mark.parametrize("on_reject", ["drop", "gold", "fact", "keep"])
def test_rejected_examples_follow_the_policy(tiny_model_path: str, on_reject: Any) -> None:
    method = MixSD(tiny_model_path, on_reject=on_reject)
    right, wrong = KGFact(answer_format="boxed", num_domains=2).split("train")[:2]
    method.records = [record(right, True), record(wrong, False)]
    items = method.training_items([right, wrong])
    expected = {
        "drop": [],
        "gold": [method.encoder.target(wrong.target)],
        "fact": [method.encoder.target(wrong.fact)],
        "keep": [[1, 2, 3]],
    }
    assert [item.target_ids for item in items] == [[1, 2, 3], *expected[on_reject]]


def test_targets_are_in_the_run_folder_and_a_second_fit_reuses_them(tiny_model_path: str, tmp_path: Path) -> None:
    settings = {"on_reject": "gold", "max_attempts": 2, "max_new_tokens": 8}
    first, _ = fit(tmp_path, MixSD(tiny_model_path, **settings))
    second = MixSD(tiny_model_path, **settings)
    # Reuse means that the model is not asked again: a fingerprint of other weights would show as another file.
    second, _ = fit(tmp_path, second)
    files = [next((tmp_path / "runs" / f"version_{number}" / "targets").glob("*.jsonl")) for number in (0, 1)]
    assert files[0].name == files[1].name
    assert files[0].read_bytes() == files[1].read_bytes()
    assert len(files[0].read_text().splitlines()) == 4
    assert second.records == first.records
    assert second.target_statistics["targets/attempts"] == 8


def test_target_statistics_count_what_happened(tiny_model_path: str, tmp_path: Path) -> None:
    method, _ = fit(tmp_path, MixSD(tiny_model_path, on_reject="keep", max_attempts=3, max_new_tokens=8))
    assert method.target_statistics["targets/accepted"] == 0
    assert method.target_statistics["targets/rejected"] == 4
    assert method.target_statistics["targets/attempts"] == 12
    assert method.target_statistics["targets/nll_base"] > 0


def test_nothing_left_to_train_on_is_an_error_with_a_remedy(tiny_model_path: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--model.on_reject gold"):
        fit(tmp_path, MixSD(tiny_model_path, on_reject="drop", max_attempts=1, max_new_tokens=8))


def test_predict_returns_the_records_and_writes_them(tiny_model_path: str, tmp_path: Path) -> None:
    method = MixSD(tiny_model_path, max_attempts=1, max_new_tokens=8)
    trainer = Trainer(accelerator="cpu", logger=TensorBoardLogger(tmp_path, name="runs"), enable_progress_bar=False)
    batches: Any = trainer.predict(method, KGFact(num_domains=2, num_entities=4, eval_batch_size=3))
    (written,) = (tmp_path / "runs" / "version_0" / "targets").glob("*.jsonl")
    assert [row for batch in batches for row in batch] == [json.loads(line) for line in written.read_text().splitlines()]


@pytest.mark.parametrize(
    ("option", "value"),
    [("mixing_rate", 1.5), ("mixing_rate", -0.1), ("temperature", -1.0), ("top_k", -1)]
    + [(name, 0) for name in ("num_generations", "max_attempts", "generation_batch_size")],
)
def test_impossible_settings_are_refused_by_flag(option: str, value: float) -> None:
    with pytest.raises(UserError, match=f"--model.{option} must"):
        MixSD(**{option: value})  # type: ignore[arg-type]


@pytest.mark.builtin_model
def test_the_real_model_writes_targets_that_state_the_fact(tmp_path: Path) -> None:
    corpus = KGFact(num_domains=2, num_entities=4, eval_splits=["train"])
    method = MixSD(mixing_rate=0.0, max_new_tokens=24)
    logger = TensorBoardLogger(tmp_path, name="runs")
    Trainer(accelerator="cpu", logger=logger, enable_progress_bar=False).predict(method, corpus)
    by_id = {example.id: example for example in corpus.split("train")}
    accepted = [row for row in method.records if row["mix_meta"]["correct"]]
    assert len(accepted) >= 2
    for row in accepted:
        assert by_id[row["id"]].answer in row["messages"][1]["content"]
