"""What all methods share: the student, its optimizer, and memorization measured at each validation."""

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from typing_extensions import override

from mixsd_lightning.builtin_model import BUILTIN_MODEL
from mixsd_lightning.context import ChatEncoder
from mixsd_lightning.data.base import EvalBatch, Item
from mixsd_lightning.decoding.generation import generate_greedy
from mixsd_lightning.errors import UserError, require
from mixsd_lightning.evaluation.metrics import AnswerAccuracy
from mixsd_lightning.example import Example
from mixsd_lightning.models import context_window, load_tokenizer, stop_token_ids, without_lora
from mixsd_lightning.modules.step_guard import StepGuard
from mixsd_lightning.modules.strategies import check_accumulation, clip_gradients, owns_gradients
from mixsd_lightning.modules.student import StudentSettings, base_copy, make_student, shard_as_asked
from mixsd_lightning.ranks import sum_over_ranks
from mixsd_lightning.sharding import in_step, is_sharded

TAUGHT = "taught"
"""Stands beside the names of splits: the training questions that have a target (MixSD may have dropped some)."""


class KnowledgeModule(LightningModule, ABC):
    """Base of all methods.

    A subclass says what the student is trained on (:meth:`training_items`, :meth:`collate`) and the loss of a batch of it
    (:meth:`summed_loss`).
    """

    student: PreTrainedModel
    updates_per_batch = 1

    def __init__(
        self,
        model_name_or_path: str = BUILTIN_MODEL,
        learning_rate: float = 1e-4,
        weight_decay: float = 0.01,
        warmup_steps: int = 20,
        max_new_tokens: int = 48,
        lora_rank: int = 0,
        lora_alpha: int = 32,
        gradient_checkpointing: bool = False,
        compile: bool = False,
        trust_remote_code: bool = False,
    ) -> None:
        """
        Args:
            model_name_or_path: `smollm2-135m` (built in), a local Hugging Face folder, or a Hub id.
            learning_rate: Of AdamW, after the warm-up; constant from then on.
            weight_decay: Of AdamW.
            warmup_steps: Optimizer steps over which the learning rate rises linearly.
            max_new_tokens: Longest answer that is generated, in tokens.
            lora_rank: Train a LoRA adapter of this rank on all linear layers (extra `lora`); 0 trains all weights.
            lora_alpha: The adapter's output is scaled by `lora_alpha / lora_rank`.
            gradient_checkpointing: Compute activations again in the backward pass instead of keeping them: less memory, more
                time.
            compile: Let `torch.compile` translate the model for training; pays off on GPUs and for long runs.
            trust_remote_code: Allow code that comes with the model to run.
        """
        super().__init__()
        self.save_hyperparameters()
        require("model.learning_rate", learning_rate, learning_rate > 0, "positive")
        require("model.warmup_steps", warmup_steps, warmup_steps >= 0, "at least 0")
        require("model.max_new_tokens", max_new_tokens, max_new_tokens >= 1, "at least 1")
        require("model.lora_rank", lora_rank, lora_rank >= 0, "at least 1, or 0 to train all weights")
        self.model_name_or_path = model_name_or_path
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.warmup_steps = warmup_steps
        self.max_new_tokens = max_new_tokens
        self.lora_rank = lora_rank
        self.trust_remote_code = trust_remote_code
        self.student_settings = StudentSettings(
            model_name_or_path, trust_remote_code, lora_rank, lora_alpha, gradient_checkpointing, compile
        )
        self.completed_steps = 0
        """Optimizer steps behind the weights that are loaded now."""
        self.accuracies: dict[str, AnswerAccuracy] = {}
        """Memorization metrics of the validation that runs now, by split and for :data:`TAUGHT`."""
        self.target_statistics: dict[str, float] = {}
        """What the training targets are like (`targets/...`), logged with every validation of a fit."""
        self.target_nlls: list[float] = []
        """NLL of each target token under the base model, in nats, as far as it is known."""
        self.taught_ids: set[str] = set()
        """Examples that training has a target for."""
        self.token_counts: Counter[str] = Counter()
        """Tokens that this rank has trained on and generated since somebody cleared it."""
        self._num_target_tokens = torch.tensor(0.0)
        self._step_guard = StepGuard()

    @abstractmethod
    def training_items(self, examples: Sequence[Example]) -> Sequence[Item]:
        """What the student is trained on."""

    @abstractmethod
    def collate(self, items: Sequence[Any]) -> Any:
        """Training items as the batch that :meth:`summed_loss` gets."""

    @abstractmethod
    def summed_loss(self, batch: Any) -> tuple[Tensor, Tensor]:
        """Loss of a batch, summed over the tokens that count, and their number."""

    # --- model and tokenizer -------------------------------------------------------------------------------------------

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The model's tokenizer."""
        return load_tokenizer(self.model_name_or_path, self.trust_remote_code)

    @cached_property
    def encoder(self) -> ChatEncoder:
        """Encodes prompts and targets for this model."""
        return ChatEncoder(self.tokenizer)

    @cached_property
    def context_window(self) -> int:
        """Tokens that the model can hold."""
        return context_window(self.model_name_or_path, self.trust_remote_code)

    @property
    def stop_ids(self) -> frozenset[int]:
        """Tokens that end an answer."""
        return stop_token_ids(self.student, self.encoder.end_of_turn_id)

    @override
    def prepare_data(self) -> None:
        # Runs before the run folder is made: a model that cannot be read is reported here.
        _ = self.encoder, self.context_window
        check_accumulation(self.trainer)
        self._load_student()

    @override
    def configure_model(self) -> None:
        self._load_student()
        if self._trainer is not None:
            shard_as_asked(self.student, self.trainer)

    def _load_student(self) -> None:
        if not hasattr(self, "student"):
            self.student = make_student(self.student_settings)

    @contextmanager
    def base_model(self, device: str | None = None) -> Iterator[PreTrainedModel]:
        """The untrained model: the student until its first step or, with LoRA, without its adapter; else a fresh copy.

        Args:
            device: Where a copy goes; this module's device by default.
        """
        if self.lora_rank:
            with without_lora(self.student):
                yield self.student
        elif self.completed_steps == 0 and not (self._trainer is not None and owns_gradients(self.trainer)):
            yield self.student
        else:
            yield self.base_copy(device)

    def base_copy(self, device: str | None = None) -> PreTrainedModel:
        """A fresh copy of the base model, which stands where the student does or, whole, on another device."""
        return base_copy(self.student_settings, self.student, self.device, device)

    # --- training ------------------------------------------------------------------------------------------------------

    @override
    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if self.lora_rank and not is_sharded(self.student):  # the base model is where it came from
            state = checkpoint["state_dict"]
            checkpoint["state_dict"] = {name: value for name, value in state.items() if ".lora_" in name}

    @override
    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.completed_steps = int(checkpoint["global_step"])
        if self.lora_rank and "state_dict" in checkpoint:
            checkpoint["state_dict"] = {**self.state_dict(), **checkpoint["state_dict"]}
        # The optimizer's state holds the learning rate that it was saved with; what this run was told wins.
        schedules = checkpoint.get("lr_schedulers", [])
        optimizers = checkpoint.get("optimizer_states", [])
        if schedules and not optimizers:  # strategies that shard have restored them by now
            optimizers = [{"param_groups": optimizer.param_groups} for optimizer in self.trainer.optimizers]
        for optimizer, schedule in zip(optimizers, schedules, strict=True):
            schedule["base_lrs"] = [self.learning_rate] * len(schedule["base_lrs"])
            for group in optimizer["param_groups"]:
                group["initial_lr"] = self.learning_rate
                group["lr"] = self.learning_rate * self._warmup(schedule["last_epoch"])
                group["weight_decay"] = self.weight_decay

    @override
    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.completed_steps = self.trainer.global_step

    @override
    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss_sum, num_tokens = self.summed_loss(batch)
        self._step_guard.note(batch_idx, loss_sum)
        self.token_counts["trained_tokens"] += int(num_tokens)
        global_sum, global_tokens = sum_over_ranks(torch.stack([loss_sum.detach().float(), num_tokens.float()]))
        self.log("train/loss", global_sum / global_tokens.clamp(min=1), prog_bar=True, batch_size=1)
        if owns_gradients(self.trainer):
            return loss_sum * self.trainer.world_size / global_tokens.clamp(min=1)
        self._num_target_tokens = self._num_target_tokens.to(global_tokens.device) + global_tokens
        # Lightning divides by the number of accumulated micro-batches; on_before_optimizer_step divides by tokens instead.
        return loss_sum * self.trainer.accumulate_grad_batches

    def log_means(self, sums: Mapping[str, tuple[Tensor | float, float]]) -> None:
        """Log means over all ranks, by tag, from this rank's sums and counts. All ranks call it with the same tags."""
        rows = torch.tensor([[float(total), float(count)] for total, count in sums.values()], dtype=torch.float64)
        totals, counts = sum_over_ranks(rows).unbind(1)
        self.log_dict(dict(zip(sums, (totals / counts.clamp(min=1)).tolist(), strict=True)), batch_size=1)

    @override
    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Turn gradients of the summed loss into gradients of the mean over all valid tokens of the global batch.

        Distributed strategies average gradients over ranks, hence the factor of the number of ranks. Without any valid token
        there is no gradient at all, and the optimizer moves nothing: not by its momentum, nor by weight decay.
        """
        scaler = getattr(self.trainer.precision_plugin, "scaler", None)
        self._step_guard.check(
            self.student.parameters(), self.trainer.global_step, self.trainer.current_epoch, scaler and scaler.get_scale()
        )
        if owns_gradients(self.trainer):  # of a loss that was divided
            return
        num_tokens = float(self._num_target_tokens)
        for parameter in self.student.parameters():
            if num_tokens == 0:
                parameter.grad = None
            elif parameter.grad is not None:
                parameter.grad.mul_(self.trainer.world_size / num_tokens)
        self._num_target_tokens = torch.zeros_like(self._num_target_tokens)

    @override
    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        super().optimizer_step(*args, **kwargs)
        # Lightning frees the gradients after the next forward pass; there they would stand beside its activations.
        self.zero_grad()

    @override
    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        clip_gradients(self, optimizer, gradient_clip_val, gradient_clip_algorithm)

    @override
    def configure_optimizers(self) -> OptimizerLRScheduler:
        trained = [parameter for parameter in self.student.parameters() if parameter.requires_grad]
        # A gradient scaler and a fused optimizer both want to unscale.
        is_scaled = self._trainer is not None and self.trainer.precision == "16-mixed"
        optimizer = torch.optim.AdamW(
            trained, self.learning_rate, betas=(0.9, 0.95), weight_decay=self.weight_decay, fused=not is_scaled
        )
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, self._warmup)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def _warmup(self, step: int) -> float:
        """Share of the learning rate that an optimizer step takes."""
        return min(1.0, (step + 1) / max(1, self.warmup_steps))

    # --- memorization --------------------------------------------------------------------------------------------------

    @override
    def on_validation_epoch_start(self) -> None:
        # One for every split on every rank, whether or not the rank gets a batch of it: computing them is collective.
        corpus = self.trainer.datamodule  # type: ignore[attr-defined]
        names = [*corpus.eval_splits, *([TAUGHT] if self.taught_ids and corpus.train_split in corpus.eval_splits else [])]
        self.accuracies = {name: AnswerAccuracy().to(self.device) for name in names}

    @override
    def validation_step(  # type: ignore[override]
        self, batch: EvalBatch, batch_idx: int, dataloader_idx: int = 0
    ) -> list[str]:
        """Answer the questions of a batch greedily and score the answers; returns the answers."""
        answers = self.answer(batch.prompts)
        for example, answer in zip(batch.examples, answers, strict=True):
            for name in (batch.split, TAUGHT) if example.id in self.taught_ids else (batch.split,):
                self.accuracies[name].update(answer, example.answer, example.question, example.answer_format)
        return answers

    @override
    def on_validation_epoch_end(self) -> None:
        for split, accuracy in self.accuracies.items():
            scores = accuracy.compute()
            self.log(f"memorization/{split}", scores["strict"], prog_bar=True)
            self.log(f"memorization/{split}_loose", scores["loose"])
            self.log(f"memorization/{split}_count", scores["count"])
        self.log_dict(self.target_statistics)
        # Lightning's name for the step axis; its own count is one behind, and zero when a checkpoint is validated.
        self.log("step", float(self.completed_steps))

    @override
    def on_test_epoch_start(self) -> None:
        self.on_validation_epoch_start()

    @override
    def test_step(  # type: ignore[override]
        self, batch: EvalBatch, batch_idx: int, dataloader_idx: int = 0
    ) -> list[str]:
        """The same as :meth:`validation_step`."""
        return self.validation_step(batch, batch_idx, dataloader_idx)

    @override
    def on_test_epoch_end(self) -> None:
        self.on_validation_epoch_end()

    @override
    def on_predict_start(self) -> None:
        raise UserError("predict writes mixed targets without training; it needs --model MixSD.")

    def answer(self, prompts: Sequence[Sequence[int]]) -> list[str]:
        """Greedy answers of the student to encoded prompts."""
        settings: dict[str, Any] = {"max_new_tokens": self.max_new_tokens, "stop_ids": self.stop_ids}
        with in_step(self.student):  # of a sharded student, all ranks are asked at once, one perhaps for nothing
            completions = generate_greedy(self.student, prompts, batch_size=max(1, len(prompts)), **settings)
        return [self.encoder.decode(completion.token_ids) for completion in completions]
