from pathlib import Path

from lightning.pytorch import Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from mixsd_lightning import SFT, Completions, KGFact


def test_answers_stand_beside_their_gold_in_tensorboard(tiny_model_path: str, tmp_path: Path) -> None:
    corpus = KGFact(num_domains=2, num_entities=4, eval_splits=["train"])
    logger = TensorBoardLogger(tmp_path, name="runs")
    trainer = Trainer(accelerator="cpu", logger=logger, callbacks=[Completions(num_examples=3)], enable_progress_bar=False)
    trainer.validate(SFT(tiny_model_path, max_new_tokens=8), corpus, verbose=False)
    logger.experiment.flush()
    events = EventAccumulator(logger.log_dir)
    events.Reload()
    (tag,) = [tag for tag in events.Tags()["tensors"] if tag.startswith("completions/train")]
    text = events.Tensors(tag)[0].tensor_proto.string_val[0].decode()
    rows = text.splitlines()
    assert len(rows) == 2 + 3
    for row, example in zip(rows[2:], corpus.split("train"), strict=False):
        assert row.startswith(f"| {example.question} |")
        assert row.endswith(f"| {example.answer} |")
