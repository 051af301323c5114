"""Everyday questions with known short answers, and the base model's own answers to them."""

import json
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

from transformers import PreTrainedModel
from typing_extensions import override

from mixsd_lightning.context import ChatEncoder, Message
from mixsd_lightning.decoding.generation import Completion, generate_greedy
from mixsd_lightning.evaluation.scoring import contains_answer
from mixsd_lightning.evaluation.suites.base import Score, Suite
from mixsd_lightning.models import stop_token_ids

MAX_ANSWER_TOKENS = 24


@dataclass(frozen=True)
class Question:
    """A question with the short answers that count as right."""

    id: str
    group: str
    question: str
    answers: tuple[str, ...]


@cache
def everyday_questions() -> tuple[Question, ...]:
    """The 64 built-in questions: 8 groups from geography to common sense, 8 questions each."""
    lines = (files(__package__) / "everyday.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    return tuple(Question(row["id"], row["group"], row["question"], tuple(row["answers"])) for row in rows)


def answer_questions(model: PreTrainedModel, encoder: ChatEncoder) -> tuple[list[list[int]], list[Completion]]:
    """Prompts and greedy answers of a model to the everyday questions."""
    prompts = [encoder.prompt([Message("user", question.question)]) for question in everyday_questions()]
    stop_ids = stop_token_ids(model, encoder.end_of_turn_id)
    return prompts, generate_greedy(model, prompts, max_new_tokens=MAX_ANSWER_TOKENS, stop_ids=stop_ids)


class EverydayProbe(Suite):
    """Share of the everyday questions whose answer contains an accepted answer."""

    name = "probe"

    @override
    def measure(self, model: PreTrainedModel, encoder: ChatEncoder) -> dict[str, Score]:
        _, completions = answer_questions(model, encoder)
        right = [
            contains_answer(encoder.decode(completion.token_ids), question.answers)
            for question, completion in zip(everyday_questions(), completions, strict=True)
        ]
        return {self.name: Score(sum(right) / len(right))}
