"""What all methods share: the student, its loss and optimizer, and memorization measured at each validation.

Shapes: B batch, L sequence, T target length, V vocabulary.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import cached_property
from typing import Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.plugins.precision import MixedPrecision, Precision
from lightning.pytorch.utilities.enums import GradClipAlgorithmType
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from typing_extensions import override

from mixsd_lightning.builtin_model import BUILTIN_MODEL
from mixsd_lightning.context import ChatEncoder, naive_context
from mixsd_lightning.data.base import EvalBatch, TrainBatch, TrainItem, collate_training
from mixsd_lightning.decoding.greedy import generate_greedy
from mixsd_lightning.errors import UserError
from mixsd_lightning.evaluation.metrics import AnswerAccuracy
from mixsd_lightning.example import Example
from mixsd_lightning.losses.nll import target_nll
from mixsd_lightning.models import (
    add_lora,
    context_window,
    evaluating,
    load_student,
    load_tokenizer,
    stop_token_ids,
    without_lora,
)

TAUGHT = "taught"
"""Stands beside the names of splits: the training questions that have a target (MixSD may have dropped some)."""


class KnowledgeModule(LightningModule):
    """Base of all methods. A subclass says what the student is trained on (:meth:`training_items`)."""

    student: PreTrainedModel

    def __init__(
        self,
        model_name_or_path: str = BUILTIN_MODEL,
        learning_rate: float = 1e-4,
        weight_decay: float = 0.01,
        warmup_steps: int = 20,
        max_new_tokens: int = 48,
        lora_rank: int = 0,
        lora_alpha: int = 32,
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
            trust_remote_code: Allow code that comes with the model to run.
        """
        super().__init__()
        self.save_hyperparameters()
        if learning_rate <= 0:
            raise UserError(f"--model.learning_rate must be positive, got {learning_rate}.")
        if warmup_steps < 0:
            raise UserError(f"--model.warmup_steps must not be negative, got {warmup_steps}.")
        if max_new_tokens < 1:
            raise UserError(f"--model.max_new_tokens must be at least 1, got {max_new_tokens}.")
        if lora_rank < 0:
            raise UserError(f"--model.lora_rank must be at least 1, or 0 to train all weights, got {lora_rank}.")
        self.model_name_or_path = model_name_or_path
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.warmup_steps = warmup_steps
        self.max_new_tokens = max_new_tokens
        self.lora_rank = lora_rank
        self.lora_alpha = lora_alpha
        self.trust_remote_code = trust_remote_code
        self.completed_steps = 0
        """Optimizer steps behind the weights that are loaded now."""
        self.accuracies: dict[str, AnswerAccuracy] = {}
        """Memorization metrics of the validation that runs now, by split and for :data:`TAUGHT`."""
        self.target_statistics: dict[str, float] = {}
        """What the training targets are like (`targets/...`), logged with every validation of a fit."""
        self.taught_ids: set[str] = set()
        """Examples that training has a target for."""
        self._num_target_tokens = torch.tensor(0.0)

    def training_items(self, examples: Sequence[Example]) -> list[TrainItem]:
        """The supervised sequences that the student is trained on."""
        raise NotImplementedError(f"{type(self).__name__} must define training_items")

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
        self.configure_model()

    @override
    def configure_model(self) -> None:
        if not hasattr(self, "student"):
            self.student = load_student(self.model_name_or_path, self.trust_remote_code)
            if self.lora_rank:
                add_lora(self.student, self.lora_rank, self.lora_alpha)

    @contextmanager
    def base_model(self, device: str | None = None) -> Iterator[PreTrainedModel]:
        """The untrained model: the student until its first step or, with LoRA, without its adapter; else a fresh copy.

        Args:
            device: Where a copy goes; this module's device by default.
        """
        if self.lora_rank:
            with without_lora(self.student):
                yield self.student
        elif self.completed_steps == 0:
            yield self.student
        else:
            base = load_student(self.model_name_or_path, self.trust_remote_code)
            base.to(device=device or self.device, dtype=self.student.dtype)  # type: ignore[call-arg]
            yield base

    # --- training ------------------------------------------------------------------------------------------------------

    @override
    def on_fit_start(self) -> None:
        corpus = self.trainer.datamodule  # type: ignore[attr-defined]
        self.describe_items(self.training_items(corpus.split(corpus.train_split)))

    def describe_items(self, items: Sequence[TrainItem]) -> None:
        """Note what is being taught: which examples, and how probable their targets are under the base model."""
        corpus = self.trainer.datamodule  # type: ignore[attr-defined]
        self.taught_ids = {item.example_id for item in items}
        unknown = [item for item in items if item.base_nll is None]
        known_nll = sum(item.base_nll for item in items if item.base_nll is not None)
        num_tokens = sum(len(item.target_ids) for item in items)
        with self.base_model() if unknown else nullcontext() as base:
            nll = known_nll + (self.summed_nll(base, unknown, corpus.batch_size) if base else 0.0)
        self.target_statistics["targets/nll_base"] = nll / max(1, num_tokens)

    @override
    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.completed_steps = int(checkpoint["global_step"])
        # The optimizer's state holds the learning rate that it was saved with; what this run was told wins.
        for optimizer, schedule in zip(
            checkpoint.get("optimizer_states", []), checkpoint.get("lr_schedulers", []), strict=True
        ):
            schedule["base_lrs"] = [self.learning_rate] * len(schedule["base_lrs"])
            for group in optimizer["param_groups"]:
                group["initial_lr"] = self.learning_rate
                group["lr"] = self.learning_rate * self._warmup(schedule["last_epoch"])
                group["weight_decay"] = self.weight_decay

    @override
    def on_train_batch_end(self, outputs: Any, batch: TrainBatch, batch_idx: int) -> None:
        self.completed_steps = self.trainer.global_step

    @override
    def training_step(self, batch: TrainBatch, batch_idx: int) -> Tensor:
        nll_sum, num_tokens = self.batch_nll(self.student, batch)
        self._num_target_tokens = self._num_target_tokens.to(num_tokens.device) + num_tokens
        self.log("train/loss", nll_sum / num_tokens.clamp(min=1), prog_bar=True, batch_size=int(num_tokens))
        # Lightning divides by the number of accumulated micro-batches; on_before_optimizer_step divides by tokens instead.
        return nll_sum * self.trainer.accumulate_grad_batches

    @override
    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Turn gradients of the summed loss into gradients of the mean over all valid tokens of the global batch.

        Distributed strategies average gradients over ranks, hence the factor of the number of ranks.
        """
        num_tokens = self.trainer.strategy.reduce(self._num_target_tokens, reduce_op="sum")
        scale = self.trainer.world_size / max(1.0, float(num_tokens))
        for parameter in self.student.parameters():
            if parameter.grad is not None:
                parameter.grad.mul_(scale)
        self._num_target_tokens = torch.zeros_like(self._num_target_tokens)

    @override
    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        precision = self.trainer.precision_plugin
        if isinstance(precision, MixedPrecision) and precision.scaler is None:
            # Lightning would refuse, because the optimizer is fused; that matters to gradient scalers alone.
            algorithm = GradClipAlgorithmType(gradient_clip_algorithm or "norm")
            Precision.clip_gradients(precision, optimizer, gradient_clip_val or 0.0, algorithm)
        else:
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)

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

    @staticmethod
    def batch_nll(model: PreTrainedModel, batch: TrainBatch) -> tuple[Tensor, Tensor]:
        """Summed NLL of the targets of a batch and their number; logits exist for target positions only."""
        num_targets = batch.target_ids_BT.shape[1]
        positions_BL = (batch.attention_mask_BL.cumsum(-1) - 1).clamp(min=0)
        logits_BTV = model(
            input_ids=batch.input_ids_BL,
            attention_mask=batch.attention_mask_BL,
            position_ids=positions_BL,
            use_cache=False,
            logits_to_keep=num_targets + 1,
        ).logits[:, :-1]
        return target_nll(logits_BTV, batch.target_ids_BT, batch.target_mask_BT)

    @torch.no_grad()
    def summed_nll(self, model: PreTrainedModel, items: Sequence[TrainItem], batch_size: int) -> float:
        """NLL of training targets under ``model`` and the naive prompt, in nats."""
        total = 0.0
        with evaluating(model):
            for start in range(0, len(items), batch_size):
                batch = collate_training(items[start : start + batch_size]).to(self.device)
                total += float(self.batch_nll(model, batch)[0])
        return total

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
        completions = generate_greedy(
            self.student, prompts, max_new_tokens=self.max_new_tokens, stop_ids=self.stop_ids, batch_size=len(prompts)
        )
        return [self.encoder.decode(completion.token_ids) for completion in completions]

    def supervised_item(self, example: Example, target_ids: list[int]) -> TrainItem:
        """A training item: the example's naive prompt with a given answer turn."""
        return TrainItem(example.id, self.encoder.prompt(naive_context(example)), target_ids)
