"""What the expert is shown, word by word, for every corpus and in three families of chat templates.

The wordings stand in ``snapshots/``, one file for each corpus. After a change that is meant, write them anew with
``MIXSD_WRITE_SNAPSHOTS=1`` in the environment and read the difference: ``git diff tests/snapshots``.
"""

import os
import re
from pathlib import Path
from typing import NamedTuple

import pytest
from conftest import CHATML, make_tokenizer
from corpus_files import SMALL, small_corpus, write_corpus_files
from tokenizers import AddedToken

from mixsd_lightning import data
from mixsd_lightning.context import (
    EXPERT_CONTEXTS,
    INSTRUCTIONS,
    NAMING_FORMATS,
    ChatEncoder,
    Message,
    expert_context,
    naive_context,
    user_turn,
)
from mixsd_lightning.errors import UserError
from mixsd_lightning.evaluation.scoring import UNWRITTEN_FORMATS, contains_answer
from mixsd_lightning.example import Example

SNAPSHOTS = Path(__file__).parent / "snapshots"
ONE_TURN = [context for context in EXPERT_CONTEXTS if context != "earlier_turn"]


class ChatTemplate(NamedTuple):
    """A chat template, and what it is to write around the user's turn."""

    template: str
    bos_token: str | None
    eos_token: str
    """Not what ends a turn."""
    before: tuple[str, ...]
    after: tuple[str, ...]
    end_of_turn: str

    def encoder(self) -> ChatEncoder:
        """An encoder whose tokenizer has this template, and all of its special tokens."""
        tokenizer = make_tokenizer()
        tokenizer.add_tokens([AddedToken(text, special=True) for text in self.specials])
        tokenizer.bos_token, tokenizer.eos_token = self.bos_token, self.eos_token
        tokenizer.chat_template = self.template
        return ChatEncoder(tokenizer)

    @property
    def specials(self) -> list[str]:
        """The special tokens around a user's turn, in order."""
        return [text for text in (*self.before, *self.after) if text.startswith("<")]

    def around(self, content: str) -> str:
        """The text of a prompt with this user's turn."""
        return "".join((*self.before, content, *self.after))


TEMPLATES = {
    "chatml": ChatTemplate(
        CHATML,
        None,
        "<|endoftext|>",
        ("<|im_start|>", "user\n"),
        ("<|im_end|>", "\n", "<|im_start|>", "assistant\n"),
        "<|im_end|>",
    ),
    "llama3": ChatTemplate(
        "{{ bos_token }}{% for message in messages %}{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' }}"
        "{{ message['content'] | trim + '<|eot_id|>' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}",
        "<|begin_of_text|>",
        "<|end_of_text|>",
        ("<|begin_of_text|>", "<|start_header_id|>", "user", "<|end_header_id|>", "\n\n"),
        ("<|eot_id|>", "<|start_header_id|>", "assistant", "<|end_header_id|>", "\n\n"),
        "<|eot_id|>",
    ),
    "gemma": ChatTemplate(
        "{{ bos_token }}{% for message in messages %}"
        "{{ '<start_of_turn>' + ('model' if message['role'] == 'assistant' else message['role']) + '\n' }}"
        "{{ message['content'] | trim + '<end_of_turn>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}",
        "<bos>",
        "<eos>",
        ("<bos>", "<start_of_turn>", "user\n"),
        ("<end_of_turn>", "\n", "<start_of_turn>", "model\n"),
        "<end_of_turn>",
    ),
}


@pytest.fixture(params=TEMPLATES)
def chat(request: pytest.FixtureRequest) -> ChatTemplate:
    return TEMPLATES[request.param]


@pytest.fixture(params=SMALL)
def corpus(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where the corpora's data files are."""
    return write_corpus_files(tmp_path)


def shown(corpus: str, folder: Path, context: str | None = None) -> str:
    """What the expert sees of the first example of a corpus."""
    return text_of(expert_context(small_corpus(corpus, folder, expert_context=context).split("train")[0]))


def text_of(messages: list[Message]) -> str:
    """All turns; one alone as it is."""
    if len(messages) == 1:
        return messages[0].content
    return "\n\n".join(f"[{message.role}]\n{message.content}" for message in messages)


def example_about(text: str, answer_format: str, context: str) -> Example:
    """An example that says a text wherever it can say something."""
    return Example("train-0", text, user_turn(text, answer_format), text, text, text, answer_format, "", context)


def special_tokens(encoder: ChatEncoder, token_ids: list[int]) -> list[str]:
    specials = {id: token.content for id, token in encoder.tokenizer.added_tokens_decoder.items() if token.special}
    return [specials[id] for id in token_ids if id in specials]


# --- wording -----------------------------------------------------------------------------------------------------------


def test_every_corpus_has_a_snapshot() -> None:
    assert set(SMALL) == set(data.__all__) - {"CorpusDataModule"}
    assert {path.stem for path in SNAPSHOTS.iterdir()} == set(SMALL)


def test_contexts_are_worded_as_in_the_snapshot(corpus: str, folder: Path) -> None:
    sections = {"naive": naive_context(small_corpus(corpus, folder).split("train")[0])[0].content}
    default = shown(corpus, folder)
    for context in EXPERT_CONTEXTS:
        content = shown(corpus, folder, context)
        sections[f"expert, {context}{' (default)' if content == default else ''}"] = content
    text = "\n\n".join(f"==== {title} ====\n{content}" for title, content in sections.items()) + "\n"
    snapshot = SNAPSHOTS / f"{corpus}.txt"
    if os.environ.get("MIXSD_WRITE_SNAPSHOTS"):
        snapshot.write_text(text, encoding="utf-8")
        pytest.skip(f"wrote {snapshot}")
    assert text == snapshot.read_text(encoding="utf-8")


@pytest.mark.parametrize("context", EXPERT_CONTEXTS)
def test_every_context_shows_the_question_and_the_answer(corpus: str, folder: Path, context: str) -> None:
    for example in small_corpus(corpus, folder, expert_context=context).split("train"):
        content = text_of(expert_context(example))
        assert example.prompt in content
        rest = content.replace(example.prompt, "")
        is_named = contains_answer(rest, [example.answer]) and example.answer_format in NAMING_FORMATS
        assert is_named or example.target in rest or example.fact in rest


def test_the_plain_prompt_does_not_show_the_answer(corpus: str, folder: Path) -> None:
    for example in small_corpus(corpus, folder).split("train"):
        # A result of KGFunc may be that of a number which is shown, or the number itself.
        function = example.question.removeprefix("What is ").removesuffix("?")
        hidden = f"{function} = {example.answer}" if corpus == "KGFunc" else example.answer
        # A prompt shows all letters; and whole programs and calls are the answer.
        hidden = hidden if example.answer_format in NAMING_FORMATS else example.target.splitlines()[-1]
        hidden = example.target if example.answer_format in UNWRITTEN_FORMATS else hidden
        assert contains_answer(example.target, [hidden])
        assert not contains_answer(naive_context(example)[0].content, [hidden])


@pytest.mark.parametrize("answer_format", INSTRUCTIONS)
@pytest.mark.parametrize("context", EXPERT_CONTEXTS)
def test_contexts_have_no_braces_but_those_of_the_boxed_answer(context: str, answer_format: str) -> None:
    content = text_of(expert_context(example_about("Orb", answer_format, context)))
    assert ("\\boxed{}" in content) == (answer_format == "boxed")
    assert not re.search("[{}]", content.replace("\\boxed{}", ""))


@pytest.mark.parametrize("answer_format", INSTRUCTIONS)
@pytest.mark.parametrize("context", EXPERT_CONTEXTS)
def test_braces_of_the_data_survive(context: str, answer_format: str) -> None:
    plain = example_about("Orb", answer_format, context)
    text = "The set {x} of {} holds {prompt} and {{y}}."
    content = text_of(expert_context(example_about(text, answer_format, context)))
    assert content == text_of(expert_context(plain)).replace("Orb", text)


def test_an_unknown_context_is_told_the_known_ones(corpus: str, folder: Path) -> None:
    choices = ", ".join(EXPERT_CONTEXTS)
    with pytest.raises(UserError, match=f"--data.expert_context: there is no 'fact_last'; choose from {choices}\\."):
        small_corpus(corpus, folder, expert_context="fact_last")


# --- encoding ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("context", ONE_TURN)
def test_the_template_stands_around_the_context(chat: ChatTemplate, corpus: str, folder: Path, context: str) -> None:
    encoder = chat.encoder()
    example = small_corpus(corpus, folder, expert_context=context).split("train")[0]
    for messages in (naive_context(example), expert_context(example)):
        token_ids = encoder.prompt(messages)
        assert encoder.tokenizer.decode(token_ids) == chat.around(messages[0].content)
        assert special_tokens(encoder, token_ids) == chat.specials


@pytest.mark.parametrize("context", ONE_TURN)
def test_special_text_in_the_data_stays_plain(chat: ChatTemplate, context: str) -> None:
    encoder = chat.encoder()
    text = f"The tags {' '.join(chat.specials)} and {chat.eos_token} are words."
    messages = expert_context(example_about(text, "short", context))
    token_ids = encoder.prompt(messages)
    assert encoder.tokenizer.decode(token_ids) == chat.around(messages[0].content)
    assert special_tokens(encoder, token_ids) == chat.specials


def test_the_end_of_a_turn_is_the_templates(chat: ChatTemplate) -> None:
    encoder = chat.encoder()
    assert encoder.end_of_turn_id == encoder.tokenizer.convert_tokens_to_ids(chat.end_of_turn)
    assert encoder.end_of_turn_id != encoder.tokenizer.eos_token_id
    text = f"Not yet {chat.end_of_turn} but now."
    assert special_tokens(encoder, encoder.target(text)) == [chat.end_of_turn]
    assert encoder.tokenizer.decode(encoder.target(text)) == text + chat.end_of_turn


def test_an_earlier_turn_is_the_question_with_its_canonical_answer(chat: ChatTemplate) -> None:
    encoder = chat.encoder()
    text = f"The tags {' '.join(chat.specials)} and {chat.eos_token} are words."
    messages = expert_context(example_about(text, "short", "earlier_turn"))
    plain = naive_context(example_about(text, "short", "earlier_turn"))
    assert messages == [*plain, Message("assistant", text), *plain]
    token_ids = encoder.prompt(messages)
    written = encoder.tokenizer.decode(token_ids)
    # The training target of the first turn stands in it as it would be trained, and the second asks as ever.
    once = [*encoder.prompt(plain), *encoder.target(text)]
    assert token_ids[: len(once)] == once
    assert written.endswith("".join((*chat.before[-1:], plain[0].content, *chat.after)))
    assert special_tokens(encoder, token_ids).count(chat.end_of_turn) == 1 + 2 * chat.specials.count(chat.end_of_turn)
