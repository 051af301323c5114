"""OPSD: the student writes, and a teacher that has seen the fact says how it should have gone on."""

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from itertools import chain
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import PreTrainedModel
from typing_extensions import override

from mixsd_lightning.builtin_model import BUILTIN_MODEL
from mixsd_lightning.context import expert_context, naive_context
from mixsd_lightning.data.batches import TrainBatch, TrainItem, collate_training
from mixsd_lightning.decoding.generation import Completion, Sampling, roll_out
from mixsd_lightning.errors import UserError, require
from mixsd_lightning.evaluation.scoring import is_exact_match
from mixsd_lightning.example import Example
from mixsd_lightning.losses.chunked import summed_token_loss
from mixsd_lightning.losses.divergence import DivergenceSettings, Kind, TeacherDivergence
from mixsd_lightning.modules.base import KnowledgeModule
from mixsd_lightning.modules.rollouts import Objective, PromptBatch, PromptItem, Rollout
from mixsd_lightning.ranks import gathered, of_all_ranks
from mixsd_lightning.sharding import in_step
from mixsd_lightning.target_likelihood import likelihood_tags, token_nlls
from mixsd_lightning.target_states import FINAL, layer_states, output_head
from mixsd_lightning.teachers import EMATeacher, FrozenTeacher, SharedTeacher, Teacher


class OPSD(KnowledgeModule):
    r"""On-policy self-distillation with a teacher that has privileged context.

    The student answers the plain prompt x; along its answer y it is moved towards a teacher that sees the expert prompt x⁺:

    .. math:: \frac{1}{\sum|y|} \sum_{y \sim p_S(\cdot|x)} \sum_t
              D\big(p_T(\cdot|x^+, y_{<t}),\; p_S(\cdot|x, y_{<t})\big)

    A method that goes on from here says what else the student is trained on (:meth:`objective`, :meth:`feature_loss`).
    """

    layers: tuple[int, ...] = (FINAL,)
    """Whose states the student's and the teacher's forward passes give."""

    def __init__(
        self,
        model_name_or_path: str = BUILTIN_MODEL,
        divergence: Kind = "forward_kl",
        divergence_weight: float = 0.5,
        distillation_temperature: float = 1.0,
        teacher_top_k: int = 0,
        max_divergence_per_token: float | None = None,
        max_divergence_quantile: float | None = None,
        skip_first_tokens: int = 0,
        mask_truncated: bool = False,
        teacher: Literal["frozen", "shared", "ema"] = "frozen",
        ema_decay: float = 0.99,
        ema_every_n_steps: int = 1,
        rollout_policy: Literal["student", "teacher"] = "student",
        num_rollouts: int = 1,
        updates_per_rollout: int = 1,
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 1.0,
        max_prompt_tokens: int | None = None,
        max_teacher_prompt_tokens: int | None = None,
        generation_batch_size: int = 64,
        nll_every_n_steps: int = 10,
        rollout_seed: int = 42,
        **options: Any,
    ) -> None:
        """
        Args:
            model_name_or_path: `smollm2-135m` (built in), a local Hugging Face folder, or a Hub id.
            divergence: `forward_kl` is KL(teacher || student), `reverse_kl` KL(student || teacher), `mixed` a weighted sum of
                both, `jsd` the generalized Jensen-Shannon divergence scaled so that it goes over into them.
            divergence_weight: Share of the forward KL in `mixed`; where `jsd` stands between forward (0) and reverse (1).
            distillation_temperature: Divides the logits of student and teacher in the divergence.
            teacher_top_k: Compare the teacher's k likeliest tokens and all others together; 0 for the whole vocabulary.
            max_divergence_per_token: Tokens that diverge more count as this much and have no gradient; unlimited by default.
            max_divergence_quantile: Set that limit at each step, to this quantile of the batch's tokens.
            skip_first_tokens: Tokens at the start of each rollout that are not trained on.
            mask_truncated: Do not train on rollouts that `max_new_tokens` cut short.
            teacher: The `frozen` base model, the student itself (`shared`), or a moving average of it (`ema`).
            ema_decay: Share of itself that an `ema` teacher keeps at each update.
            ema_every_n_steps: Optimizer steps between two updates of an `ema` teacher.
            rollout_policy: Who writes: the `student` under the plain prompt, or the `teacher` under the expert prompt.
            num_rollouts: Rollouts of each prompt.
            updates_per_rollout: Optimizer steps on a batch of rollouts before the next are made.
            temperature: Of the rollouts; 0 is greedy.
            top_k: Rollouts sample from the k most probable tokens; 0 for all.
            top_p: Rollouts sample from the most probable tokens that have this probability together.
            max_prompt_tokens: Longest prompt of the student; longer ones are an error. The model's window by default.
            max_teacher_prompt_tokens: The same for the teacher's.
            generation_batch_size: Rollouts in flight at once, but all of a prompt together.
            nll_every_n_steps: Log how probable the rollouts are under the base model (`targets/nll_base`) at every n-th step, a
                forward pass more; 0 never does. Needs the frozen teacher or LoRA, so that the base model is at hand.
            rollout_seed: Decides the draws of the rollouts.
            options: What all methods have (:class:`KnowledgeModule`); `max_new_tokens` limits rollouts and answers alike.
        """
        super().__init__(model_name_or_path, **options)
        limit, quantile, period = max_divergence_per_token, max_divergence_quantile, ema_every_n_steps
        require("model.divergence_weight", divergence_weight, 0 <= divergence_weight <= 1, "between 0 and 1")
        require("model.distillation_temperature", distillation_temperature, distillation_temperature > 0, "positive")
        require("model.teacher_top_k", teacher_top_k, teacher_top_k >= 0, "at least 1, or 0 for the whole vocabulary")
        require("model.max_divergence_per_token", limit, limit is None or limit > 0, "positive")
        is_share = quantile is None or 0 < quantile < 1
        require("model.max_divergence_quantile", quantile, is_share, "between 0 and 1, both excluded")
        if limit is not None and quantile is not None:
            raise UserError("--model.max_divergence_per_token and --model.max_divergence_quantile exclude each other.")
        require("model.skip_first_tokens", skip_first_tokens, skip_first_tokens >= 0, "at least 0")
        require("model.ema_decay", ema_decay, 0 <= ema_decay <= 1, "between 0 and 1")
        require("model.ema_every_n_steps", period, period >= 1, "at least 1")
        require("model.num_rollouts", num_rollouts, num_rollouts >= 1, "at least 1")
        require("model.updates_per_rollout", updates_per_rollout, updates_per_rollout >= 1, "at least 1")
        require("model.temperature", temperature, temperature >= 0, "at least 0")
        require("model.top_k", top_k, top_k >= 0, "at least 1, or 0 for the whole vocabulary")
        require("model.top_p", top_p, 0 < top_p <= 1, "above 0 and at most 1")
        for flag, most in (("max_prompt_tokens", max_prompt_tokens), ("max_teacher_prompt_tokens", max_teacher_prompt_tokens)):
            require(f"model.{flag}", most, most is None or most >= 1, "at least 1")
        require("model.nll_every_n_steps", nll_every_n_steps, nll_every_n_steps >= 0, "at least 0")
        require("model.generation_batch_size", generation_batch_size, generation_batch_size >= 1, "at least 1")
        if temperature == 0 and num_rollouts > 1:
            raise UserError("--model.num_rollouts above 1 gives the same rollout again at --model.temperature 0.")
        self.divergence_settings = DivergenceSettings(
            divergence, divergence_weight, distillation_temperature, teacher_top_k, max_divergence_per_token
        )
        self.max_divergence_quantile = max_divergence_quantile
        self.skip_first_tokens = skip_first_tokens
        self.mask_truncated = mask_truncated
        self.teacher_kind = teacher
        self.ema_decay = ema_decay
        self.ema_every_n_steps = ema_every_n_steps
        self.rollout_policy = rollout_policy
        self.num_rollouts = num_rollouts
        self.updates_per_batch = updates_per_rollout
        self.sampling = Sampling(temperature, top_k, top_p)
        self.max_prompt_tokens = max_prompt_tokens
        self.max_teacher_prompt_tokens = max_teacher_prompt_tokens
        self.generation_batch_size = generation_batch_size
        self.nll_every_n_steps = nll_every_n_steps
        self.rollout_seed = rollout_seed
        self.teacher: Teacher | None = None
        self._teacher_state: dict[str, Tensor] | None = None
        self._rollouts: dict[str, tuple[int, list[Completion]]] = {}
        """By example: the step for which they were made, and the rollouts."""

    # --- data ----------------------------------------------------------------------------------------------------------

    @override
    def prepare_data(self) -> None:
        super().prepare_data()
        corpus = self.trainer.datamodule  # type: ignore[attr-defined]
        for item in self.training_items(corpus.split(corpus.train_split)):
            for flag, prompt, limit in (
                ("max_prompt_tokens", item.prompt_ids, self.max_prompt_tokens),
                ("max_teacher_prompt_tokens", item.teacher_prompt_ids, self.max_teacher_prompt_tokens),
            ):
                allowed = min(limit or self.context_window, self.context_window - self.max_new_tokens)
                if len(prompt) > allowed:
                    raise UserError(
                        f"A prompt of example '{item.example.id}' has {len(prompt)} tokens, {allowed} are allowed by "
                        f"--model.{flag} and the model's window less --model.max_new_tokens. Raise the limit or shorten it."
                    )

    @override
    def training_items(self, examples: Sequence[Example]) -> list[PromptItem]:
        encode = self.encoder.prompt
        return [PromptItem(example, encode(naive_context(example)), encode(expert_context(example))) for example in examples]

    @override
    def collate(self, items: Sequence[PromptItem]) -> PromptBatch:
        return PromptBatch(list(items))

    @override
    def setup(self, stage: str) -> None:
        # Whatever an earlier run has left does not count.
        self.teacher, self._teacher_state, self._rollouts = None, None, {}

    # --- teacher -------------------------------------------------------------------------------------------------------

    @override
    def on_fit_start(self) -> None:
        super().on_fit_start()
        corpus = self.trainer.datamodule  # type: ignore[attr-defined]
        self.taught_ids = {example.id for example in corpus.split(corpus.train_split)}
        self.teacher = self._make_teacher()
        if self._teacher_state is not None:
            self.teacher.load_state_dict(self._teacher_state)

    def _make_teacher(self) -> Teacher:
        if self.teacher_kind == "shared":
            return SharedTeacher(self.student)
        if self.teacher_kind == "frozen" and self.lora_rank:
            return FrozenTeacher(self.student, has_adapter=True)
        base = self.base_copy().requires_grad_(False)
        if self.teacher_kind == "frozen":
            return FrozenTeacher(base)
        return EMATeacher(base, self.student, self.ema_decay, self.ema_every_n_steps)

    @override
    def optimizer_step(self, *args: Any, **options: Any) -> None:
        super().optimizer_step(*args, **options)
        assert self.teacher is not None
        self.teacher.step(self.trainer.global_step + 1)  # counted after this hook

    @override
    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        if self.teacher is not None:
            checkpoint["teacher"] = self.teacher.state_dict()
        # Rollouts that are to be used again cannot be made again: the student has moved. A resumed rank takes what it needs.
        checkpoint["rollouts"] = {
            id: (step, [(completion.token_ids, completion.finish_reason) for completion in completions])
            for rollouts in gathered(self._rollouts)
            for id, (step, completions) in rollouts.items()
        }

    @override
    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        self._teacher_state = checkpoint.get("teacher", {})
        if self.teacher is not None:  # strategies that shard restore after on_fit_start
            self.teacher.load_state_dict(self._teacher_state)
        self._rollouts = {
            id: (step, [Completion(*completion) for completion in completions])
            for id, (step, completions) in checkpoint.get("rollouts", {}).items()
        }

    # --- training ------------------------------------------------------------------------------------------------------

    @override
    def summed_loss(self, batch: PromptBatch) -> tuple[Tensor, Tensor]:
        assert self.teacher is not None
        rollouts = [
            Rollout(item, completion)
            for item, completions in zip(batch.items, self._roll_out(batch.items), strict=True)
            for completion in completions
        ]
        with self.teacher.model() as teacher:
            taught = layer_states(teacher, self.batch(rollouts, [r.item.teacher_prompt_ids for r in rollouts]), self.layers)
            divergence = TeacherDivergence(taught[FINAL], output_head(teacher), self.divergence_settings)
            objective = self.objective(teacher, rollouts, divergence)
        learnt = layer_states(self.student, self.batch(rollouts, [r.item.prompt_ids for r in rollouts]), self.layers)
        head = output_head(self.student)
        if self.max_divergence_quantile is not None:
            self.log(
                "train/divergence_limit",
                divergence.limit_to_quantile(learnt[FINAL], head, self.max_divergence_quantile, of_all_ranks),
                batch_size=1,
            )
        loss_sum, losses_N = summed_token_loss(learnt[FINAL], head, objective.loss, objective.weights_N)
        loss_sum = objective.factor * loss_sum + self.feature_loss(learnt, taught)
        self.log_means(
            {
                "train/kl": (divergence.divergence_sum, len(losses_N)),
                "train/entropy": (divergence.entropy_sum, len(losses_N)),
                **objective.sums(len(losses_N)),
                **self._describe(rollouts),
            }
        )
        if self.nll_every_n_steps and self.trainer.global_step % self.nll_every_n_steps == 0:
            self._log_likelihood(rollouts)
        return loss_sum, torch.tensor(len(losses_N), device=loss_sum.device)

    def objective(self, teacher: PreTrainedModel, rollouts: Sequence[Rollout], divergence: TeacherDivergence) -> Objective:
        """What the student is trained on; called while the teacher is at hand."""
        return Objective(divergence)

    def feature_loss(self, learnt: Mapping[int, Tensor], taught: Mapping[int, Tensor]) -> Tensor | float:
        """What is added to the summed loss: a function of the :attr:`layers`' states, the student's and the teacher's."""
        return 0.0

    def batch(self, rollouts: Sequence[Rollout], prompts: Sequence[list[int]]) -> TrainBatch:
        """Rollouts after prompts, with the tokens to train on marked."""
        items = []
        for rollout, prompt in zip(rollouts, prompts, strict=True):
            ids, num_skipped = rollout.completion.token_ids, self.num_skipped(rollout)
            items.append(TrainItem("", prompt + ids[:num_skipped], ids[num_skipped:]))
        return collate_training(items).to(self.device)

    def num_skipped(self, rollout: Rollout) -> int:
        """Tokens at the beginning of a rollout that are not trained on."""
        length = len(rollout.completion.token_ids)
        is_masked = self.mask_truncated and rollout.completion.finish_reason != "stop"
        return length if is_masked else min(length, self.skip_first_tokens)

    def _describe(self, rollouts: Sequence[Rollout]) -> dict[str, tuple[float, int]]:
        completions = [rollout.completion for rollout in rollouts]
        right = [
            is_exact_match(
                self.encoder.decode(r.completion.token_ids), example.answer, example.question, example.answer_format
            )
            for r in rollouts
            for example in [r.item.example]
        ]
        return {
            "train/completion_length": (sum(len(completion.token_ids) for completion in completions), len(rollouts)),
            "train/truncated": (sum(completion.finish_reason != "stop" for completion in completions), len(rollouts)),
            "train/reward": (sum(right), len(rollouts)),
        }

    def _log_likelihood(self, rollouts: Sequence[Rollout]) -> None:
        """How probable rollouts are under the base model, where it is at hand."""
        if self.lora_rank == 0 and self.teacher_kind != "frozen":
            return
        assert self.teacher is not None
        items = [TrainItem("", rollout.item.prompt_ids, rollout.completion.token_ids) for rollout in rollouts]
        with self.base_model() if self.lora_rank else self.teacher.model() as base:
            own = token_nlls(base, items, max(1, len(items)))
        nlls = list(chain.from_iterable(gathered(own)))
        self.target_nlls = list(chain.from_iterable(nlls))
        self.log_dict(likelihood_tags(nlls), batch_size=1)

    def _roll_out(self, items: Sequence[PromptItem]) -> list[list[Completion]]:
        """Rollouts of every item: those that are to be used again, and new ones."""
        step = self.trainer.global_step
        self._rollouts = {
            id: rollouts for id, rollouts in self._rollouts.items() if step - rollouts[0] < self.updates_per_batch
        }
        assert self.teacher is not None
        of_teacher = self.rollout_policy == "teacher"
        with self.teacher.model() if of_teacher else nullcontext(self.student) as writer, in_step(writer):
            new = list({item.example.id: item for item in items if item.example.id not in self._rollouts}.values())
            if new:
                self._write(writer, new, step)
        return [self._rollouts[item.example.id][1] for item in items]

    def _write(self, writer: PreTrainedModel, items: Sequence[PromptItem], step: int) -> None:
        """Have a model write the rollouts of items, and keep them."""
        is_teacher = self.rollout_policy == "teacher"
        rollouts = roll_out(
            writer,
            [item.teacher_prompt_ids if is_teacher else item.prompt_ids for item in items],
            [f"{self.rollout_seed}|{item.example.id}|{step}" for item in items],
            self.sampling,
            num_rollouts=self.num_rollouts,
            max_new_tokens=self.max_new_tokens,
            stop_ids=self.stop_ids,
            batch_size=self.generation_batch_size,
        )
        for item, completions in zip(items, rollouts, strict=True):
            self._rollouts[item.example.id] = step, completions
            self.token_counts["generated_tokens"] += sum(len(completion.token_ids) for completion in completions)
