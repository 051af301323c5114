"""Inputs that models and data come with in real life, through the command line and the methods: trained on, or one line."""

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from architectures import make_model, write_model
from conftest import make_tokenizer
from lightning.pytorch import Trainer
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, PreTrainedModel

from mixsd_lightning import OPSD, SFT, KGFact, KnowledgeModule, MixSD, UniSD
from mixsd_lightning.cli import main
from mixsd_lightning.context import PLAIN_TEMPLATE, ChatEncoder
from mixsd_lightning.decoding.generation import generate_greedy
from mixsd_lightning.errors import UserError
from mixsd_lightning.evaluation.suites.bits_per_byte import paragraph_ids
from mixsd_lightning.export import export_student


@pytest.fixture(autouse=True)
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["mixsd_lightning"])


def run(model: str, *arguments: str) -> None:
    corpus = ["--data", "KGFact", "--data.num_domains", "2", "--data.num_entities", "4", "--data.batch_size", "4"]
    quick = ["--model.max_new_tokens", "8", "--trainer.accelerator", "cpu", "--trainer.max_steps", "6"]
    quick += ["--trainer.limit_val_batches", "0", "--trainer.precision", "32-true", "--retention.suites", "[]"]
    main(
        [
            "fit",
            "--model",
            "SFT",
            "--model.model_name_or_path",
            model,
            *corpus,
            *quick,
            "--drift.num_sequences",
            "1",
            *arguments,
        ]
    )


def refusal(capsys: pytest.CaptureFixture[str], model: str, *arguments: str) -> str:
    """The one line that the command line ends with."""
    with pytest.raises(SystemExit) as ended:
        run(model, *arguments)
    assert ended.value.code == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    return line


def test_a_learning_rate_that_explodes_ends_in_one_line(tiny_model_path: str, capsys: pytest.CaptureFixture[str]) -> None:
    line = refusal(capsys, tiny_model_path, "--model.learning_rate", "1e30", "--model.warmup_steps", "0")
    assert re.search(
        r"Stopped before optimizer step \d \(epoch \d\): the (loss of batch 0|norm of the gradient) is (nan|inf)", line
    )


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_refused_before_training(
    tiny_model_path: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], bad: float
) -> None:
    folder = Path(write_model(tmp_path / "model", "llama"))
    weights = load_file(folder / "model.safetensors")
    weights["model.layers.0.mlp.down_proj.weight"][0] = bad
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    assert "are not finite before any training" in refusal(capsys, str(folder))
    assert not Path("runs").exists()


def test_a_model_that_cannot_end_an_answer_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tokenizer = make_tokenizer()
    tokenizer.chat_template = tokenizer.eos_token = None
    assert "says how an answer ends" in refusal(capsys, write_model(tmp_path / "model", "gpt2", tokenizer))
    assert not Path("runs").exists()


def test_a_model_without_a_chat_template_is_trained_and_exported_with_the_plain_one(tmp_path: Path) -> None:
    tokenizer = make_tokenizer()
    tokenizer.chat_template = tokenizer.pad_token = None
    method = SFT(write_model(tmp_path / "model", "gpt2", tokenizer, vocab_size=270), max_new_tokens=4)
    method.configure_model()
    export_student(method, tmp_path / "exported")
    exported = AutoTokenizer.from_pretrained(tmp_path / "exported")
    assert exported.chat_template == PLAIN_TEMPLATE
    turns = [{"role": "user", "content": "Hi"}]
    rendered = exported.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    assert rendered == "<|im_start|>User:\nHi\n\nAssistant:\n"
    generation = json.loads((tmp_path / "exported/generation_config.json").read_text())
    assert generation["eos_token_id"] == [257]
    assert generation["suppress_tokens"] == list(range(259, 270))


# --- windows -----------------------------------------------------------------------------------------------------------


def small(folder: Path, name: str, window: int) -> str:
    key = "n_positions" if name == "gpt2" else "max_position_embeddings"
    return write_model(folder / f"{name}-{window}", name, **{key: window})


def prepare(method: KnowledgeModule, folder: Path, **options: Any) -> None:
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False, "logger": False}
    trainer = Trainer(default_root_dir=folder, max_steps=1, accelerator="cpu", limit_val_batches=0, **quiet)
    trainer.fit(method, KGFact(num_domains=2, num_entities=2, eval_splits=["train"], **options))


@pytest.mark.parametrize("name", ["gpt2", "mistral"])
@pytest.mark.parametrize("method_class", [SFT, MixSD, OPSD, UniSD])
def test_a_prompt_longer_than_the_window_names_its_example(
    tmp_path: Path, name: str, method_class: type[KnowledgeModule]
) -> None:
    with pytest.raises(UserError, match=r"example 'train-\S+'.* window") as caught:
        prepare(method_class(small(tmp_path, name, 64), max_new_tokens=8), tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("method_class", [MixSD, OPSD])
def test_an_expert_prompt_longer_than_the_window_names_its_example(
    tmp_path: Path, method_class: type[KnowledgeModule]
) -> None:
    """The naive prompts fit, and so do their answers."""
    method = SFT(small(tmp_path, "gpt2", 2048))
    items = method.training_items(KGFact(num_domains=2, num_entities=2).split("train"))
    window = max(len(item.prompt_ids) + len(item.target_ids) for item in items)
    path = small(tmp_path, "gpt2", window)
    prepare(SFT(path, max_new_tokens=8), tmp_path)
    with pytest.raises(UserError, match=r"example 'train-\S+'.* window"):
        prepare(method_class(path, max_new_tokens=8), tmp_path)


def test_decoding_beyond_the_window_is_refused_wherever_it_is_asked_for() -> None:
    model: PreTrainedModel = make_model("gpt2", n_positions=20)
    assert len(generate_greedy(model, [[5] * 12], max_new_tokens=8, stop_ids=frozenset())[0].token_ids) == 8
    with pytest.raises(UserError, match="A prompt of 13 tokens and an answer of up to 8 do not fit the model's window of 20"):
        generate_greedy(model, [[5] * 3, [5] * 13], max_new_tokens=8, stop_ids=frozenset())


def test_held_out_text_longer_than_the_window_is_named(encoder: ChatEncoder) -> None:
    assert paragraph_ids(encoder, "twelve bytes", 13).shape == (1, 13)
    with pytest.raises(UserError, match=r"'twelve bytes\.\.\.' has 13 tokens, the model's window 12"):
        paragraph_ids(encoder, "twelve bytes", 12)


@torch.no_grad()
def test_texts_within_the_window_of_longrope_do_not_change_with_their_batch() -> None:
    """Beyond the first window the frequencies of all rows would be others."""
    rope = {
        "rope_type": "longrope",
        "short_factor": [1.0] * 4,
        "long_factor": [9.0] * 4,
        "original_max_position_embeddings": 40,
    }
    model = make_model("phi3", rope_parameters=rope, original_max_position_embeddings=40, sliding_window=None)
    prompts = [[5, 6, 7], [8] * 32]
    together = generate_greedy(model, prompts, max_new_tokens=8, stop_ids=frozenset())
    alone = [generate_greedy(model, [prompt], max_new_tokens=8, stop_ids=frozenset())[0] for prompt in prompts]
    assert together == alone
    with pytest.raises(UserError, match="window of 40"):
        generate_greedy(model, [[8] * 33], max_new_tokens=8, stop_ids=frozenset())
