"""How far a model's next-token distributions have moved from the base model's.

Shapes: T answer tokens, V vocabulary.
"""

import torch
from torch import Tensor
from transformers import PreTrainedModel
from typing_extensions import override

from mixsd_lightning.context import ChatEncoder
from mixsd_lightning.evaluation.suites.base import Score, Suite
from mixsd_lightning.evaluation.suites.probe import answer_questions
from mixsd_lightning.models import evaluating


class Agreement(Suite):
    """KL(base || model) per token and top-1 agreement, along the base model's own answers to the everyday questions."""

    name = "agreement"

    def __init__(self) -> None:
        self._sequences: list[tuple[list[int], list[int]]] = []
        self._base_log_probs: list[Tensor] = []
        self._base_top1: list[Tensor] = []

    @override
    def prepare(self, base: PreTrainedModel, encoder: ChatEncoder) -> None:
        prompts, completions = answer_questions(base, encoder)
        self._sequences = [(p, c.token_ids) for p, c in zip(prompts, completions, strict=True)]
        log_probs = self._answer_log_probs(base)
        self._base_top1 = [log_probs_TV.argmax(-1) for log_probs_TV in log_probs]
        # float16 halves the memory (about 0.1 GB for a vocabulary of 49 152); its rounding is far below the differences.
        self._base_log_probs = [log_probs_TV.half().cpu() for log_probs_TV in log_probs]

    @override
    def measure(self, model: PreTrainedModel, encoder: ChatEncoder) -> dict[str, Score]:
        kl, same, num_tokens = 0.0, 0, 0
        for log_probs_TV, stored_TV, top1_T in zip(
            self._answer_log_probs(model), self._base_log_probs, self._base_top1, strict=True
        ):
            base_TV = stored_TV.to(log_probs_TV.device, torch.float32).log_softmax(-1)
            kl += float(torch.nn.functional.kl_div(log_probs_TV, base_TV, reduction="sum", log_target=True))
            same += int((log_probs_TV.argmax(-1) == top1_T).sum())
            num_tokens += len(log_probs_TV)
        return {
            f"{self.name}_kl": Score(kl / num_tokens, higher_is_better=False, has_kept_share=False),
            f"{self.name}_top1": Score(same / num_tokens, has_kept_share=False),
        }

    @torch.no_grad()
    def _answer_log_probs(self, model: PreTrainedModel) -> list[Tensor]:
        log_probs = []
        with evaluating(model):
            for prompt, answer in self._sequences:
                ids = torch.tensor([prompt + answer], device=model.device)
                logits_TV = model(input_ids=ids, use_cache=False, logits_to_keep=len(answer) + 1).logits[0, :-1]
                log_probs.append(logits_TV.float().log_softmax(-1))
        return log_probs
