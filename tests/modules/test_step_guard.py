"""Numbers that are not finite stop training before they reach the weights, on all ranks; an fp16 overflow is skipped."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.plugins.precision import MixedPrecision
from test_sft_and_base import quiet_trainer, tiny_corpus
from torch import Tensor, distributed

from mixsd_lightning import SFT
from mixsd_lightning.errors import UserError
from mixsd_lightning.modules import step_guard
from mixsd_lightning.modules.step_guard import StepGuard


def parameter(*gradient: float) -> torch.nn.Parameter:
    made = torch.nn.Parameter(torch.zeros(len(gradient)))
    made.grad = torch.tensor(gradient)
    return made


def check(losses: list[float], gradient: list[float], scale: float | None = None, guard: StepGuard | None = None) -> None:
    guard = guard or StepGuard()
    for index, loss in enumerate(losses):
        guard.note(index, torch.tensor(loss))
    guard.check([parameter(1.0), torch.nn.Parameter(torch.zeros(2)), parameter(*gradient)], step=7, epoch=2, scale=scale)


@pytest.mark.parametrize("gradient", [[0.0, 0.0], [1e12, -1e15]])
def test_finite_numbers_pass_however_large(gradient: list[float]) -> None:
    check([0.0, 1e30], gradient)
    check([], gradient)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_not_finite_is_named_with_its_batch(bad: float) -> None:
    with pytest.raises(UserError, match=rf"before optimizer step 8 \(epoch 2\): the loss of batch 1 is {bad}\.") as caught:
        check([3.0, bad, 2.0], [1.0])
    assert "--model.learning_rate" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_gradient_that_is_not_finite_is_named(bad: float) -> None:
    with pytest.raises(UserError, match=f"step 8 .*the norm of the gradient is {bad}, though the losses here are finite"):
        check([1.0], [2.0, bad])


def test_what_a_gradient_scaler_skips_is_no_error_until_its_scale_is_used_up() -> None:
    check([1.0], [math.inf], scale=2.0)
    with pytest.raises(UserError, match="the norm of the gradient is inf"):
        check([1.0], [math.inf], scale=1.0)
    with pytest.raises(UserError, match="the loss of batch 0 is nan"):
        check([math.nan], [math.inf], scale=2.0)


def test_a_step_has_no_memory_of_the_one_before() -> None:
    guard = StepGuard()
    with pytest.raises(UserError):
        check([math.nan], [1.0], guard=guard)
    check([1.0], [1.0], guard=guard)


def test_every_rank_tells_the_others_before_it_stops(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[bool] = []
    monkeypatch.setattr(step_guard, "all_ranks", lambda is_fine: bool(told.append(is_fine)))
    with pytest.raises(UserError, match="of another process"):
        check([1.0], [1.0])
    with pytest.raises(UserError, match="the loss of batch 0 is nan"):
        check([math.nan], [1.0])
    assert told == [True, False]


def one_rank_of_two(rank: int, folder: str) -> None:
    distributed.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    check([1.0], [1.0])
    try:
        check([math.nan if rank else 1.0], [1.0])
    except UserError as error:
        Path(folder, f"said-{rank}").write_text(str(error))
    distributed.destroy_process_group()


def test_both_of_two_processes_stop_where_one_has_no_number(tmp_path: Path) -> None:
    torch.multiprocessing.start_processes(one_rank_of_two, (str(tmp_path),), nprocs=2, start_method="fork")
    said = [(tmp_path / f"said-{rank}").read_text() for rank in range(2)]
    assert "of another process" in said[0]
    assert "the loss of batch 0 is nan" in said[1]


# --- in a fit ----------------------------------------------------------------------------------------------------------


class PoisonedSFT(SFT):
    """Something is wrong with one of its steps."""

    poison: dict[int, Any]
    """Step -> factor of the summed loss; None: the batch has no valid token."""

    def __init__(self, model: str, poison: dict[int, Any], **options: Any) -> None:
        super().__init__(model, **options)
        self.poison = poison
        self.history: list[list[Tensor]] = []
        """Weights before every step."""

    def summed_loss(self, batch: Any) -> tuple[Tensor, Tensor]:
        step = self.trainer.global_step
        self.history.append([parameter.detach().clone() for parameter in self.student.parameters()])
        if self.poison.get(step, 1.0) is None:
            batch.is_target_BL[:] = False
        loss_sum, num_tokens = super().summed_loss(batch)
        return loss_sum * (self.poison.get(step, 1.0) or 1.0), num_tokens


def differs(left: list[Tensor], right: list[Tensor]) -> bool:
    return not all(map(torch.equal, left, right))


def weights(method: SFT) -> list[Tensor]:
    return [parameter.detach() for parameter in method.student.parameters()]


@pytest.mark.parametrize("factor", [math.nan, math.inf])
def test_training_stops_with_the_weights_of_the_step_before(tiny_model_path: str, tmp_path: Path, factor: float) -> None:
    method = PoisonedSFT(tiny_model_path, {2: factor}, warmup_steps=0)
    with pytest.raises(UserError, match=f"before optimizer step 3 .*the loss of batch 0 is {factor}"):
        quiet_trainer(tmp_path, max_steps=5).fit(method, tiny_corpus(batch_size=8))
    assert differs(method.history[1], method.history[2])
    assert not differs(method.history[2], weights(method))
    assert all(bool(parameter.isfinite().all()) for parameter in method.student.parameters())


@pytest.mark.parametrize("algorithm", ["norm", "value"])
def test_an_exploding_gradient_is_clipped_and_training_goes_on(tiny_model_path: str, tmp_path: Path, algorithm: str) -> None:
    method = PoisonedSFT(tiny_model_path, {1: 1e12})
    clipping = {"gradient_clip_val": 1.0, "gradient_clip_algorithm": algorithm}
    trainer = quiet_trainer(tmp_path, max_steps=4, **clipping)
    trainer.fit(method, tiny_corpus(batch_size=8))
    assert trainer.global_step == 4
    assert all(bool(parameter.isfinite().all()) for parameter in method.student.parameters())


def test_a_step_without_valid_tokens_moves_nothing(tiny_model_path: str, tmp_path: Path) -> None:
    method = PoisonedSFT(tiny_model_path, {2: None}, warmup_steps=0, weight_decay=0.5)
    trainer = quiet_trainer(tmp_path, max_steps=4)
    trainer.fit(method, tiny_corpus(batch_size=8))
    assert trainer.global_step == 4
    before, step_2, step_3, after = [*method.history[1:4], weights(method)]
    assert differs(before, step_2)
    assert not differs(step_2, step_3)  # neither momentum nor weight decay
    assert differs(step_3, after)
    assert trainer.callback_metrics["train/loss"].isfinite()


def test_micro_batches_without_valid_tokens_leave_the_others_as_they_are(tiny_model_path: str, tmp_path: Path) -> None:
    class HalfEmpty(SFT):
        def summed_loss(self, batch: Any) -> tuple[Tensor, Tensor]:
            batch.is_target_BL[:] &= self.is_served
            self.is_served = not self.is_served
            return super().summed_loss(batch)

        is_served = True

    trained = []
    for accumulate in (1, 2):
        method = HalfEmpty(tiny_model_path) if accumulate == 2 else SFT(tiny_model_path)
        quiet_trainer(tmp_path, accumulate_grad_batches=accumulate).fit(method, tiny_corpus(num_entities=4, batch_size=4))
        trained.append(weights(method))
    assert not differs(*trained)


def test_an_fp16_overflow_is_skipped_and_halves_the_scale(tiny_model_path: str, tmp_path: Path) -> None:
    class Overflowing(SFT):
        def on_after_backward(self) -> None:
            if self.trainer.global_step == 1:
                next(self.student.parameters()).grad[0, 0] = math.inf  # type: ignore[index]

    scaler = torch.amp.GradScaler("cpu", init_scale=16.0)
    precision = MixedPrecision("16-mixed", "cpu", scaler)
    method = Overflowing(tiny_model_path)
    trainer = quiet_trainer(tmp_path, max_steps=3, plugins=[precision], gradient_clip_val=1.0)
    trainer.fit(method, tiny_corpus(batch_size=8))
    assert scaler.get_scale() == 8.0
    assert all(bool(parameter.isfinite().all()) for parameter in method.student.parameters())
