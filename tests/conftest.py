"""A tiny random chat model on disk: unit tests need no download."""

import os
from collections.abc import Sequence
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"  # read when transformers is imported

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from mixsd_lightning.builtin_model import BUILTIN_MODEL
from mixsd_lightning.context import ChatEncoder
from mixsd_lightning.models import load_student, load_tokenizer
from mixsd_lightning.progress import Progress

# The suite runs in parallel processes, and two threads each would wait for one another.
torch.set_num_threads(1)

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def make_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level tokenizer without merges: 256 bytes and three special tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={byte: index for index, byte in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<|im_start|>", eos_token="<|im_end|>", pad_token="<|pad|>"
    )
    fast.chat_template = CHATML
    return fast


def make_tiny_model(folder: Path, seed: int = 0) -> None:
    """Write a random two-layer Llama and its tokenizer."""
    tokenizer = make_tokenizer()
    torch.manual_seed(seed)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=8192,
            tie_word_embeddings=True,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            # Large enough that the random distributions differ between contexts and are far from ties.
            initializer_range=0.3,
        )
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


@pytest.fixture(autouse=True)
def fresh_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What another test has computed, or another version of the code, is not there; models are."""
    monkeypatch.setattr("mixsd_lightning.disk_cache.computed_dir", lambda: tmp_path / "computed")


def transformers_greedy(
    model: PreTrainedModel, prompt: Sequence[int], stop_ids: frozenset[int], max_new_tokens: int
) -> list[int]:
    """What `generate` answers, one prompt at a time."""
    ids = torch.tensor([list(prompt)])
    output = model.eval().generate(
        ids,
        attention_mask=torch.ones_like(ids),
        do_sample=False,
        max_new_tokens=max_new_tokens,
        eos_token_id=sorted(stop_ids),
        pad_token_id=0,
    )
    return output[0, len(prompt) :].tolist()


@pytest.fixture(scope="session")
def tiny_model_path(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("tiny-model")
    make_tiny_model(folder)
    return str(folder)


@pytest.fixture
def tiny_model(tiny_model_path: str) -> PreTrainedModel:
    return load_student(tiny_model_path)


@pytest.fixture(scope="session")
def encoder(tiny_model_path: str) -> ChatEncoder:
    return ChatEncoder(load_tokenizer(tiny_model_path))


@pytest.fixture(scope="session")
def public_data() -> str:
    """A folder of public data sets, where the variable names one."""
    folder = os.environ.get("MIXSD_DATA_DIR")
    if folder is None:
        pytest.skip("MIXSD_DATA_DIR names no folder of public data sets")
    return folder


@pytest.fixture
def no_bars(monkeypatch: pytest.MonkeyPatch) -> None:
    """Progress bars are not drawn: that takes longer than the work of a fake engine."""
    monkeypatch.setattr(Progress, "__enter__", lambda self: self)
    monkeypatch.setattr(Progress, "advance", lambda self, note="": None)


@pytest.fixture(scope="session")
def builtin_model() -> PreTrainedModel:
    return load_student(BUILTIN_MODEL)


@pytest.fixture(scope="session")
def builtin_encoder() -> ChatEncoder:
    return ChatEncoder(load_tokenizer(BUILTIN_MODEL))
