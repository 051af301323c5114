"""UniSD (arXiv 2605.06597): self-distillation that asks how far its teacher can be trusted.

Shapes: K auxiliary contexts, N tokens of all rollouts of a batch, H hidden.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import PreTrainedModel
from typing_extensions import override

from mixsd_lightning.builtin_model import BUILTIN_MODEL
from mixsd_lightning.demonstrations.prompts import (
    Augmentation,
    AuxiliaryPrompts,
    Kind,
    auxiliary_contexts,
    negative_prompts,
)
from mixsd_lightning.errors import UserError, require
from mixsd_lightning.losses.agreement import Statistic, agreement_weights, disagreement, effective_sample_size
from mixsd_lightning.losses.chunked import summed_token_loss
from mixsd_lightning.losses.contrastive import ContrastiveHinge
from mixsd_lightning.losses.divergence import TeacherDivergence
from mixsd_lightning.losses.features import feature_losses
from mixsd_lightning.losses.nll import TokenNLL
from mixsd_lightning.modules.opsd import OPSD
from mixsd_lightning.modules.rollouts import Objective, Rollout
from mixsd_lightning.ranks import gathered, rank_and_count
from mixsd_lightning.target_states import FINAL, output_head, target_states, target_tokens


@dataclass
class UniSDObjective(Objective):
    """An objective that knows how it came about."""

    hinge: ContrastiveHinge | None = None
    apart_N: Tensor | None = None
    all_weights_M: Tensor | None = None
    """On all ranks: what a token counts depends on the others of its global batch."""

    @override
    def sums(self, num_tokens: int) -> dict[str, tuple[float, int]]:
        found: dict[str, tuple[float, int]] = {}
        if self.apart_N is not None and self.weights_N is not None and self.all_weights_M is not None:
            found["train/disagreement"] = float(self.apart_N.sum()), num_tokens
            found["train/agreement_weight"] = float(self.weights_N.sum()), num_tokens
            found["train/effective_sample_size"] = float(effective_sample_size(self.all_weights_M)), 1
        if self.hinge is not None:
            found["train/contrastive"] = float(self.hinge.hinge_sum), num_tokens
        return found


class UniSD(OPSD):
    r"""On-policy self-distillation with mechanisms that can each be switched off; with all of them off it is :class:`OPSD`.

    Along the student's rollouts of N tokens,

    .. math:: \frac{1}{N} \sum_n \Big( a\,w_n \big(D_n + \lambda\,\mathrm{hinge}_n\big) + \mu\,\mathrm{MSE}_n \Big)

    * *agreement*: the weight :math:`w_n` is small where the teacher's probability of the token depends on which auxiliary
      context it is given (:mod:`~mixsd_lightning.losses.agreement`);
    * *contrast*: the hinge wants the student nearer to the teacher after a right demonstration than after a wrong one
      (:mod:`~mixsd_lightning.losses.contrastive`);
    * *features*: hidden states of the student are to be like the teacher's (:mod:`~mixsd_lightning.losses.features`);
    * *EMA teacher*, *clipped divergence* and *masked rollouts* are options of :class:`OPSD`.

    The weights are not in the normaliser, so they do not cancel where they are constant within a rollout.
    """

    def __init__(
        self,
        model_name_or_path: str = BUILTIN_MODEL,
        agreement: Literal["none", "token", "sequence"] = "token",
        agreement_strength: float = 1.0,
        agreement_statistic: Statistic = "variance",
        auxiliary_contexts: Kind = "random",
        num_contexts: int = 3,
        demos_per_context: int = 1,
        num_instructions: int = 16,
        embedding_model: str = "all-minilm-l6-v2",
        augmentation: Augmentation = "none",
        augmentation_share: float = 0.5,
        contrastive_weight: float = 0.1,
        contrastive_margin: float = 0.5,
        feature_weight: float = 0.1,
        feature_layers: Sequence[int] = (FINAL,),
        token_loss_weight: float = 1.0,
        context_seed: int = 42,
        teacher: Literal["frozen", "shared", "ema"] = "ema",
        **options: Any,
    ) -> None:
        """
        Args:
            model_name_or_path: `smollm2-135m` (built in), a local Hugging Face folder, or a Hub id.
            agreement: Weigh every `token` by how far the auxiliary contexts agree on it, or every rollout (`sequence`); or
                `none`.
            agreement_strength: How much disagreement counts (γ): the weight at the 0.95 quantile is 1 / (1 + γ); 0 is `none`.
            agreement_statistic: `variance` of the contexts' log-probabilities, or their `range`.
            auxiliary_contexts: `random` solved examples of the corpus, the most similar ones (`retrieval`, extra
                `retrieval`), or instructions that the base model derives from examples (`induction`).
            num_contexts: Auxiliary contexts (K); one cannot disagree with itself.
            demos_per_context: Solved examples in a context, or behind an instruction.
            num_instructions: Instructions that `induction` derives, at most.
            embedding_model: Measures similarity for `retrieval`: `all-minilm-l6-v2` (from the extra), a local folder or a
                Hub id.
            augmentation: At each step and in each auxiliary context, `token_drop` leaves out a stretch of every solved
                example, `drop_demonstration` some of the examples; or `none`.
            augmentation_share: How much it leaves out.
            contrastive_weight: Of the hinge (λ); 0 is none.
            contrastive_margin: By how much, in nats, the student should be nearer to the right demonstration.
            feature_weight: Of the mean squared difference of hidden states (μ); 0 is none.
            feature_layers: Which states: 0 is the embedding, n what comes after the n-th layer, -1 what the head gets.
            token_loss_weight: Of divergence and hinge (a); 0 leaves matching of features alone.
            context_seed: Decides auxiliary contexts, wrong demonstrations and augmentation.
            teacher: The `frozen` base model, the student itself (`shared`), or a moving average of it (`ema`).
            options: What :class:`OPSD` and all methods have.
        """
        super().__init__(model_name_or_path, teacher=teacher, **options)
        at_least_0 = {
            "agreement_strength": agreement_strength,
            "contrastive_weight": contrastive_weight,
            "contrastive_margin": contrastive_margin,
            "feature_weight": feature_weight,
            "token_loss_weight": token_loss_weight,
        }
        for flag, value in at_least_0.items():
            require(f"model.{flag}", value, value >= 0, "at least 0")
        at_least_1 = {
            "num_contexts": num_contexts,
            "demos_per_context": demos_per_context,
            "num_instructions": num_instructions,
        }
        for flag, count in at_least_1.items():
            require(f"model.{flag}", count, count >= 1, "at least 1")
        require("model.augmentation_share", augmentation_share, 0 <= augmentation_share < 1, "at least 0 and below 1")
        if feature_weight and not feature_layers:
            raise UserError("--model.feature_layers: name a layer, or set --model.feature_weight 0.")
        if not (token_loss_weight or feature_weight):
            raise UserError("--model.token_loss_weight and --model.feature_weight are both 0: there is nothing to learn from.")
        self.agreement = agreement if agreement_strength and token_loss_weight else "none"
        self.agreement_strength = agreement_strength
        self.agreement_statistic = agreement_statistic
        self.auxiliary_contexts = auxiliary_contexts
        self.num_contexts = num_contexts
        self.demos_per_context = demos_per_context
        self.num_instructions = num_instructions
        self.embedding_model = embedding_model
        self.augmentation = augmentation
        self.augmentation_share = augmentation_share
        self.contrastive_weight = contrastive_weight if token_loss_weight else 0.0
        self.contrastive_margin = contrastive_margin
        self.feature_weight = feature_weight
        self.token_loss_weight = token_loss_weight
        self.context_seed = context_seed
        self.feature_layers = tuple(dict.fromkeys(feature_layers)) if feature_weight else ()
        self.layers = tuple(dict.fromkeys([FINAL, *self.feature_layers]))
        self._auxiliary_prompts: AuxiliaryPrompts | None = None
        self._negative_prompts: dict[str, list[int]] = {}

    @override
    def prepare_data(self) -> None:
        super().prepare_data()
        num_layers = self.student.config.get_text_config().num_hidden_layers
        for layer in self.feature_layers:
            if not -num_layers - 1 <= layer <= num_layers:
                raise UserError(
                    f"--model.feature_layers: there is no layer {layer}; the model has {num_layers} (0 is its embedding)."
                )

    @override
    def on_fit_start(self) -> None:
        super().on_fit_start()
        corpus = self.trainer.datamodule  # type: ignore[attr-defined]
        examples = corpus.split(corpus.train_split)
        longest = min(self.max_teacher_prompt_tokens or self.context_window, self.context_window - self.max_new_tokens)
        with self.base_model() as base:
            if self.agreement != "none":
                contexts = auxiliary_contexts(
                    self.auxiliary_contexts,
                    base,
                    self.encoder,
                    examples,
                    self.num_contexts,
                    self.demos_per_context,
                    self.num_instructions,
                    self.embedding_model,
                    self.context_seed,
                )
                self._auxiliary_prompts = AuxiliaryPrompts(
                    contexts, self.encoder, longest, self.augmentation, self.augmentation_share, self.context_seed
                )
            if self.contrastive_weight:
                self._negative_prompts = negative_prompts(base, self.encoder, examples, longest, self.context_seed)

    @override
    def objective(
        self, teacher: PreTrainedModel, rollouts: Sequence[Rollout], divergence: TeacherDivergence
    ) -> UniSDObjective:
        found = UniSDObjective(divergence, factor=self.token_loss_weight)
        if self.agreement != "none":
            found.apart_N = self._disagreement(teacher, rollouts)
            parts = gathered(found.apart_N.cpu())
            found.all_weights_M = agreement_weights(torch.cat(parts), self.agreement_strength).to(found.apart_N.device)
            found.weights_N = found.all_weights_M.split([len(part) for part in parts])[rank_and_count()[0]]
        if self.contrastive_weight:
            good_N = self._log_probs(teacher, rollouts, [rollout.item.teacher_prompt_ids for rollout in rollouts])
            bad_N = self._log_probs(teacher, rollouts, [self._negative_prompts[r.item.example.id] for r in rollouts])
            ids_N = target_tokens(self.batch(rollouts, [rollout.item.prompt_ids for rollout in rollouts]))
            found.loss = found.hinge = ContrastiveHinge(
                divergence, ids_N, good_N, bad_N, self.contrastive_weight, self.contrastive_margin
            )
        return found

    @override
    def feature_loss(self, learnt: Mapping[int, Tensor], taught: Mapping[int, Tensor]) -> Tensor | float:
        if not self.feature_weight:
            return 0.0
        layers = self.feature_layers
        losses_N = feature_losses({layer: learnt[layer] for layer in layers}, {layer: taught[layer] for layer in layers})
        self.log_means({"train/feature_loss": (losses_N.detach().sum(), len(losses_N))})
        return self.feature_weight * losses_N.sum()

    def _disagreement(self, teacher: PreTrainedModel, rollouts: Sequence[Rollout]) -> Tensor:
        """Of the auxiliary contexts about every token (N)."""
        assert self._auxiliary_prompts is not None
        step = self.trainer.global_step
        log_probs = []
        for context in range(self.num_contexts):
            prompts = [self._auxiliary_prompts.encode(rollout.item.example, context, step) for rollout in rollouts]
            log_probs.append(self._log_probs(teacher, rollouts, prompts))
        lengths = [len(rollout.completion.token_ids) - self.num_skipped(rollout) for rollout in rollouts]
        assert self.agreement != "none"
        if not rollouts:  # this rank has no part in the batch
            return log_probs[0]
        return disagreement(torch.stack(log_probs), lengths, self.agreement_statistic, self.agreement)

    def _log_probs(self, model: PreTrainedModel, rollouts: Sequence[Rollout], prompts: Sequence[list[int]]) -> Tensor:
        """Log-probabilities of rollouts' tokens after prompts (N)."""
        batch = self.batch(rollouts, prompts)
        return -summed_token_loss(target_states(model, batch), output_head(model), TokenNLL(target_tokens(batch)))[1]
