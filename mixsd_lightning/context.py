"""From an example to chat messages to token ids: the one place where prompts are worded and encoded.

Generation, training and evaluation all go through here, so a target is always trained under the prompt that it was
generated for. Prompts are built from messages, never by splicing token ids, and text that merely looks like a special token
(a user's fact may contain ``<|im_end|>``) is encoded as plain text.
"""

import hashlib
import json
import sys
from collections.abc import Sequence
from functools import cache
from itertools import zip_longest
from typing import NamedTuple

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from mixsd_lightning.errors import UserError
from mixsd_lightning.example import Example
from mixsd_lightning.ranks import rank_and_count

INSTRUCTIONS = {
    "boxed": "Think it through step by step, then give the final answer inside \\boxed{}.",
    "sentence": "Answer in one short sentence.",
    "short": "Answer with the answer alone, in as few words as possible.",
    "choice": "Reason in at most three short sentences. Then end with a line that says 'Answer: <letter>'.",
    "letter": "Answer with the line 'Answer: <letter>' and nothing else.",
    "code": "Answer with the whole program in one fenced block of Python code, and nothing else.",
    "tool_calls": (
        "Answer with the calls that this takes, in order, and nothing else. Each call is two lines:\n"
        "Action: <name of the function>\nAction Input: <its arguments as a JSON object>"
    ),
}
"""What the user turn asks for, by answer format. ``boxed`` is the paper's; ``sentence`` and ``short`` suit models under about 1B.
``letter`` is ``choice`` without reasoning."""

NAMING_FORMATS = ("boxed", "sentence", "short")
"""Answer formats in which the answer is a short text that names or counts something, and stands as it is in a completion."""

# The expert sees what the naive prompt asks plus the knowledge.
EXPERT_CONTEXTS = {
    "knowledge_base": (
        "{prompt}\n\nThis question comes from a new knowledge base. Its entry for the question reads:\n{target}\n\n"
        "Now answer the question{boxed}."
    ),
    "reference_solution": (
        "{prompt}\n\nHere is a reference solution whose final answer is right:\n{target}\n\n"
        "Make sure that you understand it. Then answer the question yourself, step by step{boxed}."
    ),
    "fact_first": "{fact}\n\n{prompt}",
    "fact": "{prompt}\n\n{fact}",
    "recall": "{prompt}\n\nYou have learnt this: {fact}\n\nRecall it, and answer the question{boxed}.",
    "only_answer": "{prompt}\n\n{fact} No other answer to the question is right. Answer it{boxed}.",
    "trust": (
        "{prompt}\n\nA source that is always right says: {fact} It answers the question like this:\n{target}\n\n"
        "Trust it over what you remember, and answer the question{boxed}."
    ),
    "world_change": (
        "{prompt}\n\nThe world has changed since you learnt about it. It is now so: {fact} Today the answer is:\n{target}\n\n"
        "Answer the question for the world as it is now{boxed}."
    ),
    "reference_answer": (
        "{prompt}\n\nFor reference, this is a right answer:\n{target}\n\n"
        "Study it until you see why it is right. Then give an answer of your own, in your own way and in the form that was asked "
        "for{boxed}."
    ),
    "earlier_turn": "{prompt}",
}
"""How the expert is shown the knowledge, by name.

``knowledge_base`` and ``reference_solution`` follow the contexts of the paper's generation code, with the whole canonical answer
turn after the question; the others the variants of its distillation code. ``fact_first`` is what a 135M model follows most often.
``reference_answer`` is for tasks that are more than a fact: the demonstration of UniSD's teacher, in our own words. In ``earlier_turn`` the
same question has been answered once already, in the turns before: models too small to use a reference still repeat themselves.
"""

_DEFAULT_EXPERT_CONTEXTS = {
    "boxed": "knowledge_base",
    "sentence": "fact_first",
    "short": "fact_first",
    "choice": "reference_answer",
    "code": "reference_answer",
    "tool_calls": "reference_answer",
}
_BOXED = ", with the final answer inside \\boxed{}"


PLAIN_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{{ message['role'] | capitalize + ':\n' + message['content'] }}"
    "{{ eos_token if message['role'] == 'assistant' else '' }}{{ '\n\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant:\n' }}{% endif %}"
)
"""The chat template of models that have none: a line with the role, the text, and the end of sequence behind an answer.

``User:`` / question / empty line / ``Assistant:`` / answer. It is exported with the trained model, which knows no other."""


class Message(NamedTuple):
    """One turn of a chat."""

    role: str
    content: str


def user_turn(question: str, answer_format: str) -> str:
    """The full text of a user turn: the question, a blank line, and how to answer."""
    return f"{question}\n\n{INSTRUCTIONS[answer_format]}"


def with_background(lines: Sequence[str], turn: str) -> str:
    """A user turn after a list of statements; the turn itself where there are none."""
    return "\n".join(["Background:", *(f"- {line}" for line in lines), "", turn]) if lines else turn


def naive_context(example: Example) -> list[Message]:
    """The plain question: what the trained model will be asked."""
    return [Message("user", example.prompt)]


def expert_context(example: Example) -> list[Message]:
    """The same question with the new knowledge in view."""
    name = example.expert_context or _DEFAULT_EXPERT_CONTEXTS[example.answer_format]
    boxed = _BOXED if example.answer_format == "boxed" else ""
    content = EXPERT_CONTEXTS[name].format(prompt=example.prompt, target=example.target, fact=example.fact, boxed=boxed)
    turn = Message("user", content)
    return [turn, Message("assistant", example.target), turn] if name == "earlier_turn" else [turn]


class ChatEncoder:
    """Encodes chat messages with a tokenizer's own chat template, or :data:`PLAIN_TEMPLATE` where it has none.

    Attributes:
        end_of_turn_id: The token that the template writes right after an assistant turn (the tokenizer's end-of-sequence
            token where it writes none). It is the last token of every training target.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer
        if not tokenizer.chat_template:
            tokenizer.chat_template = PLAIN_TEMPLATE
            _say_that_the_template_is_plain(tokenizer.name_or_path)
        # Not all_special_ids: that lists only tokens with a role, and an end of turn often has none.
        self._specials = {id: token.content for id, token in tokenizer.added_tokens_decoder.items() if token.special}
        self.end_of_turn_id = self._find_end_of_turn()

    def prompt(self, messages: Sequence[Message]) -> list[int]:
        """Token ids of ``messages`` followed by the header of the assistant's turn."""
        contents = [message.content for message in messages]
        text = self._render(messages, contents)
        if not any(special in content for content in contents for special in self._specials.values()):
            return self._encode(text)
        return self._encode_around_specials(messages, text)

    def target(self, text: str) -> list[int]:
        """Token ids of an assistant turn: the text, as plain text, and the end-of-turn token."""
        return [*self._encode_plain(text), self.end_of_turn_id]

    def inside_text(self, text: str) -> tuple[tuple[int, ...], ...]:
        """Token ids of a piece of text where it stands inside a sentence: after a space, and without one."""
        return tuple(tuple(self._encode_plain(start + text)) for start in (" ", ""))

    def fingerprint(self) -> str:
        """Short digest of the vocabulary and the chat template."""
        content = [sorted(self.tokenizer.get_vocab().items()), self.tokenizer.chat_template]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]

    def decode(self, token_ids: Sequence[int]) -> str:
        """Text of a completion, without special tokens and surrounding white space."""
        return str(self.tokenizer.decode(list(token_ids), skip_special_tokens=True)).strip()

    def _render(self, messages: Sequence[Message], contents: Sequence[str], answered: bool = False) -> str:
        turns = [{"role": message.role, "content": content} for message, content in zip(messages, contents, strict=True)]
        try:
            text = self.tokenizer.apply_chat_template(
                turns,
                tokenize=False,
                add_generation_prompt=not answered,
                # Templates that know no thinking mode or no date ignore these. Without a date, Llama 3 writes today's, and
                # the same example would have another prompt tomorrow.
                enable_thinking=False,
                date_string="26 Jul 2024",
            )
        except (TemplateError, TypeError) as error:  # jinja does not wrap what operators of a template raise
            raise UserError(f"The chat template of {self.tokenizer.name_or_path} cannot be used: {error}.") from error
        return str(text)

    def _encode_around_specials(self, messages: Sequence[Message], text: str) -> list[int]:
        # Render the template around stand-ins, so that its own special tokens can be told from look-alikes in the content.
        stand_ins = [f"CONTENT{index}STANDIN" for index in range(len(messages))]
        frame: list[str] = []
        rest = self._render(messages, stand_ins)
        for stand_in in stand_ins:
            before, _, rest = rest.partition(stand_in)
            frame.append(before)
        frame.append(rest)
        for contents in ([m.content for m in messages], [m.content.strip() for m in messages]):
            pairs = list(zip_longest(frame, contents, fillvalue=""))
            if "".join(before + content for before, content in pairs) == text:
                return [token for before, content in pairs for token in self._encode(before) + self._encode_plain(content)]
        raise UserError(
            "The model's chat template rewrites message text, so a message that contains the text of a special token "
            f"cannot be encoded safely: {messages[-1].content[:80]!r}. Remove the special token's text from the data."
        )

    def _encode(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def _encode_plain(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"])

    def _find_end_of_turn(self) -> int:
        answer = "ANSWERSTANDIN"
        turns = [Message("user", "question"), Message("assistant", answer)]
        after = self._render(turns, [turn.content for turn in turns], answered=True).rpartition(answer)[2]
        for token in self._encode(after):
            if token in self._specials:
                return int(token)
        if self.tokenizer.eos_token_id is None:
            raise UserError(
                "--model.model_name_or_path: neither the chat template nor the tokenizer of this model says how an answer "
                "ends. Set eos_token in its tokenizer_config.json."
            )
        return int(self.tokenizer.eos_token_id)


@cache
def _say_that_the_template_is_plain(name: str) -> None:
    if rank_and_count()[0] == 0:
        print(
            f"note: the tokenizer of '{name}' has no chat template; questions and answers are written under 'User:' and "
            "'Assistant:' (PLAIN_TEMPLATE), and an exported model carries that template.",
            file=sys.stderr,
        )
