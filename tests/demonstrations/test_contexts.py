"""What a teacher is shown besides the task."""

from dataclasses import replace

import pytest
from solved import FORMATS, choice, sentence

from mixsd_lightning.context import EXPERT_CONTEXTS, expert_context, naive_context
from mixsd_lightning.demonstrations.contexts import (
    demonstrations_text,
    instruction_text,
    negative_context,
    with_demonstrations,
    with_instruction,
    with_text_before,
)
from mixsd_lightning.demonstrations.wrong_targets import WrongDemonstration, WrongTargets


def test_samples_stand_in_order_before_the_plain_prompt() -> None:
    example, first, second = sentence(0), choice(1), sentence(2)
    (message,) = with_demonstrations(example, [first, second])
    assert message.role == "user"
    assert message.content.endswith(f"\n\n{example.prompt}")
    places = [message.content.index(text) for text in (first.question, first.target, second.question, second.target)]
    assert places == sorted(places)
    assert "Sample 1:" in message.content and "Sample 2:" in message.content
    assert first.prompt not in message.content  # the bare question, without how to answer
    assert message.content.count(example.prompt) == 1


@pytest.mark.parametrize("make", FORMATS)
def test_no_auxiliary_context_has_the_answer_to_the_task(make) -> None:
    example = make(0)
    for context in (with_demonstrations(example, [make(1), make(2)]), with_instruction(example, "Read with care.")):
        assert example.target not in context[0].content
        assert example.fact not in context[0].content


def test_without_demonstrations_the_plain_prompt_is_left() -> None:
    assert with_demonstrations(sentence(0), []) == naive_context(sentence(0))


def test_an_instruction_stands_before_the_plain_prompt() -> None:
    example = sentence(0)
    (message,) = with_instruction(example, "Read the question twice.")
    assert message.content.index("Read the question twice.") < message.content.index(example.prompt)
    assert message.content.endswith(f"\n\n{example.prompt}")


def test_the_text_before_a_task_can_be_changed_on_its_own() -> None:
    example, shown = sentence(0), [sentence(1)]
    assert with_text_before(example, demonstrations_text(shown)) == with_demonstrations(example, shown)
    assert with_text_before(example, instruction_text("Be brief.")) == with_instruction(example, "Be brief.")
    assert with_text_before(example, "only this")[0].content.startswith("only this\n\n")


@pytest.mark.parametrize("template", EXPERT_CONTEXTS)
@pytest.mark.parametrize("make", FORMATS)
def test_good_and_bad_prompts_differ_in_content_and_not_in_layout(make, template: str) -> None:
    examples = [make(number) for number in range(3)]
    example = replace(examples[0], expert_context=template)
    wrong = WrongTargets(examples, seed=0).make(example)
    good, bad = expert_context(example), negative_context(example, wrong)
    assert good != bad

    def layout(content: str, target: str, fact: str) -> str:
        content = content.replace(example.prompt, "PROMPT")
        for text in sorted({target, fact}, key=len, reverse=True):
            content = content.replace(text, "KNOWN")
        return content

    assert layout(good[0].content, example.target, example.fact) == layout(bad[0].content, wrong.target, wrong.fact)


def test_a_negative_context_shows_the_wrong_fact() -> None:
    wrong = WrongDemonstration("It is the Orvek Union.", "Orvek Union", "Tower 0 is owned by the Orvek Union.")
    (message,) = negative_context(sentence(0), wrong)
    assert "owned by the Orvek Union" in message.content
    assert "Tavrin Guild" not in message.content
