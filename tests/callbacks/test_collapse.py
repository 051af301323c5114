"""The alert comes once, when the mean over recent steps falls below its share of the first."""

import warnings
from types import SimpleNamespace
from typing import Any

import pytest

from mixsd_lightning.callbacks import CollapseAlert
from mixsd_lightning.errors import UserError


def run(alert: CollapseAlert, tag: str, values: list[float]) -> list[int]:
    """Steps at which it warned."""
    warned = []
    for step, value in enumerate(values):
        trainer: Any = SimpleNamespace(callback_metrics={tag: value}, global_step=step)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            alert.on_train_batch_end(trainer, None, None, None, step)  # type: ignore[arg-type]
        warned += [step] * len(caught)
    return warned


@pytest.mark.parametrize("tag", ["train/entropy", "train/completion_length"])
def test_it_warns_once_below_the_share(tag: str) -> None:
    alert = CollapseAlert(share=0.5, num_steps=2)
    assert run(alert, tag, [10, 10, 9, 6, 4, 3, 2, 1, 1]) == [5]  # (4 + 3) / 2 < 5


@pytest.mark.parametrize("values", [[10.0] * 20, [1.0, 1.0, 10.0, 10.0], [10.0, 10.0, 5.0, 5.0]])
def test_it_is_silent_otherwise(values: list[float]) -> None:
    assert run(CollapseAlert(share=0.5, num_steps=2), "train/entropy", values) == []


def test_other_metrics_and_a_share_of_zero_never_warn() -> None:
    assert run(CollapseAlert(share=0.5, num_steps=1), "train/loss", [10, 0]) == []
    assert run(CollapseAlert(share=0.0, num_steps=1), "train/entropy", [10, 0]) == []


def test_it_remembers_the_start_over_a_resume() -> None:
    first = CollapseAlert(share=0.5, num_steps=2)
    run(first, "train/entropy", [10, 10, 9])
    second = CollapseAlert(share=0.5, num_steps=2)
    second.load_state_dict(first.state_dict())
    assert run(second, "train/entropy", [3, 3]) == [1]


@pytest.mark.parametrize("option", [{"share": 1.0}, {"share": -0.1}, {"num_steps": 0}])
def test_impossible_settings_are_refused_by_flag(option: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=f"--collapse.{next(iter(option))} must"):
        CollapseAlert(**option)
