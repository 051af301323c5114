"""Instructions that the base model derives from examples."""

import random
from collections.abc import Sequence
from dataclasses import replace

import pytest
from solved import choice, sentence
from transformers import PreTrainedModel

from mixsd_lightning.context import ChatEncoder
from mixsd_lightning.demonstrations import induction
from mixsd_lightning.demonstrations.induction import choose_instructions, induced_instructions
from mixsd_lightning.demonstrations.writing import Writing
from mixsd_lightning.errors import UserError

EXAMPLES = [sentence(number) for number in range(6)]


class Writer:
    """Stands in for the model: writes these texts in turn and keeps what it is asked."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *texts: str) -> None:
        self.asked: list[list[str]] = []
        self.keys: list[list[str]] = []
        self._texts = texts
        monkeypatch.setattr(induction, "write", self._write)

    def _write(self, model: object, encoder: object, requests: Sequence[str], keys: Sequence[str], *rest, **options):
        self.asked.append(list(requests))
        self.keys.append(list(keys))
        return [Writing(self._texts[number % len(self._texts)], True) for number in range(len(requests))]


@pytest.mark.parametrize(("num_instructions", "demos", "num_groups"), [(100, 2, 3), (2, 2, 2), (1, 6, 1), (9, 4, 1)])
def test_groups_share_no_example(
    num_instructions: int,
    demos: int,
    num_groups: int,
    monkeypatch: pytest.MonkeyPatch,
    tiny_model: PreTrainedModel,
    encoder: ChatEncoder,
) -> None:
    writer = Writer(monkeypatch, "Be brief.")
    assert induced_instructions(tiny_model, encoder, EXAMPLES, num_instructions, demos, 0) == ["Be brief."] * num_groups
    (requests,) = writer.asked
    shown = [[example.id for example in EXAMPLES if example.target in request] for request in requests]
    assert [len(group) for group in shown] == [demos] * num_groups
    assert len({id for group in shown for id in group}) == demos * num_groups
    assert len(set(writer.keys[0])) == num_groups


def test_what_is_empty_or_tells_an_answer_is_dropped_and_counted(
    monkeypatch: pytest.MonkeyPatch, tiny_model: PreTrainedModel, encoder: ChatEncoder, caplog: pytest.LogCaptureFixture
) -> None:
    texts = ("Say who it is.", "", "Say that it is the  tavrin guild!", "The Tavrin Guilds are many.")
    Writer(monkeypatch, *texts)
    with caplog.at_level("INFO"):
        kept = induced_instructions(tiny_model, encoder, EXAMPLES[:4], 4, 1, 0)
    assert kept == [texts[0], texts[3]]  # the last has the answer as part of a longer word
    assert "Instructions: 2 of 4 kept, 1 empty, 1 dropped because they tell the answer" in caplog.text


def test_an_answer_of_a_few_characters_tells_nothing(
    monkeypatch: pytest.MonkeyPatch, tiny_model: PreTrainedModel, encoder: ChatEncoder
) -> None:
    Writer(monkeypatch, "Give A letter.", "Go to Rom.", "Go to Rome.")
    examples = [choice(0), replace(sentence(1), answer="Rom"), replace(sentence(2), answer="Rome")]
    assert induced_instructions(tiny_model, encoder, examples, 3, 1, 0) == ["Give A letter.", "Go to Rom."]


def test_no_usable_instruction_is_an_error(
    monkeypatch: pytest.MonkeyPatch, tiny_model: PreTrainedModel, encoder: ChatEncoder
) -> None:
    Writer(monkeypatch, "")
    with pytest.raises(UserError, match=r"--model.auxiliary_contexts induction: all 3 instructions"):
        induced_instructions(tiny_model, encoder, EXAMPLES, 3, 2, 0)


@pytest.mark.parametrize("num_examples", [0, 2])
def test_too_few_examples_are_an_error(num_examples: int, tiny_model: PreTrainedModel, encoder: ChatEncoder) -> None:
    with pytest.raises(UserError, match=rf"{num_examples} training examples are too few .*--model.demos_per_context 3"):
        induced_instructions(tiny_model, encoder, EXAMPLES[:num_examples], 3, 3, 0)


def test_the_work_is_done_once_whatever_the_order(
    monkeypatch: pytest.MonkeyPatch, tiny_model: PreTrainedModel, encoder: ChatEncoder
) -> None:
    writer = Writer(monkeypatch, "Be brief.", "Be kind.")
    first = induced_instructions(tiny_model, encoder, EXAMPLES, 3, 2, 0)
    assert induced_instructions(tiny_model, encoder, random.Random(0).sample(EXAMPLES, 6), 3, 2, 0, batch_size=1) == first
    assert len(writer.asked) == 1
    changed = [replace(EXAMPLES[0], target="Another."), *EXAMPLES[1:]]
    for examples, num_instructions, demos, seed in (
        (changed, 3, 2, 0),
        (EXAMPLES, 2, 2, 0),
        (EXAMPLES, 3, 1, 0),
        (EXAMPLES, 3, 2, 1),
    ):
        induced_instructions(tiny_model, encoder, examples, num_instructions, demos, seed)
    assert len(writer.asked) == 5


def test_what_a_random_model_writes_does_not_hang_on_the_batch(
    tiny_model: PreTrainedModel, encoder: ChatEncoder, tmp_path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = induced_instructions(tiny_model, encoder, EXAMPLES, 3, 2, 0, max_new_tokens=12)
    monkeypatch.setattr("mixsd_lightning.disk_cache.computed_dir", lambda: tmp_path / "another")
    assert induced_instructions(tiny_model, encoder, EXAMPLES, 3, 2, 0, max_new_tokens=12, batch_size=1) == first
    assert len(set(first)) == len(first)


def test_a_choice_hangs_on_seed_example_and_context_alone() -> None:
    instructions = [f"Instruction {number}." for number in range(50)]
    chosen = choose_instructions(instructions, EXAMPLES, 3, 0)
    assert [len(texts) for texts in chosen] == [3] * 6
    assert choose_instructions(instructions, EXAMPLES[::-1], 3, 0) == chosen[::-1]
    assert choose_instructions(instructions, EXAMPLES[2:3], 2, 0) == [chosen[2][:2]]
    assert choose_instructions(instructions, EXAMPLES, 3, 1) != chosen
    assert len({text for texts in chosen for text in texts}) > 9
    assert choose_instructions(["Only this."], EXAMPLES[:1], 1, 0) == [("Only this.",)]


@pytest.mark.builtin_model
def test_the_builtin_model_writes_an_instruction(builtin_model: PreTrainedModel, builtin_encoder: ChatEncoder) -> None:
    instructions = induced_instructions(builtin_model, builtin_encoder, EXAMPLES[:4], 4, 1, 0, max_new_tokens=40)
    assert instructions
    for text in instructions:
        assert len(text.split()) > 1
        assert not any(example.answer in text for example in EXAMPLES[:4])
