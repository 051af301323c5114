"""How far a model's next-token distributions have moved from the base model's."""

from torch import Tensor
from transformers import PreTrainedModel
from typing_extensions import override

from mixsd_lightning.context import ChatEncoder
from mixsd_lightning.data.batches import TrainItem
from mixsd_lightning.errors import require
from mixsd_lightning.evaluation.suites.base import Score, Suite
from mixsd_lightning.evaluation.suites.distributions import answer_log_probs, answered, jsd, kl, restored, stored
from mixsd_lightning.evaluation.suites.probe import everyday_questions
from mixsd_lightning.records import evenly_spaced


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
        self._answers: list[TrainItem] = []
        self._base_log_probs: list[Tensor] = []
        self._base_top1: list[Tensor] = []

    @property
    @override
    def settings(self) -> dict[str, list[str]]:
        return {"questions": [question.question for question in self._questions]}

    @override
    def prepare(self, base: PreTrainedModel, encoder: ChatEncoder) -> None:
        self._answers = answered(base, encoder, self._questions)
        log_probs = list(answer_log_probs(base, self._answers))
        self._base_top1 = [log_probs_TV.argmax(-1) for log_probs_TV in log_probs]
        self._base_log_probs = [stored(log_probs_TV) for log_probs_TV in log_probs]

    @override
    def measure(self, model: PreTrainedModel, encoder: ChatEncoder) -> dict[str, Score]:
        rows = []
        found = zip(answer_log_probs(model, self._answers), self._base_log_probs, self._base_top1, strict=True)
        for model_TV, stored_TV, top1_T in found:
            base_TV = restored(stored_TV, model_TV.device)
            same = float((model_TV.argmax(-1) == top1_T).float().mean())
            rows.append((kl(base_TV, model_TV), kl(model_TV, base_TV), jsd(base_TV, model_TV), same))
        forward, reverse, jsd_, top1 = zip(*rows, strict=True)
        weights = [len(top1_T) for top1_T in self._base_top1]
        return {
            f"{self.name}_kl": Score(forward, weights, higher_is_better=False, has_kept_share=False),
            f"{self.name}_reverse_kl": Score(reverse, weights, higher_is_better=False, has_kept_share=False),
            f"{self.name}_jsd": Score(jsd_, weights, higher_is_better=False, has_kept_share=False),
            f"{self.name}_top1": Score(top1, weights, has_kept_share=False),
        }
