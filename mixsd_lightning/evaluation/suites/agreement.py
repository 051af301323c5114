"""How far a model's next-token distributions have moved from the base model's.

Shapes: T answer tokens, V vocabulary.
"""

import math
from collections.abc import Iterator

import torch
from torch import Tensor
from transformers import PreTrainedModel
from typing_extensions import override

from mixsd_lightning.context import ChatEncoder
from mixsd_lightning.data.batches import TrainItem, collate_training
from mixsd_lightning.errors import require
from mixsd_lightning.evaluation.suites.base import Score, Suite
from mixsd_lightning.evaluation.suites.probe import answer_questions, everyday_questions
from mixsd_lightning.models import inference
from mixsd_lightning.records import evenly_spaced
from mixsd_lightning.target_states import output_head, target_states

_BATCH_SIZE = 16


class Agreement(Suite):
    """KL both ways, JSD (nats a token) and top-1 agreement, along the base model's own answers to everyday questions."""

    name = "agreement"

    def __init__(self, num_questions: int = 64, every_n_validations: int = 1) -> None:
        """
        Args:
            num_questions: Everyday questions, evenly from all groups. The base model's distributions are kept in memory: for
                64 and a vocabulary of 49 152 about 0.1 GB.
            every_n_validations: Measure at every n-th validation and at the last; 0 is at the last alone.
        """
        super().__init__(every_n_validations)
        require("retention.suites: agreement.num_questions", num_questions, num_questions >= 1, "at least 1")
        self._questions = evenly_spaced(everyday_questions(), num_questions)
        self._sequences: list[TrainItem] = []
        self._base_log_probs: list[Tensor] = []
        self._base_top1: list[Tensor] = []

    @property
    @override
    def settings(self) -> dict[str, list[str]]:
        return {"questions": [question.question for question in self._questions]}

    @override
    def prepare(self, base: PreTrainedModel, encoder: ChatEncoder) -> None:
        prompts, completions = answer_questions(base, encoder, self._questions)
        self._sequences = [
            TrainItem(question.id, prompt, completion.token_ids)
            for question, prompt, completion in zip(self._questions, prompts, completions, strict=True)
        ]
        log_probs = list(self._answer_log_probs(base))
        self._base_top1 = [log_probs_TV.argmax(-1) for log_probs_TV in log_probs]
        # float16 halves the memory; its rounding is far below the differences.
        self._base_log_probs = [log_probs_TV.half().cpu() for log_probs_TV in log_probs]

    @override
    def measure(self, model: PreTrainedModel, encoder: ChatEncoder) -> dict[str, Score]:
        rows = []
        for model_TV, stored_TV, top1_T in zip(
            self._answer_log_probs(model), self._base_log_probs, self._base_top1, strict=True
        ):
            base_TV = stored_TV.to(model_TV.device, torch.float32).log_softmax(-1)
            middle_TV = torch.logaddexp(base_TV, model_TV) - math.log(2)
            jsd = (_kl(base_TV, middle_TV) + _kl(model_TV, middle_TV)) / 2
            same = float((model_TV.argmax(-1) == top1_T).float().mean())
            rows.append((_kl(base_TV, model_TV), _kl(model_TV, base_TV), jsd, same))
        forward, reverse, jsd_, top1 = zip(*rows, strict=True)
        weights = [len(top1_T) for top1_T in self._base_top1]
        return {
            f"{self.name}_kl": Score(forward, weights, higher_is_better=False, has_kept_share=False),
            f"{self.name}_reverse_kl": Score(reverse, weights, higher_is_better=False, has_kept_share=False),
            f"{self.name}_jsd": Score(jsd_, weights, higher_is_better=False, has_kept_share=False),
            f"{self.name}_top1": Score(top1, weights, has_kept_share=False),
        }

    def _answer_log_probs(self, model: PreTrainedModel) -> Iterator[Tensor]:
        """Log-probabilities ``[T, V]`` along every answer."""
        with inference(model):
            for start in range(0, len(self._sequences), _BATCH_SIZE):
                part = self._sequences[start : start + _BATCH_SIZE]
                states_NH = target_states(model, collate_training(part).to(model.device))
                for states_TH in states_NH.split([len(item.target_ids) for item in part]):
                    yield output_head(model).logits(states_TH).float().log_softmax(-1)


def _kl(p_TV: Tensor, q_TV: Tensor) -> float:
    """Mean over tokens of KL(p || q), from log-probabilities."""
    return float(torch.nn.functional.kl_div(q_TV, p_TV, reduction="sum", log_target=True)) / len(p_TV)
