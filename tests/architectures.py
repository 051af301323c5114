"""Tiny random models of many architectures, with a tokenizer of bytes; in memory or as a folder."""

from pathlib import Path
from typing import Any

import torch
from conftest import make_tokenizer
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

WINDOW = 6
"""Tokens that a windowed layer looks back on: less than any prompt."""

_SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 2048,
}
_GPT_SIZES: dict[str, Any] = {"n_embd": 32, "n_head": 4, "n_layer": 2, "n_positions": 2048}
_DROPOUT = {"attention_dropout": 0.1, "resid_pdrop": 0.1, "embd_pdrop": 0.1}

TRAINED: dict[str, dict[str, Any]] = {
    "llama": {**_SIZES, "tie_word_embeddings": True},
    "qwen3": {**_SIZES, "tie_word_embeddings": True},
    "gemma3_text": {**_SIZES, "sliding_window": WINDOW, "layer_types": ["sliding_attention", "full_attention"]},
    "gpt2": {**_GPT_SIZES, "attn_pdrop": 0.1, "resid_pdrop": 0.1, "embd_pdrop": 0.1},
    "phi": {**_SIZES, **_DROPOUT, "num_key_value_heads": 4},
    "phi3": {**_SIZES, **_DROPOUT, "sliding_window": WINDOW},
    "mistral": {**_SIZES, "sliding_window": WINDOW},
}
"""What every method is tried on: model type -> settings."""

OTHERS: dict[str, dict[str, Any]] = {
    "starcoder2": {**_SIZES, "sliding_window": WINDOW},
    "gpt_neo": {
        "hidden_size": 32,
        "num_layers": 2,
        "num_heads": 4,
        "attention_types": [[["global", "local"], 1]],
        "window_size": WINDOW,
    },
    "mpt": {"d_model": 32, "n_heads": 4, "n_layers": 2, "max_seq_len": 2048},  # biases by column (ALiBi), and no positions
    "mamba": {**_SIZES, "state_size": 4},  # a cache of another kind under another name
    "falcon_h1": {
        **_SIZES,
        "mamba_d_ssm": 32,
        "mamba_n_heads": 4,
        "mamba_d_head": 8,
        "mamba_d_state": 8,
        "mamba_n_groups": 1,
    },
    "opt": {**_SIZES, "ffn_dim": 48, "word_embed_proj_dim": 32},
    "falcon": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4},
}
"""Others that answer, each with a trap of its own for batched decoding."""


def make_model(name: str, vocab_size: int = 259, **options: Any) -> PreTrainedModel:
    """A random model in float32 whose distributions are far from ties and from one another."""
    config = CONFIG_MAPPING[name](vocab_size=vocab_size, **{**(TRAINED | OTHERS)[name], **_TOKENS, **options})
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 0.3)
    return model


_TOKENS = {"bos_token_id": 256, "eos_token_id": 257, "pad_token_id": 258}


def write_model(
    folder: Path, name: str, tokenizer: PreTrainedTokenizerFast | None = None, vocab_size: int = 259, **options: Any
) -> str:
    """Write a random model with its tokenizer, and return the folder."""
    make_model(name, vocab_size, **options).save_pretrained(folder)
    (tokenizer or make_tokenizer()).save_pretrained(folder)
    return str(folder)
