"""Checkpoints: when they are written, and that a fit which goes on from one ends where an undisturbed one does."""

import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer

from mixsd_lightning import OPSD, SFT, Checkpoints, KGFact, KnowledgeModule, MetricsFile
from mixsd_lightning.checkpoint_io import LAST, PREVIOUS
from mixsd_lightning.errors import UserError

QUICK: dict[str, Any] = {"max_new_tokens": 4, "learning_rate": 1e-2}


class StoppedError(Exception):
    """The process is gone."""


class StopAt(Callback):
    """Ends a fit before a training batch, the first of all being 1, or does something else there."""

    def __init__(self, batch: int, action: Any = None) -> None:
        self._batch, self._action, self._seen = batch, action, 0

    def on_train_batch_start(self, *args: Any) -> None:
        self._seen += 1
        if self._seen == self._batch:
            if self._action is None:
                raise StoppedError
            self._action()


class Batches(Callback):
    """Remembers what was trained on, and draws a random number at each step, as dropout does."""

    def __init__(self) -> None:
        self.seen: list[list[str]] = []
        self.drawn: list[float] = []

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        tokens = (
            batch.token_ids_BL.flatten().tolist() if hasattr(batch, "token_ids_BL") else [i.example.id for i in batch.items]
        )
        self.seen.append(tokens)
        self.drawn.append(float(torch.rand(())))


def fit(folder: Path, method: KnowledgeModule, *callbacks: Callback, ckpt: str | None = None, **options: Any) -> Batches:
    batches = Batches()
    settings = {"max_epochs": 2, "num_sanity_val_steps": 0, "val_check_interval": 2} | options
    trainer = Trainer(
        default_root_dir=folder,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[batches, *callbacks, MetricsFile()],
        **settings,
    )
    torch.manual_seed(0)
    data = KGFact(num_domains=2, num_entities=12, batch_size=2, eval_splits=["train"], max_eval_examples=1)
    trainer.fit(method, data, ckpt_path=None if ckpt is None else str(folder / "checkpoints" / ckpt), weights_only=True)
    return batches


def saved(folder: Path, name: str = LAST) -> dict[str, Any]:
    found: dict[str, Any] = torch.load(folder / "checkpoints" / name, weights_only=True)
    return found


def assert_same(one: Any, other: Any) -> None:
    torch.testing.assert_close(one, other, rtol=0, atol=0)


# Where validation is due and where not, at the end of an epoch and behind it.
@pytest.mark.parametrize(
    ("stop", "accumulate", "options"),
    [
        (3, 1, {}),
        (4, 1, {}),
        (7, 1, {}),
        (8, 1, {}),
        (4, 2, {}),
        (8, 2, {}),
        (7, 1, {"check_val_every_n_epoch": None, "val_check_interval": 4}),  # counted over epochs
        (7, 1, {"val_check_interval": 5}),  # before the last of an epoch
        (7, 1, {"max_epochs": None, "max_steps": 9}),
    ],
)
def test_a_fit_that_goes_on_is_the_fit_that_was_not_stopped(
    tiny_model_path: str, tmp_path: Path, stop: int, accumulate: int, options: dict[str, Any]
) -> None:
    options = {"accumulate_grad_batches": accumulate, **options}
    whole = fit(tmp_path / "whole", SFT(tiny_model_path, **QUICK), Checkpoints(), **options)
    assert len(whole.seen) == options.get("max_steps", 12)
    folder = tmp_path / "stopped"
    with pytest.raises(StoppedError):
        fit(folder, SFT(tiny_model_path, **QUICK), StopAt(stop), Checkpoints(every_n_steps=1), **options)
    step = saved(folder)["global_step"]
    assert step == (stop - 2) // accumulate
    rest = fit(folder, SFT(tiny_model_path, **QUICK), Checkpoints(), ckpt=LAST, **options)
    assert rest.seen == whole.seen[step * accumulate :]
    assert rest.drawn == whole.drawn[step * accumulate :]
    for part in ("state_dict", "optimizer_states", "lr_schedulers"):
        assert_same(saved(folder)[part], saved(tmp_path / "whole")[part])
    assert (folder / "metrics.jsonl").read_bytes() == (tmp_path / "whole/metrics.jsonl").read_bytes()


def test_no_gradient_is_lost_that_has_been_accumulated(tiny_model_path: str, tmp_path: Path) -> None:
    options = {"accumulate_grad_batches": 2, "val_check_interval": 3, "max_epochs": 1}
    fit(tmp_path / "whole", SFT(tiny_model_path, **QUICK), Checkpoints(), **options)
    folder = tmp_path / "stopped"
    with pytest.raises(StoppedError):
        fit(folder, SFT(tiny_model_path, **QUICK), StopAt(6), Checkpoints(), **options)
    assert saved(folder)["global_step"] == 2  # due after three batches, which is in the middle of a step
    fit(folder, SFT(tiny_model_path, **QUICK), Checkpoints(), ckpt=LAST, **options)
    assert_same(saved(folder)["state_dict"], saved(tmp_path / "whole")["state_dict"])


def test_rollouts_teacher_and_what_is_logged_rarely_go_on(tiny_model_path: str, tmp_path: Path) -> None:
    options: dict[str, Any] = {"teacher": "ema", "updates_per_rollout": 2, "nll_every_n_steps": 0, **QUICK}

    class Rarely(OPSD):
        """Logs a tag at its second step, that later validations still have."""

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            if self.trainer.global_step == 1:
                self.log("train/rare", 7.0)
            return super().training_step(batch, batch_idx)

    fit(tmp_path / "whole", Rarely(tiny_model_path, **options), Checkpoints(), max_epochs=1, val_check_interval=8)
    folder = tmp_path / "stopped"
    with pytest.raises(StoppedError):  # between the two updates on the same rollouts
        fit(folder, Rarely(tiny_model_path, **options), StopAt(5), Checkpoints(every_n_steps=3), val_check_interval=8)
    assert saved(folder)["global_step"] == 3
    assert saved(folder)["rollouts"]
    fit(folder, Rarely(tiny_model_path, **options), Checkpoints(), ckpt=LAST, max_epochs=1, val_check_interval=8)
    for part in ("state_dict", "teacher"):
        assert_same(saved(folder)[part], saved(tmp_path / "whole")[part])
    assert "train/rare" in (folder / "metrics.jsonl").read_text()
    assert (folder / "metrics.jsonl").read_bytes() == (tmp_path / "whole/metrics.jsonl").read_bytes()


def test_the_last_two_are_kept_and_what_a_killed_process_left_is_not(tiny_model_path: str, tmp_path: Path) -> None:
    left = tmp_path / "checkpoints" / ".last.ckpt.whole.123"
    left.parent.mkdir()
    left.write_bytes(b"half")
    fit(tmp_path, SFT(tiny_model_path, **QUICK), Checkpoints(), max_epochs=1)
    assert {path.name for path in left.parent.iterdir()} == {LAST, PREVIOUS}
    # After the validations at 2 and 4; the one at 6 is followed by the end.
    assert (saved(tmp_path)["global_step"], saved(tmp_path, PREVIOUS)["global_step"]) == (6, 4)


@pytest.mark.parametrize(("minutes", "step"), [(0.0, 0), (1e-9, 2)])
def test_a_checkpoint_is_due_by_the_clock_that_cannot_be_set(
    tiny_model_path: str, tmp_path: Path, minutes: float, step: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(time, "time", lambda: 0.0)  # somebody has set the other one back
    with pytest.raises(StoppedError):
        checkpoints = Checkpoints(every_n_minutes=minutes)
        fit(tmp_path, SFT(tiny_model_path, **QUICK), StopAt(4), checkpoints, val_check_interval=1.0)
    assert (tmp_path / "checkpoints" / LAST).exists() == bool(step)
    assert not step or saved(tmp_path)["global_step"] == step


def test_a_finished_run_may_leave_the_optimizer_out(tiny_model_path: str, tmp_path: Path) -> None:
    fit(tmp_path, SFT(tiny_model_path, **QUICK), Checkpoints(final_weights_only=True), max_epochs=1)
    assert "optimizer_states" not in saved(tmp_path)
    assert "optimizer_states" in saved(tmp_path, PREVIOUS)


@pytest.mark.skipif(os.name == "nt", reason="no such signal")
def test_sigterm_saves_and_exits(tiny_model_path: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = signal.getsignal(signal.SIGTERM)
    ask = StopAt(4, lambda: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(SystemExit) as ended:
        fit(tmp_path, SFT(tiny_model_path, **QUICK), ask, Checkpoints(), val_check_interval=1.0)
    assert ended.value.code == 143
    assert saved(tmp_path)["global_step"] in (3, 4)  # at once if the signal came before the callback was asked
    assert "the same command goes on from there" in capsys.readouterr().out
    assert signal.getsignal(signal.SIGTERM) == before


@pytest.mark.parametrize("option", [{"every_n_minutes": -1.0}, {"every_n_steps": -1}])
def test_impossible_settings_are_refused_by_flag(option: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=f"--checkpoint.{next(iter(option))} must"):
        Checkpoints(**option)
