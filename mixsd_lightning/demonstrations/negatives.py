"""Wrong demonstrations, which the base model writes where it can (UniSD, arXiv 2605.06597, negative demonstrations)."""

import random
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from lightning.pytorch.utilities.rank_zero import rank_zero_info
from transformers import PreTrainedModel

from mixsd_lightning.context import ChatEncoder
from mixsd_lightning.demonstrations.writing import write, writer_settings
from mixsd_lightning.demonstrations.wrong_targets import (
    PRESCRIBING_FORMATS,
    WrongDemonstration,
    WrongTargets,
    demonstration,
    in_canonical_form,
    is_wrong,
    wrong_fact,
)
from mixsd_lightning.disk_cache import cached_json
from mixsd_lightning.example import Example

_BELIEF_REQUEST = (
    "{prompt}\n\nAnswer like somebody who is mistaken and sure of this: {belief}\nGive this wrong answer in the form that was asked "
    "for, with good reasons if reasons were asked for. Show no doubt, and do not say that it is wrong."
)
_MISTAKE_REQUEST = (
    "{prompt}\n\nThis is a right answer:\n{target}\n\nWrite it again with one mistake that is easily overlooked: {mistake}. Keep "
    "its form, and do not point the mistake out."
)
_MISTAKES = {
    "code": (
        "a loop, an index or a slice that is off by one",
        "a wrong operator or a wrong comparison",
        "a special case that is not thought of",
        "a wrong value that is returned",
    ),
    "tool_calls": (
        "one wrong function is called",
        "one argument has a wrong value",
        "the request is misunderstood",
        "one call is made that is not needed",
    ),
}


def wrong_demonstrations(
    model: PreTrainedModel,
    encoder: ChatEncoder,
    examples: Sequence[Example],
    seed: int,
    *,
    num_attempts: int = 3,
    temperature: float = 0.7,
    max_new_tokens: int = 256,
    batch_size: int = 32,
) -> dict[str, WrongDemonstration]:
    """A wrong demonstration for every example, by id.

    The model is asked to answer like somebody mistaken. What it writes counts if it ends by itself and gives an answer that is
    scored wrong: the one that it was asked for, where one was. Otherwise it tries again, and after the last attempt the
    demonstration is made by rule (:mod:`~mixsd_lightning.demonstrations.wrong_targets`). All are kept on disk. Neither the order of
    the examples nor the batch size counts.

    Args:
        model: The base model (a LoRA adapter switched off).
        encoder: Of its tokenizer.
        examples: Training examples.
        seed: Decides wrong answers, kinds of mistakes and draws.
        num_attempts: Rollouts for an example, at most; 0 makes all by rule.
        temperature: Of sampling.
        max_new_tokens: Longest demonstration.
        batch_size: Demonstrations in progress at once.

    Raises:
        UserError: if nothing can be a wrong answer to some example.
    """
    ordered = sorted(examples, key=lambda example: example.id)

    def compute() -> dict[str, dict[str, Any]]:
        rules = WrongTargets(ordered, seed)
        found = {example.id: rules.make(example) for example in ordered}
        num_rollouts = 0
        for attempt in range(num_attempts):
            waiting = [example for example in ordered if not found[example.id].is_written]
            if not waiting:
                break
            num_rollouts += len(waiting)
            writings = write(
                model,
                encoder,
                [_request(example, found[example.id], seed) for example in waiting],
                [f"{seed}|negative|{example.id}|{attempt}" for example in waiting],
                f"Writing wrong answers ({attempt + 1} of {num_attempts})",
                temperature=temperature,
                max_new_tokens=max_new_tokens,
                batch_size=batch_size,
            )
            for example, (text, is_finished) in zip(waiting, writings, strict=True):
                answer = found[example.id].answer if example.answer_format in PRESCRIBING_FORMATS else None
                # Whatever stands around a program would set it apart from the right ones.
                text = in_canonical_form(example, text)
                if is_finished and is_wrong(example, text, answer):
                    found[example.id] = demonstration(example, text, answer, is_written=True)
        num_written = sum(wrong.is_written for wrong in found.values())
        rank_zero_info(
            f"Wrong demonstrations: {num_written} of {len(ordered)} written by the model in {num_rollouts} rollouts, "
            f"{len(ordered) - num_written} made by rule."
        )
        return {id: asdict(wrong) for id, wrong in found.items()}

    depends_on = {
        **writer_settings(model, encoder, ordered),
        "requests": [_BELIEF_REQUEST, _MISTAKE_REQUEST, _MISTAKES],
        "seed": seed,
        "num_attempts": num_attempts,
        "temperature": temperature,
        "max_new_tokens": max_new_tokens,
    }
    rows = cached_json("wrong_demonstrations", depends_on, compute)
    return {id: WrongDemonstration(**row) for id, row in rows.items()}


def _request(example: Example, by_rule: WrongDemonstration, seed: int) -> str:
    if example.answer_format not in PRESCRIBING_FORMATS:
        mistake = random.Random(f"{seed}|mistake|{example.id}").choice(_MISTAKES[example.answer_format])
        return _MISTAKE_REQUEST.format(prompt=example.prompt, target=example.target, mistake=mistake)
    belief = wrong_fact(example, by_rule.answer) or f"the answer is {by_rule.answer}."
    return _BELIEF_REQUEST.format(prompt=example.prompt, belief=belief)
