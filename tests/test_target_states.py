"""Hidden states where targets are predicted, with and without a shared beginning, and the head behind them."""

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedModel

from mixsd_lightning.data.batches import TrainItem, collate_training
from mixsd_lightning.errors import UserError
from mixsd_lightning.models import add_lora, compile_decoder, evaluating, is_compiled
from mixsd_lightning.target_states import FINAL, check_head, layer_states, output_head, target_states, target_tokens

VOCABULARY = 64
SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 256,
    "initializer_range": 0.3,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
MODELS: dict[str, dict[str, Any]] = {
    "llama": {"tie_word_embeddings": True},
    "llama, untied": {"tie_word_embeddings": False},
    "qwen3": {},
    "mistral": {"sliding_window": 3},  # less than what is shared
    "gemma2": {"sliding_window": 3, "final_logit_softcapping": 3.0, "attn_implementation": "eager"},
    "cohere": {"logit_scale": 0.25},
    "granite": {"logits_scaling": 4.0},
    "phi": {"num_key_value_heads": 4},
    "gpt2": {"n_embd": 32, "n_head": 4, "n_layer": 2, "n_inner": 48, "n_positions": 256},
}
# The models' own norms are in float32.
NORMS = {"rtol": 1e-4, "atol": 1e-5}
BEGINNING = [5, 9, 11, 30, 7]
ITEMS = [
    TrainItem("a", [*BEGINNING, 3, 4, 8], [10, 11, 12]),
    TrainItem("b", [*BEGINNING, 6], [13]),
    TrainItem("c", [*BEGINNING, 3, 20, 21, 22, 23], [14, 15, 16, 17, 18, 19]),
]


def make_model(name: str) -> PreTrainedModel:
    torch.manual_seed(0)
    kind = name.split(",")[0]
    sizes = {"vocab_size": VOCABULARY, "initializer_range": 0.3} if kind == "gpt2" else SIZES
    options = {**sizes, **MODELS[name]}
    implementation = options.pop("attn_implementation", "sdpa")
    config = CONFIG_MAPPING[kind](**options)
    return AutoModelForCausalLM.from_config(config, attn_implementation=implementation).double().eval()


def logits_one_by_one(model: PreTrainedModel) -> Tensor:
    """Logits at every target's position, from a forward of each sequence alone."""
    rows = []
    for item in ITEMS:
        logits = model(torch.tensor([item.prompt_ids + item.target_ids]), use_cache=False).logits[0]
        rows.append(logits[len(item.prompt_ids) - 1 : -1])
    return torch.cat(rows)


@pytest.mark.parametrize("name", MODELS)
def test_states_and_head_give_the_logits_and_gradients_of_plain_forwards(name: str) -> None:
    model = make_model(name)
    check_head(model)
    batch = collate_training(ITEMS)
    assert batch.num_shared == len(BEGINNING)
    head = output_head(model)
    states = target_states(model, batch)
    logits = head.logits(states)
    expected = logits_one_by_one(model)
    # Caps and norms in float32 are the models' own.
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)
    ends = torch.randn(expected.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    parameters = list(model.parameters())
    plain = torch.nn.functional.linear(states, head.weight_VH, head.bias_V) * head.scale
    if head.softcap is not None:
        plain = head.softcap * torch.tanh(plain / head.softcap)
    found = torch.autograd.grad((plain * ends).sum(), parameters, allow_unused=True)
    wanted = torch.autograd.grad((expected * ends).sum(), parameters, allow_unused=True)
    for one, other in zip(found, wanted, strict=True):
        assert (one is None) == (other is None)
        if one is not None and other is not None:
            torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3 * float(other.abs().max()))


@pytest.mark.parametrize("name", MODELS)
def test_layers_are_those_of_plain_forwards(name: str) -> None:
    model = make_model(name)
    found = layer_states(model, collate_training(ITEMS), [0, 1, -2, FINAL])
    rows = []
    for item in ITEMS:
        ids = torch.tensor([item.prompt_ids + item.target_ids])
        output = model.base_model(ids, use_cache=False, output_hidden_states=True)
        rows.append([hidden[0, len(item.prompt_ids) - 1 : -1] for hidden in output.hidden_states])
    for layer, states in found.items():
        torch.testing.assert_close(states, torch.cat([row[layer] for row in rows]), **NORMS)
    torch.testing.assert_close(found[1], found[-2])
    assert not torch.allclose(found[0], found[1])


def test_targets_are_those_that_the_states_predict() -> None:
    assert target_tokens(collate_training(ITEMS)).tolist() == [token for item in ITEMS for token in item.target_ids]


def test_a_shared_beginning_runs_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_model("llama")
    seen: list[tuple[int, ...]] = []
    forward = model.base_model.forward
    monkeypatch.setattr(
        model.base_model,
        "forward",
        lambda *args, **options: (seen.append(tuple(options["input_ids"].shape)), forward(*args, **options))[1],
    )
    length = max(item.num_tokens for item in ITEMS)
    target_states(model, collate_training(ITEMS))
    assert seen == [(1, len(BEGINNING)), (3, length - len(BEGINNING))]
    seen.clear()
    model.train()
    model.gradient_checkpointing_enable({"use_reentrant": False})
    target_states(model, collate_training(ITEMS))
    assert seen == [(3, length)]


def test_checkpointing_changes_no_gradient() -> None:
    gradients = []
    for is_checkpointed in (False, True):
        model = make_model("llama").train()
        if is_checkpointed:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        target_states(model, collate_training(ITEMS)).sum().backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, **NORMS)


def test_a_compiled_model_gives_the_same_states_and_is_not_compiled_for_answers() -> None:
    torch._dynamo.reset()
    model = make_model("llama").train()
    expected = target_states(model, collate_training(ITEMS))
    compile_decoder(model)
    assert is_compiled(model)
    compiled = torch._dynamo.utils.counters["stats"]
    compiled.clear()
    with evaluating(model):
        target_states(model, collate_training(ITEMS))
    assert compiled["unique_graphs"] == 0
    torch.testing.assert_close(target_states(model, collate_training(ITEMS)), expected, **NORMS)
    assert compiled["unique_graphs"] > 0


def test_an_adapter_is_trained_through_the_shared_beginning() -> None:
    model = make_model("llama")
    add_lora(model, 4, 8)
    target_states(model, collate_training(ITEMS)).square().sum().backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters() if ".lora_B" in name}
    assert gradients
    assert all(gradient is not None and float(gradient.abs().max()) > 0 for gradient in gradients.values())


def test_a_model_with_another_head_is_refused() -> None:
    model = make_model("llama")
    head = model.get_output_embeddings()
    head.register_forward_hook(lambda module, inputs, output: output + output.square())
    with pytest.raises(UserError, match="does more with its last hidden states"):
        check_head(model)


def test_a_model_without_a_body_of_its_own_is_refused() -> None:
    sizes = {**SIZES, "num_local_experts": 2, "intermediate_size_mlp": 48}
    model = AutoModelForCausalLM.from_config(CONFIG_MAPPING["llama4_text"](**sizes))
    with pytest.raises(UserError, match="does not say which part of it lies below the head"):
        check_head(model)


def test_the_cap_of_recurrent_gemma_is_known() -> None:
    sizes = {**SIZES, "num_hidden_layers": 3, "lru_width": 32, "logits_soft_cap": 2.0}
    torch.manual_seed(0)
    check_head(AutoModelForCausalLM.from_config(CONFIG_MAPPING["recurrent_gemma"](**sizes)).eval())


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_model_with_damaged_weights_is_refused(bad: float) -> None:
    model = make_model("llama")
    with torch.no_grad():
        model.base_model.layers[1].mlp.down_proj.weight[0, 0] = bad
    with pytest.raises(UserError, match="are not finite before any training"):
        check_head(model)
