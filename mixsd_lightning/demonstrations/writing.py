"""The base model as a writer: what it answers to our own requests, and what such answers hang on."""

from collections.abc import Sequence
from dataclasses import astuple
from typing import Any, NamedTuple

from transformers import PreTrainedModel

from mixsd_lightning.context import ChatEncoder, Message
from mixsd_lightning.decoding.generation import Sampling, roll_out
from mixsd_lightning.disk_cache import digest
from mixsd_lightning.example import Example
from mixsd_lightning.models import inference_dtype, stop_token_ids, weights_fingerprint, window_of
from mixsd_lightning.progress import Progress


class Writing(NamedTuple):
    """A text, and whether the model ended it by itself."""

    text: str
    is_finished: bool


def write(
    model: PreTrainedModel,
    encoder: ChatEncoder,
    requests: Sequence[str],
    keys: Sequence[str],
    description: str,
    *,
    temperature: float,
    max_new_tokens: int,
    batch_size: int,
) -> list[Writing]:
    """The model's answers to requests, each a chat of one user turn.

    Args:
        model: A causal language model.
        encoder: Of its tokenizer.
        requests: User turns. One that leaves no room in the model's window gets an empty answer that is not finished.
        keys: Decides the draws, for every request.
        description: Of the progress bar.
        temperature: Of sampling.
        max_new_tokens: Longest answer.
        batch_size: Answers in progress at once.
    """
    prompts = [encoder.prompt([Message("user", request)]) for request in requests]
    # Similar lengths together, so that little of a batch is padding.
    order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
    fitting = [index for index in order if len(prompts[index]) + max_new_tokens <= window_of(model.config)]
    batches = [fitting[start : start + batch_size] for start in range(0, len(fitting), batch_size)]
    writings = [Writing("", False)] * len(prompts)
    with Progress(description, len(batches)) as progress:
        for indices in batches:
            rollouts = roll_out(
                model,
                [prompts[index] for index in indices],
                [keys[index] for index in indices],
                Sampling(temperature),
                num_rollouts=1,
                max_new_tokens=max_new_tokens,
                stop_ids=stop_token_ids(model, encoder.end_of_turn_id),
                batch_size=batch_size,
            )
            for index, (completion,) in zip(indices, rollouts, strict=True):
                writings[index] = Writing(encoder.decode(completion.token_ids), completion.finish_reason == "stop")
            progress.advance()
    return writings


def writer_settings(model: PreTrainedModel, encoder: ChatEncoder, examples: Sequence[Example]) -> dict[str, Any]:
    """What all texts hang on that a model writes about examples: itself, its tokenizer, its precision and the examples."""
    return {
        "weights": weights_fingerprint(model),
        "tokenizer": encoder.fingerprint(),
        "dtype": str(inference_dtype(model)),
        "examples": digest([astuple(example) for example in examples]),
    }
