"""Loading models: mistakes are explained in one line, and the few facts about models are right."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from architectures import write_model
from safetensors.torch import load_file, save_file
from transformers import CONFIG_MAPPING, PretrainedConfig, PreTrainedModel

from mixsd_lightning.errors import UserError
from mixsd_lightning.models import (
    context_window,
    load_student,
    load_tokenizer,
    stop_token_ids,
    weights_fingerprint,
    window_of,
)


@pytest.fixture
def folder(tiny_model_path: str, tmp_path: Path) -> Path:
    """A copy of the tiny model, to be damaged at will."""
    return Path(shutil.copytree(tiny_model_path, tmp_path / "model"))


def assert_explained(error: UserError, folder: Path) -> None:
    message = str(error)
    assert message.startswith(f"--model.model_name_or_path: cannot load '{folder}'")
    assert "\n" not in message


def test_student_is_float32_and_in_training_mode(tiny_model: PreTrainedModel) -> None:
    assert tiny_model.training
    assert {parameter.dtype for parameter in tiny_model.parameters()} == {torch.float32}


def test_half_precision_weights_are_loaded_as_float32(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text()) | {"dtype": "bfloat16"}
    (folder / "config.json").write_text(json.dumps(config))
    assert load_student(str(folder)).dtype == torch.float32


@pytest.mark.parametrize("load", [load_student, load_tokenizer, context_window])
def test_missing_folder_is_explained(tmp_path: Path, load: Any) -> None:
    with pytest.raises(UserError, match="no local folder of that name") as caught:
        load(str(tmp_path / "absent"))
    assert_explained(caught.value, tmp_path / "absent")


def test_broken_config_is_explained(folder: Path) -> None:
    (folder / "config.json").write_text('{"model_type":')
    with pytest.raises(UserError, match="not a valid JSON file") as caught:
        load_student(str(folder))
    assert_explained(caught.value, folder)


def test_folder_without_weights_is_explained(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"no file named model\.safetensors") as caught:
        load_student(str(folder))
    assert_explained(caught.value, folder)


def test_truncated_weights_are_explained(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(UserError) as caught:
        load_student(str(folder))
    assert_explained(caught.value, folder)


def test_weights_that_lack_a_tensor_are_refused(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.1.mlp.down_proj.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError):
        load_student(str(folder))


def test_broken_tokenizer_is_explained(folder: Path) -> None:
    (folder / "tokenizer.json").write_text('{"version":')
    with pytest.raises(UserError) as caught:
        load_tokenizer(str(folder))
    assert_explained(caught.value, folder)


@pytest.mark.parametrize("name", ["gpt2", "phi", "phi3", "opt", "falcon", "gpt_neo"])
def test_a_student_has_no_dropout(name: str, tmp_path: Path) -> None:
    everywhere = {"attn_pdrop": 0.5, "resid_pdrop": 0.5, "embd_pdrop": 0.5, "dropout": 0.5, "attention_dropout": 0.5}
    everywhere |= {"hidden_dropout": 0.5, "layerdrop": 0.5, "embed_dropout": 0.5, "emb_pdrop": 0.5}
    student = load_student(write_model(tmp_path, name, **everywhere))
    ids = torch.arange(1, 9)[None]
    assert student.training
    trained_on, asked = student(input_ids=ids).logits, student.eval()(input_ids=ids).logits
    assert torch.equal(trained_on, asked)


def config(name: str, **options: Any) -> PretrainedConfig:
    return CONFIG_MAPPING[name](**options)


LONGROPE = {"rope_type": "longrope", "short_factor": [1.0] * 16, "long_factor": [2.0] * 16}


@pytest.mark.parametrize(
    ("made", "window"),
    [
        (config("llama", max_position_embeddings=300), 300),
        (config("mistral", max_position_embeddings=300, sliding_window=20), 300),
        (config("gpt2", n_positions=300), 300),
        (config("mpt", max_seq_len=300), 300),
        (config("mamba"), 2**31),
        (config("gemma3", text_config={"max_position_embeddings": 300}), 300),
        (
            config(
                "phi3",
                hidden_size=128,
                num_attention_heads=4,
                num_key_value_heads=4,
                max_position_embeddings=3000,
                original_max_position_embeddings=300,
                rope_parameters=LONGROPE,
            ),
            300,
        ),
        (
            config(
                "llama",
                max_position_embeddings=3000,
                rope_parameters={"rope_type": "yarn", "factor": 10.0, "original_max_position_embeddings": 300},
            ),
            3000,
        ),
    ],
    ids=["llama", "windowed", "gpt2", "mpt", "mamba", "nested", "longrope", "yarn"],
)
def test_the_window_is_what_a_model_was_made_for(made: PretrainedConfig, window: int) -> None:
    assert window_of(made) == window


def test_context_window_is_read_without_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    assert context_window(str(folder)) == 8192


@pytest.mark.parametrize(("configured", "expected"), [(7, {3, 7}), ([7, 8], {3, 7, 8}), (None, {3}), (3, {3})])
def test_stop_ids_join_the_configured_ones_and_the_end_of_turn(
    tiny_model: PreTrainedModel, configured: int | list[int] | None, expected: set[int]
) -> None:
    tiny_model.generation_config.eos_token_id = configured
    assert stop_token_ids(tiny_model, 3) == expected


def test_stop_ids_of_a_model_without_generation_config() -> None:
    assert stop_token_ids(SimpleNamespace(generation_config=None), 3) == {3}  # type: ignore[arg-type]


def test_fingerprint_is_the_same_for_the_same_weights(tiny_model: PreTrainedModel, tiny_model_path: str) -> None:
    assert weights_fingerprint(tiny_model) == weights_fingerprint(load_student(tiny_model_path))


def test_fingerprint_leaves_the_weights_alone(tiny_model: PreTrainedModel) -> None:
    before = {name: tensor.clone() for name, tensor in tiny_model.state_dict().items()}
    weights_fingerprint(tiny_model)
    assert all(torch.equal(before[name], tensor) for name, tensor in tiny_model.state_dict().items())


def test_fingerprint_differs_after_any_one_tensor_changed(tiny_model: PreTrainedModel) -> None:
    seen = {weights_fingerprint(tiny_model)}
    for parameter in tiny_model.parameters():
        with torch.no_grad():
            parameter.add_(1e-3)
        seen.add(weights_fingerprint(tiny_model))
    assert len(seen) == 1 + len(list(tiny_model.parameters()))


def test_fingerprint_tells_shapes_with_the_same_values_apart() -> None:
    wide, tall = torch.nn.Linear(2, 8, bias=False), torch.nn.Linear(8, 2, bias=False)
    with torch.no_grad():
        tall.weight.copy_(wide.weight.view(2, 8))
    assert weights_fingerprint(wide) != weights_fingerprint(tall)
