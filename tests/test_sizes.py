"""The arithmetic before a run against what is measured."""

import re
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM, LlamaConfig, PretrainedConfig, PreTrainedModel, Qwen3Config, Qwen3ForCausalLM

from mixsd_lightning import SFT, KGFact
from mixsd_lightning.data.batches import collate_training
from mixsd_lightning.models import add_lora
from mixsd_lightning.sizes import (
    Training,
    activation_bytes,
    forward_flops,
    memory_of,
    shape_by_name,
    shape_of,
    storage_of,
    training_flops,
)

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize(
    ("name", "count", "without_embedding"),
    [
        # Cards and safetensors indices of the Hub: Qwen3-1.7B 1.7B (1.4B without embeddings), Qwen3-4B 4.0B (3.6B),
        # Qwen3-8B 8.2B (6.95B), Llama-3.2-1B 1.23B.
        ("Qwen/Qwen3-1.7B", 1_720_574_976, 1.4e9),
        ("Qwen/Qwen3-4B-Instruct-2507", 4_022_468_096, 3.6e9),
        ("Qwen/Qwen3-8B", 8_190_735_360, 6.95e9),
        ("meta-llama/Llama-3.2-1B-Instruct", 1_235_814_400, 0.97e9),
    ],
)
def test_the_papers_models_have_the_published_numbers_of_parameters(name: str, count: int, without_embedding: float) -> None:
    shape = shape_by_name(name)
    assert shape.num_parameters == count
    embeddings = shape.num_embedding * (1 if shape.is_tied else 2)
    assert shape.num_parameters - embeddings == pytest.approx(without_embedding, rel=0.015)


def small_qwen3() -> Qwen3Config:
    """All kinds of parameters, few of each."""
    return Qwen3Config(
        vocab_size=128,
        hidden_size=64,
        intermediate_size=160,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        tie_word_embeddings=True,
    )


def small_llama() -> LlamaConfig:
    """Without norms of queries and keys, and with a head of its own."""
    return LlamaConfig(
        vocab_size=128,
        hidden_size=96,
        intermediate_size=256,
        num_hidden_layers=3,
        num_attention_heads=3,
        num_key_value_heads=1,
        tie_word_embeddings=False,
    )


def test_an_adapter_is_counted_as_peft_makes_it() -> None:
    model = Qwen3ForCausalLM(small_qwen3())
    add_lora(model, rank=3, alpha=3)
    made = sum(parameter.numel() for name, parameter in model.named_parameters() if ".lora_" in name)
    assert shape_of(small_qwen3()).num_lora(3) == made


def kept_bytes(model: PreTrainedModel, ids: torch.Tensor, precision: str) -> int:
    """What autograd keeps of a forward pass of the decoder, without weights and casts of them."""
    weights = {tuple(parameter.shape) for parameter in model.parameters()}
    weights |= {shape[::-1] for shape in weights}
    kept: list[torch.Tensor] = []  # held, so that no memory is used twice

    def hold(tensor: torch.Tensor) -> torch.Tensor:
        if tuple(tensor.shape) not in weights and tensor.is_floating_point():
            kept.append(tensor)
        return tensor

    with (
        torch.autograd.graph.saved_tensors_hooks(hold, lambda tensor: tensor),
        torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16-mixed"),
    ):
        model.train().base_model(input_ids=ids, use_cache=False)
    return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in kept}.values())


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "bf16-true"])
@pytest.mark.parametrize("config", [small_qwen3(), small_llama()], ids=lambda config: config.model_type)
def test_activations_are_what_autograd_keeps(config: PretrainedConfig, precision: str) -> None:
    model = AutoModelForCausalLM.from_config(config)
    if precision == "bf16-true":
        model = model.to(torch.bfloat16)
    ids = torch.randint(0, 128, (3, 50), generator=torch.Generator().manual_seed(0))
    estimated = activation_bytes(shape_of(config), Training(precision=precision, tokens=ids.numel()))
    assert estimated == pytest.approx(kept_bytes(model, ids, precision), rel=0.2)


@pytest.mark.builtin_model
def test_weights_gradients_and_moments_of_the_built_in_model_to_the_byte(builtin_model: PreTrainedModel) -> None:
    shape = shape_of(builtin_model.config)
    weights = sum(parameter.numel() * parameter.element_size() for parameter in builtin_model.parameters())
    memory = memory_of(shape, Training())
    assert memory.weights == weights == 538_060_032
    assert memory.moments == 2 * weights
    half = memory_of(shape, Training(precision="bf16-true"))
    assert (half.weights, half.moments) == (weights // 2, weights)


@pytest.mark.builtin_model
def test_memory_of_a_real_step_is_within_thirty_percent() -> None:
    """Of what scripts/bench/train_step.py measures: the figure in the README, in MiB."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    table = readme.partition("`train_step.py`")[2]
    measured = float(re.search(r"\| ours \| [\d.]+ \| (\d+) \|", table)[1]) * 2**20  # type: ignore[index]
    method, corpus = SFT(), KGFact(preset="KGFact-Small", batch_size=16)
    items = sorted(method.training_items(corpus.split("train")), key=lambda item: item.num_tokens)[-16:]
    batch = collate_training(items)
    tokens = batch.token_ids_BL[:, batch.num_shared :].numel() + batch.num_shared
    assert memory_of(shape_by_name("smollm2-135m"), Training(tokens=tokens)).peak == pytest.approx(measured, rel=0.3)


def test_memory_answers_to_every_setting() -> None:
    shape = shape_by_name("Qwen/Qwen3-4B-Instruct-2507")
    plain = memory_of(shape, Training("bf16-mixed", tokens=4000))
    assert plain.weights + plain.moments == 12 * shape.num_parameters
    assert plain.gradients == 4 * (shape.num_parameters + shape.num_embedding)  # of the tied embedding there are two
    lora = memory_of(shape, Training("bf16-mixed", lora_rank=16, tokens=4000))
    assert lora.moments == 8 * shape.num_lora(16) < plain.moments / 50
    assert lora.weights == 4 * (shape.num_parameters + shape.num_lora(16))
    checkpointed = memory_of(shape, Training("bf16-mixed", gradient_checkpointing=True, tokens=4000))
    assert checkpointed.activations < plain.activations / 8
    sharded = memory_of(shape, Training("bf16-mixed", tokens=4000, devices=4, strategy="sharded"))
    assert (4 * sharded.weights, 4 * sharded.moments) == (plain.weights, plain.moments)
    ddp = memory_of(shape, Training("bf16-mixed", tokens=4000, devices=4, strategy="ddp"))
    assert ddp.gradients - plain.gradients == 4 * shape.num_parameters
    assert memory_of(shape, Training(teacher=True)).teacher == 4 * shape.num_parameters
    assert memory_of(shape, Training(teacher=True, lora_rank=4)).teacher == 0  # the student without its adapter
    added = memory_of(shape, Training("bf16-mixed", tokens=4000, accumulates=True))
    assert added.peak == plain.peak - max(plain.gradients, plain.activations + plain.logits) + sum(
        (plain.gradients, plain.activations, plain.logits)
    )
    assert memory_of(shape, Training()).copies == memory_of(shape, Training("bf16-true")).copies == 0


def test_precisions_are_told_apart() -> None:
    found = {
        p: (storage_of(p).state, storage_of(p).compute) for p in ("32-true", "bf16-mixed", "16-mixed", "bf16-true", "16-true")
    }
    assert found == {"32-true": (4, 4), "bf16-mixed": (4, 2), "16-mixed": (4, 2), "bf16-true": (2, 2), "16-true": (2, 2)}


def test_operations_are_those_that_torch_counts() -> None:
    config = small_qwen3()
    model, shape = Qwen3ForCausalLM(config), shape_of(config)
    ids = torch.randint(0, 128, (3, 50))
    with FlopCounterMode(display=False) as counter:
        model(input_ids=ids).logits.sum().backward()
    total = training_flops(shape, 150, 50, 150)
    products = total - 3 * 2 * shape.num_layers * shape.attention * 50 * 150
    linear = sum(n for op, n in counter.get_flop_counts()["Global"].items() if "mm" in str(op) and "bmm" not in str(op))
    assert linear == products
    assert training_flops(shape, 150, 50, 150, gradient_checkpointing=True) == pytest.approx(total * 4 / 3)
    assert 2 / 3 < training_flops(shape, 150, 50, 150, lora_rank=2) / total < 0.75
    assert forward_flops(shape, 150, 50, 0) == forward_flops(shape, 150, 50) - 2 * shape.num_embedding * 150
