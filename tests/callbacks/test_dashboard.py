import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import make_tiny_model
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar import layout_pb2
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from mixsd_lightning import SFT, Dashboard, KGFact, Retention
from mixsd_lightning.callbacks.figures import drift_figure, pareto_figure
from mixsd_lightning.evaluation.drift import Moved, Place


def fit(model: str, folder: Path, **options: Any) -> tuple[Trainer, EventAccumulator]:
    logger = TensorBoardLogger(folder, name="runs", default_hp_metric=False)
    trainer = Trainer(
        accelerator="cpu",
        logger=logger,
        num_sanity_val_steps=-1,
        enable_checkpointing=False,
        enable_progress_bar=False,
        log_every_n_steps=1,
        callbacks=[Retention(["bits_per_byte"]), Dashboard()],
        **options,
    )
    corpus = KGFact(num_domains=2, num_entities=8, batch_size=4, eval_splits=["train"])
    method = SFT(model, max_new_tokens=2, learning_rate=0.01)
    method.hparams["_class_path"] = "as the command line adds it"
    trainer.fit(method, corpus)
    logger.experiment.flush()
    events = EventAccumulator(logger.log_dir, size_guidance={"images": 0, "histograms": 0})
    events.Reload()
    return trainer, events


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("dashboard")
    make_tiny_model(folder / "model")
    return fit(str(folder / "model"), folder, max_epochs=2)


def test_memorization_is_laid_out_beside_retention(run: Any) -> None:
    _, events = run
    (content,) = [event.tensor_proto.string_val[0] for event in events.Tensors("custom_scalars__config__")]
    layout = layout_pb2.Layout.FromString(content)
    (category,) = layout.category
    titles = [chart.title for chart in category.chart]
    assert category.title == "Learning and forgetting"
    assert titles[:2] == ["answers right", "kept of the base model's skills"]


def test_every_laid_out_chart_of_this_run_has_data(run: Any) -> None:
    _, events = run
    (content,) = [event.tensor_proto.string_val[0] for event in events.Tensors("custom_scalars__config__")]
    tags = events.Tags()["scalars"]
    for chart in layout_pb2.Layout.FromString(content).category[0].chart:
        shown = [tag for tag in tags for name in chart.multiline.tag if re.fullmatch(name, tag)]
        is_of_other_callbacks = chart.title.startswith(("Fisher", "distance"))
        assert bool(shown) != is_of_other_callbacks, chart.title
        assert not any(tag.endswith(("_loose", "_count")) for tag in shown)


def test_the_figure_grows_by_one_point_with_each_validation(run: Any) -> None:
    trainer, events = run
    assert [event.step for event in events.Images("learnt_and_kept")] == [0, 2, 4]
    (dashboard,) = [callback for callback in trainer.callbacks if isinstance(callback, Dashboard)]
    learnt = [event.value for event in events.Scalars("memorization/train")]
    kept = [event.value for event in events.Scalars("retention/kept")]
    assert [step for step, _, _ in dashboard._points] == [0, 2, 4]
    # TensorBoard's logger leaves the validation before training to the metrics file.
    assert [point[1] for point in dashboard._points[1:]] == pytest.approx(learnt)
    assert [point[2] for point in dashboard._points[1:]] == pytest.approx(kept)


def test_likelihoods_of_target_tokens_are_a_histogram(run: Any) -> None:
    _, events = run
    assert [event.step for event in events.Histograms("targets/nll_base_of_tokens")] == [0, 2, 4]


def test_settings_are_written_once_with_the_last_metrics(run: Any) -> None:
    _, events = run
    content = events.PluginTagToContent("hparams")
    started = HParamsPluginData.FromString(content["_hparams_/session_start_info"])
    values = started.session_start_info.hparams
    assert values["method"].string_value == "SFT"
    assert values["learning_rate"].number_value == 0.01
    assert values["data/batch_size"].number_value == 4
    assert "_class_path" not in values
    experiment = HParamsPluginData.FromString(content["_hparams_/experiment"]).experiment
    names = {info.name.tag for info in experiment.metric_infos}
    assert {"memorization/train", "retention/kept"} <= names
    assert names <= set(events.Tags()["scalars"])  # the page shows the last value of each


def test_points_survive_a_resume() -> None:
    first, second = Dashboard(), Dashboard()
    first._points = [(0, 0.0, 1.0), (5, 0.5, 0.9)]
    second.load_state_dict(first.state_dict())
    assert second._points == first._points


def test_drift_is_drawn_by_layer_and_kind() -> None:
    places = {Place(0, "mlp"): Moved(1, 0.1), Place(1, "mlp"): Moved(1, 10.0), Place(None, "embedding"): Moved(1, 0.0)}
    axes, bar = drift_figure(places).axes
    grid = np.ma.filled(axes.images[0].get_array(), np.nan)
    assert [label.get_text() for label in axes.get_yticklabels()] == ["embedding", "mlp"]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["0", "1", "none"]
    assert np.allclose(grid, [[np.nan, np.nan, np.nan], [-1, 1, np.nan]], equal_nan=True)
    assert "Fisher" in bar.get_ylabel()


def test_points_are_drawn_where_they_are() -> None:
    (axes,) = pareto_figure([(0, 0.0, 1.0), (70, 0.9, 0.4)]).axes
    (line,) = [line for line in axes.lines if line.get_marker() == "o"]
    assert list(line.get_xdata()) == [0.0, 0.9]
    assert list(line.get_ydata()) == [1.0, 0.4]
    assert [text.get_text() for text in axes.texts] == ["0", "70"]
    assert axes.get_ylim()[0] < 0.4
