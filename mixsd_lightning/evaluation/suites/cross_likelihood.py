"""How probable a model and the base model find each other's answers (retention of UniSD, arXiv 2605.06597)."""

from torch import Tensor
from transformers import PreTrainedModel
from typing_extensions import override

from mixsd_lightning.context import ChatEncoder
from mixsd_lightning.data.batches import TrainItem
from mixsd_lightning.errors import require
from mixsd_lightning.evaluation.suites.base import Score, Suite
from mixsd_lightning.evaluation.suites.distributions import answer_log_probs, answered, jsd, restored, stored
from mixsd_lightning.evaluation.suites.probe import everyday_questions
from mixsd_lightning.records import evenly_spaced


class CrossLikelihood(Suite):
    """Log-probability (nats a token) of the model's answers under the base model, and the other way round.

    Tags: `cross_likelihood_forward` (the base model on the model's own answers), `_reverse` (the model on the base model's), the
    Jensen-Shannon divergences along both, `_forward_jsd` and `_reverse_jsd`, and `_gap`, forward less reverse of the same
    question. Every question counts alike; token ids are scored as they were generated, the end of the turn included.
    """

    name = "cross_likelihood"

    def __init__(self, num_questions: int = 64, every_n_validations: int = 0) -> None:
        """
        Args:
            num_questions: Everyday questions, evenly from all groups. Distributions along their answers are kept in memory: for
                64 and a vocabulary of 49 152 about 0.3 GB.
            every_n_validations: Measure at every n-th validation and at the last; 0 is at the last alone. Without LoRA each
                time takes a fresh copy of the base model.
        """
        super().__init__(every_n_validations)
        require("retention.suites: cross_likelihood.num_questions", num_questions, num_questions >= 1, "at least 1")
        self._questions = evenly_spaced(everyday_questions(), num_questions)
        self._base_answers: list[TrainItem] = []
        self._base_log_probs: list[Tensor] = []

    @property
    @override
    def settings(self) -> dict[str, list[str]]:
        return {"questions": [question.question for question in self._questions]}

    @override
    def prepare(self, base: PreTrainedModel, encoder: ChatEncoder) -> None:
        self._base_answers = answered(base, encoder, self._questions)
        self._base_log_probs = [stored(log_probs_TV) for log_probs_TV in answer_log_probs(base, self._base_answers)]

    @override
    def measure(self, model: PreTrainedModel, encoder: ChatEncoder) -> dict[str, Score]:
        reverse = []
        found = zip(self._base_answers, answer_log_probs(model, self._base_answers), self._base_log_probs, strict=True)
        for answer, model_TV, stored_TV in found:
            reverse.append((_mean(model_TV, answer), jsd(model_TV, restored(stored_TV, model_TV.device))))
        answers = answered(model, encoder, self._questions)
        kept = [stored(log_probs_TV) for log_probs_TV in answer_log_probs(model, answers)]
        forward = []
        with self.base_model() as base:  # with LoRA, from here on the model is not itself
            for answer, base_TV, stored_TV in zip(answers, answer_log_probs(base, answers), kept, strict=True):
                forward.append((_mean(base_TV, answer), jsd(base_TV, restored(stored_TV, base_TV.device))))
        columns = {
            "forward": [log_prob for log_prob, _ in forward],
            "forward_jsd": [distance for _, distance in forward],
            "reverse": [log_prob for log_prob, _ in reverse],
            "reverse_jsd": [distance for _, distance in reverse],
        }
        columns["gap"] = [one - other for one, other in zip(columns["forward"], columns["reverse"], strict=True)]
        return {
            f"{self.name}_{name}": Score(values, higher_is_better="jsd" not in name, has_kept_share=False)
            for name, values in columns.items()
        }


def _mean(log_probs_TV: Tensor, answer: TrainItem) -> float:
    """Log-probability of an answer, a token."""
    return float(log_probs_TV[range(len(answer.target_ids)), answer.target_ids].mean())
