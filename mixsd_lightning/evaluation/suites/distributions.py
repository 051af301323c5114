"""Next-token distributions of a model along answers, and how far two of them are apart.

Shapes: T answer tokens, V vocabulary.
"""

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from mixsd_lightning.context import ChatEncoder
from mixsd_lightning.data.batches import TrainItem, collate_training
from mixsd_lightning.evaluation.suites.probe import Question, answer_questions
from mixsd_lightning.models import inference
from mixsd_lightning.target_states import output_head, target_states

_BATCH_SIZE = 16


def answered(model: PreTrainedModel, encoder: ChatEncoder, questions: Sequence[Question]) -> list[TrainItem]:
    """Questions with a model's own greedy answers."""
    prompts, completions = answer_questions(model, encoder, questions)
    return [
        TrainItem(question.id, prompt, completion.token_ids)
        for question, prompt, completion in zip(questions, prompts, completions, strict=True)
    ]


def answer_log_probs(model: PreTrainedModel, answers: Sequence[TrainItem]) -> Iterator[Tensor]:
    """A model's log-probabilities ``[T, V]`` along every answer, in float32."""
    with inference(model):
        for start in range(0, len(answers), _BATCH_SIZE):
            part = answers[start : start + _BATCH_SIZE]
            states_NH = target_states(model, collate_training(part).to(model.device))
            for states_TH in states_NH.split([len(item.target_ids) for item in part]):
                yield output_head(model).logits(states_TH).float().log_softmax(-1)


def stored(log_probs_TV: Tensor) -> Tensor:
    """Log-probabilities as they are kept: float16 halves the memory, and its rounding is far below the differences."""
    return log_probs_TV.half().cpu()


def restored(log_probs_TV: Tensor, device: torch.device) -> Tensor:
    """What :func:`stored` has put away."""
    return log_probs_TV.to(device, torch.float32).log_softmax(-1)


def kl(p_TV: Tensor, q_TV: Tensor) -> float:
    """Mean over tokens of KL(p || q), from log-probabilities, in nats."""
    return float(torch.nn.functional.kl_div(q_TV, p_TV, reduction="sum", log_target=True)) / len(p_TV)


def jsd(p_TV: Tensor, q_TV: Tensor) -> float:
    """Mean over tokens of the Jensen-Shannon divergence, from log-probabilities, in nats."""
    middle_TV = torch.logaddexp(p_TV, q_TV) - math.log(2)
    return (kl(p_TV, middle_TV) + kl(q_TV, middle_TV)) / 2
