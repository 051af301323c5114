"""A user's own facts."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from typing_extensions import override

from mixsd_lightning.context import NAMING_FORMATS, user_turn
from mixsd_lightning.data.base import CorpusDataModule
from mixsd_lightning.data.wording import statement
from mixsd_lightning.errors import UserError
from mixsd_lightning.evaluation.scoring import extract_boxed, is_exact_match
from mixsd_lightning.example import Example
from mixsd_lightning.records import DataSet, Row, read_records

_SINGLE_TEXTS = ("question", "answer", "fact", "target", "subject")
FIELDS = (*_SINGLE_TEXTS, "paraphrases", "wrong_answers")
_MAX_CHARACTERS = 20_000


class Facts(CorpusDataModule):
    """Facts from a file of your own (JSON lines, a JSON list or CSV) or from a data set of the Hugging Face Hub.

    Of each record, `question` and `answer` are needed. Used where they are: `fact` (the knowledge as one sentence), `target` (the
    whole canonical answer), `subject`, `paraphrases` (other wordings of the question) and `wrong_answers` (that may be taken for the
    right one), both a list, or in CSV texts with `|` between them. A text may have 20,000 characters. Records of MixSD's published
    corpora (`messages`, `clear_answer`, `subject`) load as they are.

    Splits: `train` (asked again it is the memorization test) and `paraphrase`.
    """

    available_splits = ("train", "paraphrase")

    def __init__(
        self,
        file: str,
        fields: Mapping[str, str] | None = None,
        answer_format: str = "short",
        on_bad_row: str = "error",
        hub_split: str = "train",
        expert_context: str | None = None,
        batch_size: int = 16,
        eval_batch_size: int = 64,
        eval_splits: Sequence[str] = ("train",),
        max_eval_examples: int | None = None,
        seed: int = 42,
    ) -> None:
        """
        Args:
            file: Your file (.jsonl, .json or .csv, perhaps with .gz), or the name of a data set on the Hub (extra `hub`).
            fields: Your names of fields, where they differ: `{question: frage, answer: antwort}`.
            answer_format: `short` asks for the answer alone, `sentence` for a sentence with a name in it, `boxed` for reasoning
                and a boxed answer (for models from about 1B).
            on_bad_row: What becomes of a record that cannot be used: `error`, or `skip`, with a warning that counts them.
            hub_split: Split of the data set on the Hub.
            expert_context: How the expert is shown the fact; by default what suits the answer format.
            batch_size: Examples in a training batch, per device.
            eval_batch_size: Questions that are answered at once during validation.
            eval_splits: Splits that are answered at each validation.
            max_eval_examples: Ask at most this many questions of each split (a fixed random choice); all by default.
            seed: Decides the order of training examples.
        """
        super().__init__(batch_size, eval_batch_size, eval_splits, max_eval_examples, seed, expert_context)
        if answer_format not in NAMING_FORMATS:
            raise UserError(f"--data.answer_format: '{answer_format}' is none of {', '.join(NAMING_FORMATS)}.")
        if on_bad_row not in ("error", "skip"):
            raise UserError(f"--data.on_bad_row: '{on_bad_row}' is none of error, skip.")
        if unknown := sorted(set(fields or {}) - set(FIELDS)):
            raise UserError(f"--data.fields: there is no field '{unknown[0]}'; choose from {', '.join(FIELDS)}.")
        self.file = file
        self.fields = {name: name for name in FIELDS} | dict(fields or {})
        self.answer_format = answer_format
        self.on_bad_row = on_bad_row
        self.hub_split = hub_split

    @override
    def build_splits(self, names: Sequence[str]) -> dict[str, list[Example]]:
        train = [example for example, _ in self._usable]
        return {"train": train, "paraphrase": [again for _, others in self._usable for again in others]}

    @cached_property
    def _usable(self) -> list[tuple[Example, list[Example]]]:
        """Examples with their paraphrases."""
        usable, problems = self._read()
        counted = f"{len(problems)} of {len(problems) + len(usable)} records cannot be used"
        if problems and (self.on_bad_row == "error" or not usable):
            hint = "; --data.on_bad_row skip leaves them out" if usable else ""
            raise UserError(f"{problems[0]} In all, {counted}{hint}.")
        if problems:
            rank_zero_warn(f"{counted} and are left out; the first: {problems[0]}")
        examples = [example for example, _ in usable]
        missed = [e for e in examples if not is_exact_match(e.target, e.answer, e.question, e.answer_format)]
        if missed:
            rank_zero_warn(
                f"{len(missed)} of {len(examples)} targets do not count as right answers, the first that of "
                f"{missed[0].question[:80]!r}: in the answer format {missed[0].answer_format}, {missed[0].answer[:80]!r} is "
                "not found in it. Mend the target, or choose another --data.answer_format."
            )
        return usable

    def _read(self) -> tuple[list[tuple[Example, list[Example]]], list[UserError]]:
        """Examples with their paraphrases, and what is wrong with the other records."""
        usable: list[tuple[Example, list[Example]]] = []
        problems: list[UserError] = []
        asked: dict[str, str] = {}
        for row in self._rows():
            try:
                if isinstance(row, UserError):
                    raise row
                example, others = self._example(f"train-{len(usable) + len(problems)}", row)
                if example.prompt in asked:
                    raise row.wrong(f"asks the question of {asked[example.prompt]} again")
            except UserError as problem:
                problems.append(problem)
                continue
            asked[example.prompt] = row.where
            usable.append((example, others))
        return usable, problems

    def _rows(self) -> Sequence[Row | UserError]:
        path = Path(self.file).expanduser()
        if path.is_file():
            return list(read_records(path, "--data.file"))
        if path.suffix in (".jsonl", ".json", ".csv", ".gz", ".txt"):
            raise UserError(f"--data.file: there is no file '{self.file}'.")
        return DataSet("", self.file, hub_split=self.hub_split, option="--data.file").rows(None)

    def _example(self, example_id: str, row: Row) -> tuple[Example, list[Example]]:
        values = {name: row.fields.get(own) for name, own in self.fields.items()} | _published(row)
        texts = {name: _text(row, values[name], self.fields[name]) for name in _SINGLE_TEXTS}
        for name in ("question", "answer"):
            if not texts[name]:
                raise row.wrong(f"has no text in the field '{self.fields[name]}' (--data.fields can name another)")
        prompt = values.get("prompt")
        answer_format = "boxed" if prompt else self.answer_format
        example = Example(
            id=example_id,
            question=texts["question"],
            prompt=prompt or user_turn(texts["question"], answer_format),
            answer=texts["answer"],
            target=texts["target"] or self._target(texts),
            fact=texts["fact"] or statement(texts["question"], texts["answer"]),
            answer_format=answer_format,
            subject=texts["subject"],
            # A question with its answer is no sentence that a model can follow.
            expert_context="reference_solution" if answer_format == "short" and not texts["fact"] else "",
            wrong_answers=_texts(row, values["wrong_answers"], self.fields["wrong_answers"]),
        )
        others = [
            replace(example, id=f"paraphrase-{example_id}-{number}", question=text, prompt=user_turn(text, answer_format))
            for number, text in enumerate(_texts(row, values["paraphrases"], self.fields["paraphrases"]))
        ]
        return example, others

    def _target(self, texts: Mapping[str, str]) -> str:
        if self.answer_format == "boxed":
            return f"{texts['fact']}\n\n\\boxed{{{texts['answer']}}}".strip()
        return texts["fact"] if texts["fact"] and self.answer_format == "sentence" else texts["answer"]


def _published(row: Row) -> dict[str, Any]:
    """Fields of a record of MixSD's published corpora, a chat whose last turn has the boxed answer; none of other records."""
    messages = row.fields.get("messages")
    if messages is None:
        return {}
    try:
        turns = {message["role"]: message["content"] for message in messages}
        prompt, target = (_text(row, turns[role], "messages") for role in ("user", "assistant"))
    except (TypeError, KeyError) as error:
        raise row.wrong("has no user and assistant turn in the field 'messages'") from error
    answer = extract_boxed(target)
    if not prompt or not answer:
        raise row.wrong("has no question or no boxed answer in the field 'messages'")
    question, _, instruction = prompt.rpartition("\n\n")
    if not question or "\\boxed" not in instruction:
        question = prompt
    fact = row.fields.get("clear_answer")
    return {"question": question, "prompt": prompt, "answer": answer, "target": target, "fact": fact}


def _text(row: Row, value: Any, field: str) -> str:
    """A text, or a number written as text; empty where there is none."""
    if value is None:
        return ""
    is_number = type(value) is int or (isinstance(value, float) and math.isfinite(value))  # a bool is an int, too
    if not isinstance(value, str) and not is_number:
        raise row.wrong(f"has something else than a text in the field '{field}'")
    text = str(value).strip()
    if len(text) > _MAX_CHARACTERS:
        raise row.wrong(f"has {len(text)} characters in the field '{field}', where {_MAX_CHARACTERS} are allowed")
    return text


def _texts(row: Row, value: Any, field: str) -> tuple[str, ...]:
    """Several texts: a list, or texts with a bar between them."""
    several = value.split("|") if isinstance(value, str) else value if isinstance(value, list) else [value]
    return tuple(filter(None, (_text(row, one, field) for one in several)))
