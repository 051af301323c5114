"""Language modelling on held-out English prose."""

import math
from functools import cache
from importlib.resources import files

import torch
from transformers import PreTrainedModel
from typing_extensions import override

from mixsd_lightning.context import ChatEncoder
from mixsd_lightning.evaluation.suites.base import Score, Suite
from mixsd_lightning.models import evaluating


@cache
def held_out_paragraphs() -> tuple[str, ...]:
    """24 short paragraphs of plain English on different subjects."""
    text = (files(__package__) / "held_out.txt").read_text(encoding="utf-8")
    return tuple(paragraph.strip() for paragraph in text.split("\n\n"))


def paragraph_ids(encoder: ChatEncoder, paragraph: str) -> torch.Tensor:
    """Token ids ``[1, L]`` of a paragraph, after a document-start token if the tokenizer has one."""
    ids = encoder.tokenizer(paragraph, add_special_tokens=False)["input_ids"]
    start = encoder.tokenizer.bos_token_id
    return torch.tensor([[start, *ids] if start is not None else ids])


def paragraph_nll(model: PreTrainedModel, encoder: ChatEncoder, paragraph: str) -> torch.Tensor:
    """Summed NLL of a paragraph's tokens, in nats (a scalar, part of the graph)."""
    ids = paragraph_ids(encoder, paragraph).to(model.device)
    logits = model(input_ids=ids, use_cache=False).logits[0, :-1].float()
    return torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="sum")


class BitsPerByte(Suite):
    """Bits per byte of held-out text: comparable between tokenizers, and a graded sign of lost language skill."""

    name = "bits_per_byte"

    @override
    @torch.no_grad()
    def measure(self, model: PreTrainedModel, encoder: ChatEncoder) -> dict[str, Score]:
        nats, num_bytes = 0.0, 0
        with evaluating(model):
            for paragraph in held_out_paragraphs():
                nats += float(paragraph_nll(model, encoder, paragraph))
                num_bytes += len(paragraph.encode())
        return {self.name: Score(nats / math.log(2) / num_bytes, higher_is_better=False)}
