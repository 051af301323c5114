from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from mixsd_lightning import SFT, FisherDrift, KGFact
from mixsd_lightning.callbacks import fisher_drift
from mixsd_lightning.callbacks.fisher_drift import drift_tags
from mixsd_lightning.errors import UserError
from mixsd_lightning.evaluation.fisher import diagonal_fisher, fisher_sequences, visit_gradients
from mixsd_lightning.models import effective_parameters, load_student


def make_method(model: str, **options: Any) -> SFT:
    method = SFT(model, **options)
    method.configure_model()
    return method


def move(model: torch.nn.Module, scale: float = 0.01) -> None:
    """Noise on all trained parameters."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape) * scale)


def closed_form(method: SFT, base: Any, count: int) -> dict[str, float]:
    """Drift, by whole tensors in double precision, and its quadratic form by one gradient at a time."""
    sequences = fisher_sequences(base, method.encoder, "held_out", "data", count)
    fisher = diagonal_fisher(base, sequences)
    origin = dict(base.named_parameters())
    deltas = {n: p.detach().double() - origin[n].detach().double() for n, p in effective_parameters(method.student)}
    dots = []
    for sequence in sequences:
        parts: list[float] = []
        visit_gradients(base, [sequence], lambda name, g, to=parts: to.append(float((g.double() * deltas[name]).sum())))  # type: ignore[misc]
        dots.append(sum(parts))
    squared = sum(float((delta**2).sum()) for delta in deltas.values())
    weighted = sum(float((fisher[name].double() * delta**2).sum()) for name, delta in deltas.items())
    return {
        "drift/l2": squared**0.5,
        "drift/fisher": weighted,
        "drift/sensitivity": weighted / squared,
        "drift/quadratic": sum(dot**2 for dot in dots) / count,
    }


@pytest.mark.parametrize("device", ["cpu", "model"])
@pytest.mark.parametrize("lora_rank", [0, 2])
def test_drift_equals_the_closed_form(tiny_model_path: str, device: str, lora_rank: int) -> None:
    if lora_rank:
        pytest.importorskip("peft")
    method = make_method(tiny_model_path, lora_rank=lora_rank)
    drift = FisherDrift(num_sequences=2, device=device)
    drift.prepare(method)
    assert set(drift_tags(drift.moves(method.student)).values()) == {0}
    method.completed_steps = 1
    assert drift.measure_quadratic(method) == 0
    move(method.student, 0.1 if lora_rank else 0.01)
    expected = closed_form(method, load_student(tiny_model_path), 2)
    tags = drift_tags(drift.moves(method.student))
    assert expected["drift/fisher"] > 0
    assert {tag: tags[tag] for tag in ("drift/l2", "drift/fisher", "drift/sensitivity")} == pytest.approx(
        {tag: value for tag, value in expected.items() if tag != "drift/quadratic"}, rel=1e-4
    )
    assert drift.measure_quadratic(method) == pytest.approx(expected["drift/quadratic"], rel=1e-4)
    kinds = [value for tag, value in tags.items() if tag.startswith("drift/fisher/")]
    assert sum(kinds) == pytest.approx(tags["drift/fisher"])
    if lora_rank:
        assert tags["drift/fisher/embedding"] == 0 < tags["drift/fisher/mlp"]


def test_the_fisher_information_is_computed_once_for_each_setting(
    tiny_model_path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    computed: list[int] = []

    def counted(base: Any, sequences: Any, **options: Any) -> Any:
        computed.append(len(sequences))
        return diagonal_fisher(base, sequences, **options)

    monkeypatch.setattr(fisher_drift, "diagonal_fisher", counted)
    for options in ({}, {}, {"labels": "sampled"}, {"sequences": "answers"}, {"num_sequences": 3}):
        drift = FisherDrift(**({"num_sequences": 2} | options))
        drift.prepare(make_method(tiny_model_path))
        move(student := make_method(tiny_model_path).student)
        assert drift_tags(drift.moves(student))["drift/fisher"] > 0
    assert computed == [2, 2, 2, 3]


@pytest.mark.parametrize(
    "options",
    [{"num_sequences": 0}, {"num_sequences": 25}, {"sequences": "prose"}, {"labels": "both"}, {"device": "cuda:7"}],
)
def test_settings_are_checked(options: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=f"--drift.{next(iter(options))}"):
        FisherDrift(**options)


def test_a_fit_logs_numbers_and_a_heat_map(tiny_model_path: str, tmp_path: Path) -> None:
    logger = TensorBoardLogger(tmp_path, name="runs")
    trainer = Trainer(
        accelerator="cpu",
        logger=logger,
        max_steps=2,
        num_sanity_val_steps=-1,
        enable_checkpointing=False,
        enable_progress_bar=False,
        callbacks=[FisherDrift(num_sequences=2, quadratic=True)],
    )
    corpus = KGFact(num_domains=2, num_entities=8, batch_size=4, eval_splits=["train"])
    trainer.fit(SFT(tiny_model_path, max_new_tokens=2), corpus)
    logged = {tag: float(value) for tag, value in trainer.callback_metrics.items() if tag.startswith("drift/")}
    kinds = {f"drift/fisher/{kind}" for kind in ("attention", "mlp", "embedding", "norm")}
    assert logged.keys() == {"drift/l2", "drift/fisher", "drift/sensitivity", "drift/quadratic"} | kinds
    assert min(logged.values()) > 0
    events = EventAccumulator(logger.log_dir)
    events.Reload()
    assert [event.step for event in events.Images("drift/fisher_by_layer")] == [2]
    assert [event.step for event in events.Histograms("drift/fisher_of_layers")] == [2]
