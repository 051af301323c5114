"""How large a model and its training are: parameters, bytes and floating-point operations, from the shape of the model alone.

B is the batch, L the tokens of a sequence, D tokens in all, H the width of the model.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, PretrainedConfig, Qwen3Config

from mixsd_lightning.losses.chunked import CHUNK_SIZE
from mixsd_lightning.models import model_source

RUNTIME_BYTES = 600_000_000
"""What a process has before there is any model: torch, CUDA's context or the libraries of a CPU."""

_QWEN3: dict[str, Any] = {"vocab_size": 151936, "num_key_value_heads": 8, "head_dim": 128, "max_position_embeddings": 40960}
_SMALL_QWEN3 = {**_QWEN3, "tie_word_embeddings": True}
PUBLISHED: Mapping[str, PretrainedConfig] = MappingProxyType(
    {
        "Qwen/Qwen3-1.7B": Qwen3Config(
            **_SMALL_QWEN3, hidden_size=2048, intermediate_size=6144, num_hidden_layers=28, num_attention_heads=16
        ),
        "Qwen/Qwen3-4B-Instruct-2507": Qwen3Config(
            **_SMALL_QWEN3, hidden_size=2560, intermediate_size=9728, num_hidden_layers=36, num_attention_heads=32
        ),
        "Qwen/Qwen3-8B": Qwen3Config(
            **_QWEN3, hidden_size=4096, intermediate_size=12288, num_hidden_layers=36, num_attention_heads=32
        ),
        "meta-llama/Llama-3.2-1B-Instruct": LlamaConfig(
            vocab_size=128256,
            hidden_size=2048,
            intermediate_size=8192,
            num_hidden_layers=16,
            num_attention_heads=32,
            num_key_value_heads=8,
            head_dim=64,
            tie_word_embeddings=True,
        ),
    }
)
"""The paper's models, as the config.json of each on the Hub has them: their sizes are known without the Hub."""


@dataclass(frozen=True)
class Shape:
    """What sizes follow from."""

    num_parameters: int
    num_linear: int
    """Weights of the linear layers below the head."""
    num_embedding: int
    """Vocabulary times H."""
    is_tied: bool
    lora_width: int
    """Parameters of a LoRA adapter per unit of its rank: inputs and outputs of all linear layers but the head."""
    num_layers: int
    hidden: int
    intermediate: int
    attention: int
    """Width of all queries of a token."""
    key_value: int
    """Width of all keys of a token."""
    norms_queries: bool

    def num_lora(self, rank: int) -> int:
        """Parameters of an adapter of a rank."""
        return self.lora_width * rank


def shape_of(config: PretrainedConfig) -> Shape:
    """Count the parameters of an architecture, built without memory (on torch's meta device)."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    head = model.get_output_embeddings()
    linear = [module for module in model.modules() if isinstance(module, torch.nn.Linear) and module is not head]
    text = config.get_text_config()
    head_width = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    key_value_heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
    return Shape(
        num_parameters=sum(parameter.numel() for parameter in model.parameters()),
        num_linear=sum(module.weight.numel() for module in linear),
        num_embedding=model.get_input_embeddings().weight.numel(),
        is_tied=head.weight is model.get_input_embeddings().weight,
        lora_width=sum(module.in_features + module.out_features for module in linear),
        num_layers=text.num_hidden_layers,
        hidden=text.hidden_size,
        intermediate=getattr(text, "intermediate_size", None) or 4 * text.hidden_size,
        attention=head_width * text.num_attention_heads,
        key_value=head_width * key_value_heads,
        norms_queries=any(name.endswith("q_norm") for name, _ in model.named_modules()),
    )


def shape_by_name(model_name_or_path: str, trust_remote_code: bool = False) -> Shape:
    """Shape of a model by its name: one of :data:`PUBLISHED`, or what its config.json says.

    Raises:
        OSError: if there is no such model within reach.
    """
    config = PUBLISHED.get(model_name_or_path)
    if config is None:
        config = AutoConfig.from_pretrained(model_source(model_name_or_path), trust_remote_code=trust_remote_code)
    return shape_of(config)


@dataclass(frozen=True)
class Storage:
    """Bytes of a number, under one of Lightning's precisions."""

    state: int
    """Weights, gradients and AdamW's moments."""
    compute: int
    """Products and what they leave behind."""

    @property
    def is_mixed(self) -> bool:
        """Whether autocast makes a copy of the weights that products take."""
        return self.compute != self.state


def storage_of(precision: str) -> Storage:
    """Bytes under a precision such as ``32-true``, ``bf16-mixed`` or ``bf16-true``.

    >>> storage_of("bf16-mixed")
    Storage(state=4, compute=2)
    """
    is_half = precision.startswith(("16", "bf16"))
    return Storage(2 if is_half and precision.endswith("true") else 4, 2 if is_half else 4)


@dataclass(frozen=True)
class Training:
    """What memory depends on beside the model.

    Attributes:
        precision: Lightning's name of it.
        lora_rank: Of the adapter that is trained; 0 trains all weights.
        gradient_checkpointing: Whether activations are computed again.
        tokens: Of the largest batch of a device: its rows times the longest, what all rows share counted once.
        accumulates: Whether gradients of several batches are added up.
        devices: How many there are.
        strategy: `single`, `ddp` (each has everything) or `sharded` (each has its part of weights, gradients and moments).
        teacher: Whether there is a second model of the same size: a frozen or averaged teacher.
    """

    precision: str = "32-true"
    lora_rank: int = 0
    gradient_checkpointing: bool = False
    tokens: int = 1024
    accumulates: bool = False
    devices: int = 1
    strategy: str = "single"
    teacher: bool = False


@dataclass(frozen=True)
class Memory:
    """Bytes on one device."""

    weights: int
    moments: int
    """Two of each trained parameter: AdamW's means of gradients and of their squares."""
    gradients: int
    copies: int
    """Of the weights in the precision of the products, which autocast makes at each step."""
    activations: int
    """What the forward pass keeps for the backward pass."""
    logits: int
    """Of one chunk of answer tokens, and the gradient of the head, which is computed with them."""
    teacher: int
    unsharded: int
    """Layers that sharded training has whole for a moment."""
    accumulates: bool = False
    runtime: int = RUNTIME_BYTES

    @property
    def peak(self) -> int:
        """The most that there is at once.

        Where the backward pass begins, all activations are there and no gradient but the head's (unless batches are accumulated);
        where it ends, all gradients and no activations.
        """
        always = self.weights + self.moments + self.copies + self.teacher + self.unsharded + self.runtime
        if self.accumulates:
            return always + self.gradients + self.activations + self.logits
        return always + max(self.activations + self.logits, self.gradients)


def memory_of(shape: Shape, training: Training) -> Memory:
    """Memory of training with AdamW, where the loss is taken in chunks of :data:`~mixsd_lightning.losses.chunked.CHUNK_SIZE` tokens.

    Weights, gradients and moments are parameters times bytes: 16 bytes a parameter in float32 or mixed precision, 8 in bf16. With
    LoRA, gradients and moments are the adapter's. Activations: :func:`activation_bytes`.
    """
    storage = storage_of(training.precision)
    num_adapter = shape.num_lora(training.lora_rank)
    num_weights = shape.num_parameters + num_adapter
    num_trained = num_adapter or shape.num_parameters
    parts = training.devices if training.strategy == "sharded" else 1
    layer = math.ceil((shape.num_parameters - shape.num_embedding) / shape.num_layers)
    gradients = num_trained * storage.state
    vocabulary = shape.num_embedding // shape.hidden
    head_gradient = 0 if num_adapter else shape.num_embedding * 4
    return Memory(
        weights=num_weights * storage.state // parts,
        moments=2 * num_trained * storage.state // parts,
        # Buckets of DDP stand beside the gradients that they send. A tied embedding has two gradients, which are added.
        gradients=gradients * (2 if training.strategy == "ddp" else 1) // parts
        + (shape.num_embedding * storage.state if shape.is_tied and not num_adapter else 0),
        copies=(shape.num_linear + num_adapter + shape.num_embedding) * storage.compute if storage.is_mixed else 0,
        activations=activation_bytes(shape, training),
        logits=CHUNK_SIZE * vocabulary * 4 + head_gradient,
        teacher=shape.num_parameters * storage.state if training.teacher and not num_adapter else 0,
        unsharded=2 * layer * storage.compute if parts > 1 else 0,
        accumulates=training.accumulates,
    )


def activation_bytes(shape: Shape, training: Training) -> int:
    """What a forward pass of decoder layers with gated MLPs and RMS norms keeps, in bytes.

    Per token and layer, with I the width of the MLP, A that of the queries and c bytes in products: 4 I c in the MLP (both
    projections, what the gate's nonlinearity gives, and their product), 5 A c in attention (queries, keys and values repeated for the
    heads, the result and its copy for the output projection), and the two norms: their inputs in float32, what they normalise and what
    they give. The scores of attention are not kept. With checkpointing a layer keeps its input alone, and one layer at a time has all
    of this.
    """
    storage = storage_of(training.precision)
    c, wide = storage.compute, storage.state
    # Five linear layers read what the norms give; autocast casts for each of them.
    norms = 2 * 4 * shape.hidden + 2 * wide * shape.hidden + (5 if storage.is_mixed else 2) * c * shape.hidden
    query_norms = (4 + c) * (shape.attention + shape.key_value) if shape.norms_queries else 0
    layer = 4 * shape.intermediate * c + 5 * shape.attention * c + norms + query_norms
    layer += 8 * shape.num_lora(training.lora_rank) // max(1, shape.lora_width) * c  # what an adapter's two factors give
    final = 3 * shape.hidden * 4
    if training.gradient_checkpointing:
        return training.tokens * (shape.num_layers * wide * shape.hidden + layer + final)
    return training.tokens * (shape.num_layers * layer + final)


def forward_flops(shape: Shape, tokens: float, length: float, predicted: float | None = None) -> float:
    """Floating-point operations of a forward pass: 2 N D, plus 4 L A per layer and token in attention over half of L on average.

    Args:
        shape: Of the model.
        tokens: D, all tokens that go through it.
        length: L, of a sequence.
        predicted: Tokens that the head is asked for; all by default.
    """
    attention = 2 * shape.num_layers * shape.attention * length * tokens
    return 2 * shape.num_linear * tokens + attention + 2 * shape.num_embedding * (tokens if predicted is None else predicted)


def training_flops(
    shape: Shape, tokens: float, length: float, predicted: float, lora_rank: int = 0, gradient_checkpointing: bool = False
) -> float:
    """Operations of forward and backward passes: 6 N D (Kaplan et al., arXiv 2001.08361), with attention and the head of answer tokens.

    The backward pass takes two forward passes, one for the inputs and one for the weights; with LoRA the second is as small as the
    adapter. Checkpointing takes one forward pass more.
    """
    forward = forward_flops(shape, tokens, length, predicted)
    adapter = 2 * shape.num_lora(lora_rank) * tokens
    backward = forward + 3 * adapter if lora_rank else 2 * forward
    return forward + backward + (forward if gradient_checkpointing else 0)
