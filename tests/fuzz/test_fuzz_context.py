"""Any text in any context is encoded as it stands, between special tokens that are the template's."""

import random

from fuzz_cases import CLEAN_TEXTS, cases
from hypothesis import given
from hypothesis import strategies as st

from mixsd_lightning.context import (
    EXPERT_CONTEXTS,
    INSTRUCTIONS,
    ChatEncoder,
    Message,
    expert_context,
    naive_context,
    user_turn,
    with_background,
)
from mixsd_lightning.demonstrations.augmentation import drop_text
from mixsd_lightning.demonstrations.contexts import demonstrations_text, solved_samples, with_demonstrations, with_text_before
from mixsd_lightning.example import Example

CHATS = st.lists(st.builds(Message, st.sampled_from(["system", "user", "assistant"]), CLEAN_TEXTS), min_size=1, max_size=4)
FORMATS = st.sampled_from(sorted({*INSTRUCTIONS} - {"letter"}))
EXAMPLES = st.builds(
    Example, st.just("a"), CLEAN_TEXTS, CLEAN_TEXTS, CLEAN_TEXTS, CLEAN_TEXTS, CLEAN_TEXTS, FORMATS, CLEAN_TEXTS,
    st.sampled_from(["", *EXPERT_CONTEXTS]),
)  # fmt: skip


def by_bytes(encoder: ChatEncoder, text: str) -> list[int]:
    """Token ids of plain text: the tests' tokenizer has one for each byte."""
    return [id for letter in text for id in _letter(encoder, letter)]


def _letter(encoder: ChatEncoder, letter: str) -> list[int]:
    return list(encoder.tokenizer(letter, add_special_tokens=False)["input_ids"])


@cases(450)
@given(CHATS)
def test_a_chat_is_the_template_around_its_bytes(encoder: ChatEncoder, chat: list[Message]) -> None:
    """The slow way: every letter by itself, and the template's special tokens by name."""
    start, end = encoder.tokenizer.convert_tokens_to_ids(["<|im_start|>", "<|im_end|>"])
    expected: list[int] = []
    for role, content in chat:
        expected += [start, *by_bytes(encoder, f"{role}\n{content}"), end, *by_bytes(encoder, "\n")]
    expected += [start, *by_bytes(encoder, "assistant\n")]
    assert encoder.prompt(chat) == expected


@cases(300)
@given(CLEAN_TEXTS)
def test_a_target_is_its_bytes_and_its_end(encoder: ChatEncoder, text: str) -> None:
    assert encoder.target(text) == [*by_bytes(encoder, text), encoder.end_of_turn_id]
    assert encoder.decode(encoder.target(text)) == text.strip()
    assert encoder.target(encoder.decode(encoder.target(text))) == encoder.target(text.strip())
    assert [list(ids) for ids in encoder.inside_text(text)] == [by_bytes(encoder, " " + text), by_bytes(encoder, text)]


@cases(400)
@given(EXAMPLES)
def test_what_the_expert_sees_more_is_the_knowledge(example: Example) -> None:
    (naive,), (*earlier, expert) = naive_context(example), expert_context(example)
    assert naive == Message("user", example.prompt)
    if example.expert_context == "earlier_turn":
        assert (earlier, expert) == ([naive, Message("assistant", example.target)], naive)
        return
    assert not earlier
    template = EXPERT_CONTEXTS[example.expert_context] if example.expert_context else None
    assert example.prompt in expert.content
    assert example.target in expert.content or example.fact in expert.content
    if template is not None:
        for name, text in (("{target}", example.target), ("{fact}", example.fact)):
            assert name not in template or text in expert.content
        # Put in by hand, one after the other, behind marks that are in no text.
        marked = template
        for name in ("prompt", "target", "fact", "boxed"):
            marked = marked.replace(f"{{{name}}}", f"\ue000{name}\ue000")
        boxed = ", with the final answer inside \\boxed{}" if example.answer_format == "boxed" else ""
        values = {"prompt": example.prompt, "target": example.target, "fact": example.fact, "boxed": boxed}
        assert expert.content == "".join(
            values.get(part, part) if odd % 2 else part for odd, part in enumerate(marked.split("\ue000"))
        )


@cases(200)
@given(st.lists(EXAMPLES, max_size=3), EXAMPLES)
def test_demonstrations_stand_before_the_task_as_they_are(shown: list[Example], example: Example) -> None:
    (message,) = with_demonstrations(example, shown)
    assert message.content.endswith(example.prompt)
    if not shown:
        assert message.content == example.prompt
    rest = solved_samples(shown)
    for number, one in enumerate(shown, 1):
        beginning = f"Sample {number}:\n{one.question}\n\nAnswer {number}:\n{one.target}"
        assert rest.startswith(beginning)
        rest = rest.removeprefix(beginning).removeprefix("\n\n")
    assert rest == ""
    assert with_text_before(example, demonstrations_text(shown)) == [message]


@cases(150)
@given(CLEAN_TEXTS, st.lists(CLEAN_TEXTS, max_size=3), st.sampled_from(sorted(INSTRUCTIONS)))
def test_a_turn_ends_with_how_to_answer(question: str, lines: list[str], answer_format: str) -> None:
    turn = with_background(lines, user_turn(question, answer_format))
    assert turn.endswith(f"{question}\n\n{INSTRUCTIONS[answer_format]}")
    assert all(f"- {line}\n" in turn for line in lines)


@cases(150)
@given(CLEAN_TEXTS, st.floats(0, 1), st.integers(0, 99))
def test_a_text_from_which_a_run_is_dropped_is_still_text(encoder: ChatEncoder, text: str, share: float, seed: int) -> None:
    found = drop_text(text, encoder, share, random.Random(seed))
    assert found == drop_text(text, encoder, share, random.Random(seed))
    assert len(found.encode()) <= len(text.encode())
    assert drop_text(text, encoder, 0.0, random.Random(seed)) == text
