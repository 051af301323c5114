"""What a teacher is shown besides the task, from a choice of kinds to token ids (UniSD, arXiv 2605.06597)."""

from collections.abc import Mapping, Sequence
from typing import Literal

from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from transformers import PreTrainedModel

from mixsd_lightning.context import ChatEncoder, naive_context
from mixsd_lightning.demonstrations.augmentation import augmentation_rng, drop_demonstrations, drop_text
from mixsd_lightning.demonstrations.auxiliary import random_demonstrations, retrieved_demonstrations
from mixsd_lightning.demonstrations.contexts import (
    demonstrations_text,
    instruction_text,
    negative_context,
    with_text_before,
)
from mixsd_lightning.demonstrations.embedding import sentence_embeddings
from mixsd_lightning.demonstrations.induction import choose_instructions, induced_instructions
from mixsd_lightning.demonstrations.negatives import wrong_demonstrations
from mixsd_lightning.errors import UserError
from mixsd_lightning.example import Example

Kind = Literal["random", "retrieval", "induction"]
Augmentation = Literal["none", "token_drop", "drop_demonstration"]
Shown = tuple[Example, ...] | str
"""Solved examples, or an instruction."""


def auxiliary_contexts(
    kind: Kind,
    model: PreTrainedModel,
    encoder: ChatEncoder,
    examples: Sequence[Example],
    num_contexts: int,
    demos_per_context: int,
    num_instructions: int,
    embedding_model: str,
    seed: int,
) -> dict[str, Sequence[Shown]]:
    """What is shown in each auxiliary context of every example, by id.

    Args:
        kind: ``random`` or similar (``retrieval``) solved examples, or instructions (``induction``).
        model: The base model, which writes instructions.
        encoder: Of its tokenizer.
        examples: Training examples.
        num_contexts: Contexts of each example.
        demos_per_context: Solved examples in each, or behind each instruction.
        num_instructions: Instructions, at most.
        embedding_model: Which measures similarity.
        seed: Decides all draws.

    Raises:
        UserError: if there are too few examples, or no instruction is usable.
    """
    if kind == "induction":
        instructions = induced_instructions(model, encoder, examples, num_instructions, demos_per_context, seed)
        return _by_id(examples, choose_instructions(instructions, examples, num_contexts, seed))
    if kind == "retrieval":
        questions = [example.question for example in examples]
        embeddings_NH = sentence_embeddings(questions, embedding_model, device=model.device)
        return _by_id(examples, retrieved_demonstrations(examples, embeddings_NH, num_contexts, demos_per_context))
    return _by_id(examples, random_demonstrations(examples, num_contexts, demos_per_context, seed))


def _by_id(examples: Sequence[Example], contexts: Sequence[Sequence[Shown]]) -> dict[str, Sequence[Shown]]:
    return {example.id: shown for example, shown in zip(examples, contexts, strict=True)}


class AuxiliaryPrompts:
    """Encodes auxiliary contexts, with something left out at each step if so wanted."""

    def __init__(
        self,
        contexts: Mapping[str, Sequence[Shown]],
        encoder: ChatEncoder,
        max_tokens: int,
        augmentation: Augmentation = "none",
        share: float = 0.0,
        seed: int = 0,
    ) -> None:
        """
        Args:
            contexts: What is shown, by the example's id and the number of the context.
            encoder: Of the model's tokenizer.
            max_tokens: Longest prompt. Solved examples that do not fit are left out, the last first.
            augmentation: What is left out at each step: a run of the text's tokens, or some of the solved examples.
            share: How much of it.
            seed: Decides what.
        """
        self._contexts = contexts
        self._encoder = encoder
        self._max_tokens = max_tokens
        self._augmentation = augmentation
        self._share = share
        self._seed = seed
        self._has_warned = False

    def encode(self, example: Example, context: int, step: int) -> list[int]:
        """Prompt of an example in one of its contexts: a function of the seed, the example's id, the context and the step."""
        rng = augmentation_rng(self._seed, example.id, context, step)
        shown = self._contexts[example.id][context]
        if self._augmentation == "drop_demonstration" and not isinstance(shown, str):
            shown = drop_demonstrations(shown, self._share, rng)
        while True:
            text = instruction_text(shown) if isinstance(shown, str) else demonstrations_text(shown)
            if self._augmentation == "token_drop":
                text = drop_text(text, self._encoder, self._share, rng)
            prompt = self._encoder.prompt(with_text_before(example, text) if shown else naive_context(example))
            if len(prompt) <= self._max_tokens or not shown:
                return prompt
            self._warn(example)
            shown = "" if isinstance(shown, str) else shown[:-1]

    def _warn(self, example: Example) -> None:
        if not self._has_warned:
            self._has_warned = True
            rank_zero_warn(
                f"What is shown in an auxiliary context of example '{example.id}' makes its prompt longer than "
                f"{self._max_tokens} tokens: from here on, what does not fit is left out. Lower --model.demos_per_context, or "
                "raise --model.max_teacher_prompt_tokens if the model's window allows it."
            )


def negative_prompts(
    model: PreTrainedModel, encoder: ChatEncoder, examples: Sequence[Example], max_tokens: int, seed: int
) -> dict[str, list[int]]:
    """The expert prompt of every example, by id, with a wrong demonstration in place of the right one.

    Raises:
        UserError: if one is longer than ``max_tokens``, or nothing can be a wrong answer to some example.
    """
    wrong = wrong_demonstrations(model, encoder, examples, seed)
    prompts = {example.id: encoder.prompt(negative_context(example, wrong[example.id])) for example in examples}
    for id, prompt in prompts.items():
        if len(prompt) > max_tokens:
            raise UserError(
                f"The prompt of example '{id}' with a wrong demonstration has {len(prompt)} tokens, {max_tokens} are allowed by "
                "--model.max_teacher_prompt_tokens and the model's window. Raise the limit, or set --model.contrastive_weight 0."
            )
    return prompts
