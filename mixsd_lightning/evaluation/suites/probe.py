"""Everyday questions with known short answers, and the base model's own answers to them."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

from transformers import PreTrainedModel
from typing_extensions import override

from mixsd_lightning.context import ChatEncoder, Message
from mixsd_lightning.decoding.generation import Completion, generate_greedy
from mixsd_lightning.evaluation.scoring import contains_answer
from mixsd_lightning.evaluation.suites.base import Answer, Score, Suite, by_group
from mixsd_lightning.models import stop_token_ids

MAX_ANSWER_TOKENS = 20


@dataclass(frozen=True)
class Question:
    """A question with the short answers that count as right."""

    id: str
    group: str
    question: str
    answers: tuple[str, ...]


@cache
def everyday_questions() -> tuple[Question, ...]:
    """The 240 built-in questions: 10 groups from geography to everyday knowledge, 24 questions each."""
    lines = (files(__package__) / "everyday.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    return tuple(Question(row["id"], row["group"], row["question"], tuple(row["answers"])) for row in rows)


def answer_questions(
    model: PreTrainedModel, encoder: ChatEncoder, questions: Sequence[Question]
) -> tuple[list[list[int]], list[Completion]]:
    """Prompts and greedy answers of a model to questions."""
    prompts = [encoder.prompt([Message("user", question.question)]) for question in questions]
    stop_ids = stop_token_ids(model, encoder.end_of_turn_id)
    return prompts, generate_greedy(model, prompts, max_new_tokens=MAX_ANSWER_TOKENS, stop_ids=stop_ids, batch_size=128)


class EverydayProbe(Suite):
    """Share of the everyday questions whose answer contains an accepted answer, also by group."""

    name = "probe"

    @property
    @override
    def settings(self) -> dict[str, Any]:
        return {"questions": [[row.question, *row.answers] for row in everyday_questions()], "tokens": MAX_ANSWER_TOKENS}

    @override
    def measure(self, model: PreTrainedModel, encoder: ChatEncoder) -> dict[str, Score]:
        questions = everyday_questions()
        _, completions = answer_questions(model, encoder, questions)
        said = [encoder.decode(completion.token_ids) for completion in completions]
        self.answers = [
            Answer(question.question, text, contains_answer(text, question.answers))
            for question, text in zip(questions, said, strict=True)
        ]
        right = [float(answer.is_right) for answer in self.answers]
        return by_group(self.name, right, [question.group for question in questions])
