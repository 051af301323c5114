"""Wrong demonstrations that the model writes, and what becomes of those that it does not."""

import random
from collections.abc import Callable, Sequence

import pytest
from solved import FORMATS, choice, code, sentence
from transformers import PreTrainedModel

from mixsd_lightning.context import ChatEncoder
from mixsd_lightning.demonstrations import negatives
from mixsd_lightning.demonstrations.negatives import wrong_demonstrations
from mixsd_lightning.demonstrations.writing import Writing
from mixsd_lightning.demonstrations.wrong_targets import WrongTargets, is_wrong
from mixsd_lightning.example import Example

Answers = Callable[[str, str], Writing]
"""From a request and its key to what the model writes."""


class Writer:
    """Stands in for the model and keeps what it is asked."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, answers: Answers) -> None:
        self.asked: list[list[tuple[str, str]]] = []
        self._answers = answers
        monkeypatch.setattr(negatives, "write", self._write)

    def _write(self, model: object, encoder: object, requests: Sequence[str], keys: Sequence[str], *rest, **options):
        self.asked.append(list(zip(requests, keys, strict=True)))
        return [self._answers(request, key) for request, key in self.asked[-1]]


def example_of(key: str, examples: Sequence[Example]) -> Example:
    (example,) = (example for example in examples if f"|{example.id}|" in key)
    return example


def test_what_the_model_writes_counts_if_it_is_the_wrong_answer_that_it_was_asked_for(
    monkeypatch: pytest.MonkeyPatch, tiny_model: PreTrainedModel, encoder: ChatEncoder
) -> None:
    examples = [sentence(0), sentence(1)]
    writer = Writer(monkeypatch, lambda request, key: Writing("I say it is the Orvek Union.", True))
    found = wrong_demonstrations(tiny_model, encoder, examples, 0)
    assert found["s0"].is_written
    assert found["s0"].target == "I say it is the Orvek Union."
    assert found["s0"].answer == "Orvek Union"
    assert found["s0"].fact == "Tower 0 is owned by the Orvek Union."
    assert not found["s1"].is_written  # there it is right
    assert found["s1"].target == "Tower 1 is owned by the Tavrin Guild."
    assert [len(asked) for asked in writer.asked] == [2, 1, 1]  # of s1 three attempts
    keys = [key for asked in writer.asked for _, key in asked]
    assert len(set(keys)) == len(keys)
    first = {key.split("|")[2]: request for request, key in writer.asked[0]}
    assert "Tower 0 is owned by the Orvek Union." in first["s0"]  # what it is to believe
    assert examples[0].prompt in first["s0"] and "Tavrin" not in first["s0"]


@pytest.mark.parametrize(
    ("text", "is_finished"),
    [("It is the Orvek Union.", False), ("", True), ("no name at all", True), ("It is the Sulmar Society.", True)],
    ids=["cut off", "empty", "no answer", "another answer"],
)
def test_what_fails_a_check_is_replaced_by_rule(
    text: str, is_finished: bool, monkeypatch: pytest.MonkeyPatch, tiny_model: PreTrainedModel, encoder: ChatEncoder
) -> None:
    examples = [sentence(0), sentence(1)]
    Writer(monkeypatch, lambda request, key: Writing(text, is_finished))
    found = wrong_demonstrations(tiny_model, encoder, examples, 0)
    assert found["s0"] == WrongTargets(examples, 0).make(examples[0])


def test_a_later_attempt_counts_and_no_more_are_made(
    monkeypatch: pytest.MonkeyPatch, tiny_model: PreTrainedModel, encoder: ChatEncoder
) -> None:
    writer = Writer(monkeypatch, lambda request, key: Writing("B\nAnswer: " + ("B" if key.endswith("|1") else "A"), True))
    (only,) = wrong_demonstrations(tiny_model, encoder, [choice(2)], 1, num_attempts=5).values()
    # Seed 1 asks for A or for B; either is written at the first or the second attempt.
    assert only.is_written
    assert len(writer.asked) == {"A": 1, "B": 2}[only.answer]


def test_code_is_written_again_with_a_mistake(
    monkeypatch: pytest.MonkeyPatch, tiny_model: PreTrainedModel, encoder: ChatEncoder
) -> None:
    examples = [code(number) for number in range(6)]
    subtle = "```python\ndef add_0(x):\n    return x - 1\n```"
    writer = Writer(monkeypatch, lambda request, key: Writing(f"With a bug:\n{subtle}\nDone.", True))
    found = wrong_demonstrations(tiny_model, encoder, examples[:2], 0)
    assert found["p0"].target == subtle
    assert found["p0"].answer == "def add_0(x):\n    return x - 1\n"
    asked = {key.split("|")[2]: request for request, key in writer.asked[0]}
    assert examples[0].target in asked["p0"]
    mistakes = {next(m for m in negatives._MISTAKES["code"] if m in negatives._request(e, found["p0"], 0)) for e in examples}
    assert len(mistakes) > 1


def test_a_model_that_cannot_write_leaves_no_example_without_one(
    tiny_model: PreTrainedModel, encoder: ChatEncoder, caplog: pytest.LogCaptureFixture
) -> None:
    examples = [make(number) for make in FORMATS for number in range(3)]
    with caplog.at_level("INFO"):
        found = wrong_demonstrations(tiny_model, encoder, examples, 0, num_attempts=1, max_new_tokens=4)
    assert set(found) == {example.id for example in examples}
    assert all(is_wrong(example, found[example.id].target) for example in examples)
    (line,) = (record.message for record in caplog.records if "Wrong demonstrations" in record.message)
    assert line.startswith("Wrong demonstrations: 0 of 18 written by the model in 18 rollouts, 18 made by rule.")


def test_without_attempts_all_are_made_by_rule(
    monkeypatch: pytest.MonkeyPatch, tiny_model: PreTrainedModel, encoder: ChatEncoder
) -> None:
    writer = Writer(monkeypatch, lambda request, key: Writing("It is the Orvek Union.", True))
    found = wrong_demonstrations(tiny_model, encoder, [sentence(0), sentence(1)], 0, num_attempts=0)
    assert not writer.asked
    assert len(found) == 2


def test_the_work_is_done_once_whatever_the_order(
    monkeypatch: pytest.MonkeyPatch, tiny_model: PreTrainedModel, encoder: ChatEncoder
) -> None:
    examples = [sentence(number) for number in range(4)]
    writer = Writer(monkeypatch, lambda request, key: Writing(f"It is the {request[-9:]} Union.", True))
    first = wrong_demonstrations(tiny_model, encoder, examples, 0, num_attempts=1)
    again = wrong_demonstrations(tiny_model, encoder, random.Random(0).sample(examples, 4), 0, num_attempts=1, batch_size=1)
    assert again == first
    assert len(writer.asked) == 1
    wrong_demonstrations(tiny_model, encoder, examples, 1, num_attempts=1)
    wrong_demonstrations(tiny_model, encoder, examples[:3], 0, num_attempts=1)
    assert len(writer.asked) == 3


@pytest.mark.builtin_model
def test_the_builtin_model_writes_some(builtin_model: PreTrainedModel, builtin_encoder: ChatEncoder) -> None:
    examples = [sentence(number) for number in range(4)]
    found = wrong_demonstrations(builtin_model, builtin_encoder, examples, 0, max_new_tokens=40)
    assert any(wrong.is_written for wrong in found.values())
    for example in examples:
        assert is_wrong(example, found[example.id].target, found[example.id].answer)
