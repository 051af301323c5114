"""Language modelling on held-out English prose."""

import math
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel
from typing_extensions import override

from mixsd_lightning.context import ChatEncoder
from mixsd_lightning.errors import UserError, printable
from mixsd_lightning.evaluation.suites.base import Score, Suite
from mixsd_lightning.models import inference, window_of


@cache
def held_out_paragraphs() -> tuple[str, ...]:
    """24 short paragraphs of plain English on different subjects."""
    return _paragraphs((files(__package__) / "held_out.txt").read_text(encoding="utf-8"))


def read_paragraphs(text_file: str) -> tuple[str, ...]:
    """The paragraphs of a user's file.

    Raises:
        UserError: if it cannot be read or has none.
    """
    try:
        found = _paragraphs(Path(text_file).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--retention.suites: cannot read text_file '{text_file}': {error}.") from error
    if not found:
        raise UserError(f"--retention.suites: text_file '{text_file}' has no text.")
    return found


def _paragraphs(text: str) -> tuple[str, ...]:
    return tuple(paragraph.strip() for paragraph in text.split("\n\n") if paragraph.strip())


def paragraph_ids(encoder: ChatEncoder, paragraph: str, window: int) -> torch.Tensor:
    """Token ids ``[1, L]`` of a paragraph, after a document-start token if the tokenizer has one.

    Raises:
        UserError: if there are more than fit a model's window.
    """
    ids = encoder.tokenizer(paragraph, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    if encoder.tokenizer.bos_token_id is not None:
        ids = [encoder.tokenizer.bos_token_id, *ids]
    if len(ids) > window:
        raise UserError(
            f"The held-out paragraph '{printable(paragraph[:40])}...' has {len(ids)} tokens, the model's window {window}. Separate it "
            "by blank lines (text_file of BitsPerByte), or measure drift on --drift.sequences answers."
        )
    return torch.tensor([ids])


def paragraph_nll(model: PreTrainedModel, encoder: ChatEncoder, paragraph: str) -> torch.Tensor:
    """Summed NLL of a paragraph's tokens, in nats (a scalar, part of the graph)."""
    ids = paragraph_ids(encoder, paragraph, window_of(model.config)).to(model.device)
    logits = model(input_ids=ids, use_cache=False).logits[0, :-1].float()
    return torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="sum")


class BitsPerByte(Suite):
    """Bits per byte of held-out text: comparable between tokenizers, and a graded sign of lost language skill."""

    name = "bits_per_byte"

    def __init__(self, text_file: str | None = None, every_n_validations: int = 1) -> None:
        """
        Args:
            text_file: Your own text, paragraphs separated by blank lines; by default 24 short built-in ones.
            every_n_validations: Measure at every n-th validation and at the last; 0 is at the last alone.
        """
        super().__init__(every_n_validations)
        self._paragraphs = read_paragraphs(text_file) if text_file else held_out_paragraphs()

    @property
    @override
    def settings(self) -> dict[str, Any]:
        return {"paragraphs": list(self._paragraphs)}

    @override
    def measure(self, model: PreTrainedModel, encoder: ChatEncoder) -> dict[str, Score]:
        num_bytes = [len(paragraph.encode()) for paragraph in self._paragraphs]
        with inference(model):
            nats = [float(paragraph_nll(model, encoder, paragraph)) for paragraph in self._paragraphs]
        values = [nll / math.log(2) / size for nll, size in zip(nats, num_bytes, strict=True)]
        return {self.name: Score(values, num_bytes, higher_is_better=False)}
