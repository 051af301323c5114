"""General instructions that the base model derives from solved examples (UniSD, arXiv 2605.06597, induction contexts)."""

import random
from collections.abc import Sequence

from lightning.pytorch.utilities.rank_zero import rank_zero_info
from transformers import PreTrainedModel

from mixsd_lightning.context import ChatEncoder
from mixsd_lightning.demonstrations.contexts import solved_samples
from mixsd_lightning.demonstrations.writing import Writing, write, writer_settings
from mixsd_lightning.disk_cache import cached_json
from mixsd_lightning.errors import UserError
from mixsd_lightning.evaluation.scoring import contains_answer
from mixsd_lightning.example import Example

_REQUEST = (
    "{samples}\n\n"
    "Look at what these samples have in common. Write a general instruction, three or four sentences long, that tells somebody "
    "how to answer tasks of this kind well. Do not mention anything that belongs to a single sample: no names, no numbers, no "
    "answers. Write the instruction and nothing else."
)
_MIN_TELLING_CHARACTERS = 4
"""A shorter answer (a letter, a small number) occurs in any text."""


def induced_instructions(
    model: PreTrainedModel,
    encoder: ChatEncoder,
    examples: Sequence[Example],
    num_instructions: int,
    demos_per_group: int,
    seed: int,
    *,
    temperature: float = 0.7,
    max_new_tokens: int = 128,
    batch_size: int = 32,
) -> list[str]:
    """Instructions that a model writes, each after a group of solved examples. No two groups share an example.

    One that is empty or tells the answer of an example is dropped. What remains is kept on disk. Neither the order of the
    examples nor the batch size counts. Ours is that the model is asked through its chat template, where the published code sends
    bare text.

    Args:
        model: The base model (a LoRA adapter switched off).
        encoder: Of its tokenizer.
        examples: Training examples.
        num_instructions: Groups at most; fewer if there are not enough examples.
        demos_per_group: Examples in a group.
        seed: Decides the groups and the draws.
        temperature: Of sampling.
        max_new_tokens: Longest instruction.
        batch_size: Instructions in progress at once.

    Raises:
        UserError: if there are fewer examples than a group needs, or no instruction remains.
    """
    ordered = sorted(examples, key=lambda example: example.id)
    num_groups = min(len(ordered) // demos_per_group, num_instructions)
    if num_groups == 0:
        raise UserError(
            f"--model.auxiliary_contexts induction: {len(ordered)} training examples are too few for a group of "
            f"--model.demos_per_context {demos_per_group}. Give more examples, or lower it."
        )

    def compute() -> list[str]:
        shown = random.Random(f"{seed}|groups").sample(ordered, num_groups * demos_per_group)
        groups = [shown[start : start + demos_per_group] for start in range(0, len(shown), demos_per_group)]
        writings = write(
            model,
            encoder,
            [_REQUEST.format(samples=solved_samples(group)) for group in groups],
            [f"{seed}|instruction|{number}" for number in range(num_groups)],
            "Writing general instructions",
            temperature=temperature,
            max_new_tokens=max_new_tokens,
            batch_size=batch_size,
        )
        return _usable(writings, ordered)

    depends_on = {
        **writer_settings(model, encoder, ordered),
        "request": _REQUEST,
        "num_groups": num_groups,
        "demos_per_group": demos_per_group,
        "seed": seed,
        "temperature": temperature,
        "max_new_tokens": max_new_tokens,
    }
    instructions = cached_json("instructions", depends_on, compute)
    if not instructions:
        raise UserError(
            f"--model.auxiliary_contexts induction: all {num_groups} instructions that the model has written are empty or tell "
            "the answer of an example. Choose random or retrieval, more examples, or a larger model."
        )
    return instructions


def choose_instructions(
    instructions: Sequence[str], examples: Sequence[Example], num_contexts: int, seed: int
) -> list[tuple[str, ...]]:
    """An instruction for every context of every example, drawn with replacement by (seed, id of the example, context)."""
    return [
        tuple(random.Random(f"{seed}|{example.id}|{context}").choice(instructions) for context in range(num_contexts))
        for example in examples
    ]


def _usable(writings: Sequence[Writing], examples: Sequence[Example]) -> list[str]:
    answers = {answer for example in examples if len(answer := " ".join(example.answer.split())) >= _MIN_TELLING_CHARACTERS}
    written = [text for text, _ in writings if text]
    usable = [text for text in written if not _tells(text, answers)]
    rank_zero_info(
        f"Instructions: {len(usable)} of {len(writings)} kept, {len(writings) - len(written)} empty, {len(written) - len(usable)} "
        "dropped because they tell the answer of an example."
    )
    return usable


def _tells(text: str, answers: set[str]) -> bool:
    folded = " ".join(text.split()).casefold()
    # Nearly all are not in it anyhow, which is quicker to see than that they are not there as whole words.
    return contains_answer(text, (answer for answer in answers if answer.casefold() in folded))
