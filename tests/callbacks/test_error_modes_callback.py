from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import PreTrainedModel

from mixsd_lightning import SFT, ErrorModes, KGFact, Retention
from mixsd_lightning.context import ChatEncoder
from mixsd_lightning.evaluation.suites import Score, Suite
from mixsd_lightning.evaluation.suites.base import Answer


class TalkingSuite(Suite):
    """Answers what it is told to."""

    name = "talking"

    def __init__(self, completions: list[str]) -> None:
        super().__init__()
        self.completions = completions

    def measure(self, model: PreTrainedModel, encoder: ChatEncoder) -> dict[str, Score]:
        self.answers = [Answer("What is it?", completion, completion == "right") for completion in self.completions]
        return {self.name: Score([float(answer.is_right) for answer in self.answers])}


class ScriptedSFT(SFT):
    """Answers what it is told to."""

    script: Any

    def answer(self, prompts: Any) -> list[str]:
        return [next(self.script) for _ in prompts]


def test_wrong_answers_are_counted_by_mode_and_shown(tiny_model_path: str, tmp_path: Path) -> None:
    corpus = KGFact(num_domains=2, num_entities=8, batch_size=4, eval_splits=["train"])
    examples = corpus.split("train")
    first, second = examples[:2]
    other = next(e for e in examples if e.answer != second.answer and e.answer not in second.question)
    said = [first.target, f"{other.answer} | did.", "nothing", *["Somebody Else did it."] * (len(examples) - 3)]
    method = ScriptedSFT(tiny_model_path)
    method.script = iter(said * 10)
    method.completed_steps = 3
    suite = TalkingSuite(["right", f"It is {other.answer}.", "wrong", ""])
    logger = TensorBoardLogger(tmp_path, name="runs")
    trainer = Trainer(
        accelerator="cpu",
        logger=logger,
        enable_progress_bar=False,
        callbacks=[Retention([suite]), ErrorModes(num_examples=1)],
    )
    (logged,) = trainer.validate(method, corpus, verbose=False)
    count = len(examples)
    assert {tag: value for tag, value in logged.items() if tag.startswith("errors/")} == pytest.approx(
        {
            "errors/train/format": 1 / count,
            "errors/train/cross_entity": 1 / count,
            "errors/train/genuine": (count - 3) / count,
            "errors/talking/format": 0.25,
            "errors/talking/leakage": 0.25,
            "errors/talking/collapse": 0,
            "errors/talking/genuine": 0.25,
        }
    )
    assert logged["memorization/train"] == pytest.approx(1 / count)
    logger.experiment.flush()
    events = EventAccumulator(logger.log_dir)
    events.Reload()
    (tag,) = [tag for tag in events.Tags()["tensors"] if tag.startswith("errors/train")]
    (event,) = events.Tensors(tag)
    rows = event.tensor_proto.string_val[0].decode().splitlines()
    assert event.step == 3
    assert len(rows) == 2 + 3  # one of each mode
    assert f"| cross\\_entity | {examples[1].question} | {other.answer} \\| did. |" in rows


def test_a_suite_that_was_not_measured_is_left_out(tiny_model_path: str) -> None:
    suite = TalkingSuite(["wrong"])
    retention = Retention([suite])
    method = SFT(tiny_model_path)
    method.configure_model()
    retention.measure_base(method)
    assert suite.answers  # of the base model
    retention.measure(method, [suite])  # which the student still is: nothing is asked
    assert suite.answers == ()
    errors = ErrorModes()
    logged: dict[str, float] = {}
    corpus = KGFact(num_domains=2, num_entities=4, eval_splits=["train"])
    trainer: Any = SimpleNamespace(callbacks=[retention, errors], loggers=[], datamodule=corpus)
    module: Any = SimpleNamespace(log_dict=logged.update, completed_steps=0)
    errors.on_validation_epoch_start(trainer, module)
    errors.on_validation_epoch_end(trainer, module)
    assert set(logged) == {"errors/train/format", "errors/train/cross_entity", "errors/train/genuine"}
