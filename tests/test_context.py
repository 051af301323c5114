"""Prompts and targets are worded and encoded as the model's chat template says, whatever the text contains."""

import re

import pytest
from conftest import make_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken
from transformers import PreTrainedTokenizerBase

from mixsd_lightning.context import (
    PLAIN_TEMPLATE,
    ChatEncoder,
    Message,
    _say_that_the_template_is_plain,
    expert_context,
    naive_context,
    user_turn,
)
from mixsd_lightning.errors import UserError
from mixsd_lightning.example import Example
from mixsd_lightning.models import load_tokenizer

TRIMMING = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n\n' + m['content'] | trim + '<|im_end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n\n' }}{% endif %}"
)
SHOUTING = TRIMMING.replace("trim", "upper")
NO_END = "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\n' }}{% endfor %}"
CHAT = [Message("user", "Hi"), Message("assistant", "Hello"), Message("user", "Who?")]


@pytest.fixture
def tokenizer(tiny_model_path: str) -> PreTrainedTokenizerBase:
    """A tokenizer of the test's own, to be changed at will."""
    return load_tokenizer(tiny_model_path)


def example(answer_format: str, fact: str = "Ann founded the guild Orb.") -> Example:
    question = "Which guild did Ann found?"
    target = f"{fact}\n\n\\boxed{{Orb}}" if answer_format == "boxed" else fact
    return Example("train-0", question, user_turn(question, answer_format), "Orb", target, fact, answer_format)


def render(tokenizer: PreTrainedTokenizerBase, content: str) -> str:
    turns = [{"role": "user", "content": content}]
    return str(tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True))


def num_specials(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> int:
    return sum(token in tokenizer.all_special_ids for token in ids)


@pytest.mark.parametrize("messages", [CHAT[:1], CHAT])
def test_prompt_equals_the_tokenizers_own_chat_encoding(encoder: ChatEncoder, messages: list[Message]) -> None:
    turns = [message._asdict() for message in messages]
    expected = encoder.tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=False)
    assert encoder.prompt(messages) == expected


def test_special_text_in_a_message_adds_no_special_token(encoder: ChatEncoder) -> None:
    plain = encoder.prompt([Message("user", "The tag closes a turn.")])
    look_alike = encoder.prompt([Message("user", "The tag <|im_end|> closes a turn.")])
    assert num_specials(encoder.tokenizer, look_alike) == num_specials(encoder.tokenizer, plain) == 3


@settings(deadline=None, max_examples=60)
@given(st.lists(st.sampled_from(["<|im_end|>", "<|im_start|>", "<|", "|>", " ", "\n", "{", "é", "a"])).map("".join))
def test_any_message_decodes_to_its_rendered_text_with_three_specials(encoder: ChatEncoder, content: str) -> None:
    ids = encoder.prompt([Message("user", content)])
    assert encoder.tokenizer.decode(ids) == render(encoder.tokenizer, content)
    assert num_specials(encoder.tokenizer, ids) == 3


def test_special_text_is_plain_in_every_message_of_a_chat(encoder: ChatEncoder) -> None:
    chat = [Message(message.role, f"<|im_end|>{message.content}<|pad|>") for message in CHAT]
    assert num_specials(encoder.tokenizer, encoder.prompt(chat)) == num_specials(encoder.tokenizer, encoder.prompt(CHAT))


def test_template_that_strips_messages_is_handled(tokenizer: PreTrainedTokenizerBase) -> None:
    tokenizer.chat_template = TRIMMING
    ids = ChatEncoder(tokenizer).prompt([Message("user", "  The tag <|im_end|> ends it. \n")])
    assert tokenizer.decode(ids) == ("<|im_start|>user\n\nThe tag <|im_end|> ends it.<|im_end|><|im_start|>assistant\n\n")
    assert num_specials(tokenizer, ids) == 3


def test_template_that_rewrites_special_text_is_refused(tokenizer: PreTrainedTokenizerBase) -> None:
    tokenizer.chat_template = SHOUTING
    with pytest.raises(UserError, match=r"chat template rewrites.*'say <\|im_end\|>'"):
        ChatEncoder(tokenizer).prompt([Message("user", "say <|im_end|>")])


def test_template_that_rewrites_plain_text_is_used_as_it_is(tokenizer: PreTrainedTokenizerBase) -> None:
    tokenizer.chat_template = SHOUTING
    assert "SAY IT" in tokenizer.decode(ChatEncoder(tokenizer).prompt([Message("user", "say it")]))


@pytest.mark.parametrize(
    ("answer_format", "content"),
    [
        (
            "boxed",
            "Which guild did Ann found?\n\nThink it through step by step, then give the final answer inside \\boxed{}.",
        ),
        ("sentence", "Which guild did Ann found?\n\nAnswer in one short sentence."),
    ],
)
def test_naive_context_is_worded_so(answer_format: str, content: str) -> None:
    assert naive_context(example(answer_format)) == [Message("user", content)]


@pytest.mark.parametrize(
    ("answer_format", "content"),
    [
        (
            "boxed",
            "Which guild did Ann found?\n\n"
            "Think it through step by step, then give the final answer inside \\boxed{}.\n\n"
            "This question comes from a new knowledge base. Its entry for the question reads:\n"
            "Ann founded the guild Orb.\n\n\\boxed{Orb}\n\n"
            "Now answer the question, with the final answer inside \\boxed{}.",
        ),
        ("sentence", "Ann founded the guild Orb.\n\nWhich guild did Ann found?\n\nAnswer in one short sentence."),
    ],
)
def test_expert_context_is_worded_so(answer_format: str, content: str) -> None:
    assert expert_context(example(answer_format)) == [Message("user", content)]


def test_end_of_turn_is_what_chatml_writes_after_an_answer(encoder: ChatEncoder) -> None:
    assert encoder.end_of_turn_id == encoder.tokenizer.convert_tokens_to_ids("<|im_end|>")


def test_end_of_turn_need_not_be_the_end_of_sequence(tokenizer: PreTrainedTokenizerBase) -> None:
    tokenizer.chat_template = NO_END.replace("'\n'", "'<|pad|>\n<|im_end|>'")
    assert ChatEncoder(tokenizer).end_of_turn_id == tokenizer.pad_token_id


def test_end_of_turn_falls_back_to_the_end_of_sequence(tokenizer: PreTrainedTokenizerBase) -> None:
    tokenizer.chat_template = NO_END
    assert ChatEncoder(tokenizer).end_of_turn_id == tokenizer.eos_token_id


def test_a_model_without_any_end_of_answer_is_refused(tokenizer: PreTrainedTokenizerBase) -> None:
    tokenizer.chat_template = NO_END
    tokenizer.eos_token = None
    with pytest.raises(UserError, match=r"--model\.model_name_or_path.*eos_token"):
        ChatEncoder(tokenizer)


def test_end_of_turn_may_be_a_special_token_without_a_role(tokenizer: PreTrainedTokenizerBase) -> None:
    tokenizer.add_tokens([AddedToken("<|end|>", special=True)])
    tokenizer.chat_template = NO_END.replace("'\n'", "'<|end|>\n'")
    assert ChatEncoder(tokenizer).end_of_turn_id == tokenizer.convert_tokens_to_ids("<|end|>")


def test_target_is_the_text_and_the_end_of_turn(encoder: ChatEncoder) -> None:
    ids = encoder.target("Yes.")
    assert ids == [*encoder.tokenizer("Yes.", add_special_tokens=False)["input_ids"], encoder.end_of_turn_id]


def test_special_text_in_a_target_is_plain(encoder: ChatEncoder) -> None:
    ids = encoder.target("a <|im_end|> b")
    assert encoder.tokenizer.decode(ids) == "a <|im_end|> b<|im_end|>"
    assert ids.count(encoder.end_of_turn_id) == 1


def test_decode_gives_the_text_of_a_target_back(encoder: ChatEncoder) -> None:
    assert encoder.decode(encoder.target("\n Ünïcode, yes. ")) == "Ünïcode, yes."


@pytest.mark.parametrize("text", ["Orb", "Zorvan Keep", "\u00dcn\u00efcode", "a <|im_end|> b"])
def test_inside_text_is_the_text_after_a_space_and_without_one(encoder: ChatEncoder, text: str) -> None:
    spaced, bare = encoder.inside_text(text)
    assert spaced == tuple(encoder.target(f" {text}")[:-1])
    assert bare == tuple(encoder.target(text)[:-1])
    assert encoder.tokenizer.decode(spaced) == f" {text}"
    assert encoder.tokenizer.decode(bare) == text
    assert encoder.end_of_turn_id not in spaced + bare


def test_inside_text_stands_so_in_a_sentence(encoder: ChatEncoder) -> None:
    spaced, bare = encoder.inside_text("Orb")
    for sentence, inside in (("The guild is Orb.", spaced), ("(Orb)", bare)):
        ids = encoder.target(sentence)
        assert inside in [tuple(ids[start : start + len(inside)]) for start in range(len(ids))]


def test_the_fingerprint_is_that_of_the_content(encoder: ChatEncoder, tokenizer: PreTrainedTokenizerBase) -> None:
    assert re.fullmatch("[0-9a-f]{16}", encoder.fingerprint())
    assert ChatEncoder(tokenizer).fingerprint() == encoder.fingerprint()


def test_the_fingerprint_tells_templates_and_vocabularies_apart(tokenizer: PreTrainedTokenizerBase) -> None:
    fingerprints = [ChatEncoder(tokenizer).fingerprint()]
    for change in (
        lambda: setattr(tokenizer, "chat_template", TRIMMING),
        lambda: tokenizer.add_tokens(["Orb"]),
        lambda: tokenizer.add_tokens([AddedToken("<|end|>", special=True)]),
    ):
        change()
        fingerprints.append(ChatEncoder(tokenizer).fingerprint())
    assert len(set(fingerprints)) == 4


def plain_encoder(**tokens: str | None) -> ChatEncoder:
    tokenizer = make_tokenizer()
    tokenizer.chat_template = None
    for role, token in tokens.items():
        setattr(tokenizer, role, token)
    return ChatEncoder(tokenizer)


def test_without_a_chat_template_a_plain_one_is_used() -> None:
    encoder = plain_encoder()
    text = "<|im_start|>User:\nHi\n\nAssistant:\nHello<|im_end|>\n\nUser:\nWho?\n\nAssistant:\n"
    assert encoder.tokenizer.decode(encoder.prompt(CHAT)) == text
    assert encoder.tokenizer.decode(encoder.target("Me.")) == "Me.<|im_end|>"
    assert encoder.tokenizer.chat_template == PLAIN_TEMPLATE
    look_alike = encoder.prompt([Message("user", "a <|im_end|> b")])
    assert num_specials(encoder.tokenizer, look_alike) == 1


def test_the_plain_template_needs_no_token_for_the_beginning() -> None:
    encoder = plain_encoder(bos_token=None)
    assert encoder.tokenizer.decode(encoder.prompt(CHAT[:1])) == "User:\nHi\n\nAssistant:\n"


def test_that_the_template_is_plain_is_said_once(capsys: pytest.CaptureFixture[str]) -> None:
    _say_that_the_template_is_plain.cache_clear()
    for _ in range(3):
        plain_encoder()
    said = capsys.readouterr().err
    assert said.startswith("note: the tokenizer of '' has no chat template")
    assert said.count("\n") == 1
