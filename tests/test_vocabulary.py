"""Tokens without a text are never written, by whatever way; a tokenizer that does not fit its model is refused."""

import shutil
from pathlib import Path

import pytest
import torch
from architectures import write_model
from conftest import make_tokenizer, transformers_greedy
from tokenizers import AddedToken
from transformers import AutoModelForCausalLM, GenerationConfig, PreTrainedModel

from mixsd_lightning.context import ChatEncoder
from mixsd_lightning.decoding.engine import MixingEngine
from mixsd_lightning.decoding.generation import Sampling, generate_greedy, roll_out
from mixsd_lightning.decoding.mixing import MixingSettings, MixingTask
from mixsd_lightning.errors import UserError
from mixsd_lightning.models import load_student, load_tokenizer
from mixsd_lightning.vocabulary import check_vocabulary, suppressed_ids

NUM_TOKENS = 259
NUM_EMBEDDINGS = 300
PROMPTS = [[5, 6, 7], [8, 9, 10, 11, 12, 13], [5, 6, 7, 8]]


@pytest.fixture(scope="module", params=["llama", "mpt", "mamba"])
def padded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A model that would write nothing but tokens without a text."""
    folder = write_model(tmp_path_factory.mktemp("padded"), request.param, vocab_size=NUM_EMBEDDINGS)
    model = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        model.get_output_embeddings().weight[NUM_TOKENS:] *= 20
    model.save_pretrained(folder)
    return folder


@pytest.fixture
def llama(tmp_path: Path) -> PreTrainedModel:
    return load_student(write_model(tmp_path, "llama", vocab_size=NUM_EMBEDDINGS))


def written(completions: list[list[int]]) -> set[int]:
    return {token for completion in completions for token in completion}


def test_greedy_answers_and_rollouts_hold_tokens_with_a_text_alone(padded: str) -> None:
    free = AutoModelForCausalLM.from_pretrained(padded)
    assert max(written([transformers_greedy(free, prompt, frozenset(), 8) for prompt in PROMPTS])) >= NUM_TOKENS
    student = load_student(padded)
    greedy = [c.token_ids for c in generate_greedy(student, PROMPTS, max_new_tokens=8, stop_ids=frozenset())]
    assert max(written(greedy)) < NUM_TOKENS
    assert greedy == [transformers_greedy(student, prompt, frozenset(), 8) for prompt in PROMPTS]
    options = {"num_rollouts": 4, "max_new_tokens": 8, "stop_ids": frozenset()}
    for sampling in (Sampling(1.0), Sampling(1.0, top_k=50), Sampling(2.0, top_p=0.9)):
        rollouts = roll_out(student, PROMPTS, ["a", "b", "c"], sampling, **options)  # type: ignore[arg-type]
        assert max(written([c.token_ids for completions in rollouts for c in completions])) < NUM_TOKENS


@pytest.mark.parametrize(("temperature", "top_k"), [(0.0, 0), (1.0, 0), (1.0, 8)])
def test_mixed_targets_hold_tokens_with_a_text_alone(llama: PreTrainedModel, temperature: float, top_k: int) -> None:
    with torch.no_grad():  # the head is the embedding
        llama.get_input_embeddings().weight[NUM_TOKENS:] *= 20  # type: ignore[union-attr, index, operator]
    settings = MixingSettings(0.5, temperature, top_k, max_new_tokens=8)
    tasks = [MixingTask(f"example-{index}", 0, prompt, [*prompt, 40, 41]) for index, prompt in enumerate(PROMPTS)]
    results = list(MixingEngine(llama, settings, frozenset()).generate(tasks, lambda task, completion: True, 1))
    assert len(results) == 3
    assert max(written([result.completion.token_ids for result in results])) < NUM_TOKENS


def test_holes_in_a_vocabulary_count_and_what_the_model_forbids_stays_forbidden(tmp_path: Path) -> None:
    folder = write_model(tmp_path, "llama", vocab_size=265)
    tokenizer = make_tokenizer()
    GenerationConfig(suppress_tokens=[7]).save_pretrained(folder)
    student = load_student(folder)
    assert suppressed_ids(student, tokenizer) == list(range(259, 265))
    assert student.generation_config.suppress_tokens == [7, *range(259, 265)]


def test_nothing_is_forbidden_where_all_embeddings_have_a_text(tiny_model: PreTrainedModel) -> None:
    assert tiny_model.generation_config.suppress_tokens is None


def test_a_tokenizer_with_more_tokens_than_the_model_is_refused(tiny_model_path: str, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_model_path, tmp_path / "model")
    tokenizer = load_tokenizer(str(folder))
    tokenizer.add_tokens(["zebra"])
    tokenizer.save_pretrained(folder)
    with pytest.raises(
        UserError, match=r"gives ids up to 259 \(such as 259, 'zebra'\), but the model has 259 embeddings"
    ) as caught:
        load_student(str(folder))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("is_used", "fits"), [(False, True), (True, False)])
def test_special_tokens_may_lie_beyond_the_embeddings_if_no_chat_contains_them(
    tiny_model: PreTrainedModel, is_used: bool, fits: bool
) -> None:
    tokenizer = make_tokenizer()
    tokenizer.add_tokens([AddedToken("<image>", special=True)])
    if is_used:
        tokenizer.chat_template = tokenizer.chat_template.replace("<|im_end|>", "<image>")
    if fits:
        check_vocabulary(tiny_model, tokenizer)
    else:
        with pytest.raises(UserError, match="'<image>'"):
            check_vocabulary(tiny_model, tokenizer)


def test_neither_pad_nor_bos_token_is_needed(tmp_path: Path) -> None:
    tokenizer = make_tokenizer()
    tokenizer.pad_token = tokenizer.bos_token = None
    student = load_student(write_model(tmp_path, "llama", tokenizer))
    found = generate_greedy(student, PROMPTS, max_new_tokens=8, stop_ids=frozenset([257]))
    assert [c.token_ids for c in found] == [transformers_greedy(student, p, frozenset([257]), 8) for p in PROMPTS]


def test_the_template_may_end_a_turn_where_there_is_no_eos_token(tmp_path: Path) -> None:
    tokenizer = make_tokenizer()
    tokenizer.eos_token = None
    assert ChatEncoder(tokenizer).end_of_turn_id == 257
    tokenizer.chat_template = None
    with pytest.raises(UserError, match=r"Set eos_token in its tokenizer_config\.json"):
        ChatEncoder(tokenizer)
