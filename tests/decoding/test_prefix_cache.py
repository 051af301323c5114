"""Packed forwards over a tree of prefixes give the logits of plain forwards, for every kind of attention."""

import random
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    CONFIG_MAPPING,
    AutoModelForCausalLM,
    PreTrainedModel,
)

from mixsd_lightning.decoding import prefix_cache
from mixsd_lightning.decoding.attention_plan import Span
from mixsd_lightning.decoding.prefix_cache import PrefixCache
from mixsd_lightning.errors import UserError

VOCABULARY = 64
WINDOW = 5
SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 256,
    "initializer_range": 0.3,  # large enough that attention is far from even
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
ALTERNATING = ["sliding_attention", "full_attention"]
MODELS: dict[str, dict[str, Any]] = {
    "llama": {},
    "mistral": {"sliding_window": WINDOW},
    "gemma2": {
        "sliding_window": WINDOW,
        "layer_types": ALTERNATING,
        "attn_logit_softcapping": 2.0,
        "final_logit_softcapping": 5.0,
        "query_pre_attn_scalar": 8,
        "attn_implementation": "eager",  # the only one that caps
    },
    "gemma3_text": {"sliding_window": WINDOW, "layer_types": ALTERNATING, "query_pre_attn_scalar": 16},
    "gpt2": {"n_embd": 32, "n_head": 4, "n_layer": 2, "n_inner": 48, "n_positions": 256},
    "qwen3": {},
    "qwen2": {"sliding_window": WINDOW, "use_sliding_window": True, "layer_types": ALTERNATING},
    "phi": {"num_key_value_heads": 4},
}
# transformers' capped attention takes its softmax in float32, in float64 models too.
TOLERANCE = {"gemma2": 1e-5}


def make_model(name: str, **options: Any) -> PreTrainedModel:
    """A random two-layer model in float64, in training mode (some have dropout)."""
    torch.manual_seed(0)
    sizes = {"vocab_size": VOCABULARY, "initializer_range": 0.3} if name == "gpt2" else SIZES
    options = {**sizes, **MODELS[name], **options}
    implementation = options.pop("attn_implementation", "sdpa")
    config = CONFIG_MAPPING[name](**options)
    return AutoModelForCausalLM.from_config(config, attn_implementation=implementation).double().train()


@pytest.fixture
def llama() -> PreTrainedModel:
    return make_model("llama")


@torch.no_grad()
def plain_logits(model: PreTrainedModel, texts: Sequence[Sequence[int]]) -> Tensor:
    """What follows each text, by a plain forward of each."""
    was_training = model.training
    model.eval()
    logits = torch.stack([model(torch.tensor([list(text)]), use_cache=False).logits[0, -1] for text in texts])
    model.train(was_training)
    return logits


def random_text(rng: random.Random, length: int) -> list[int]:
    return [rng.randrange(VOCABULARY) for _ in range(length)]


def root_span(row: int, text: Sequence[int]) -> Span:
    return Span(row, [], range(len(text)), text)


def random_steps(rng: random.Random, num_rows: int, num_steps: int) -> Iterator[tuple[list[Span], list[list[int]]]]:
    """Spans of some forwards, which grow a random tree in every row, and the texts that they end.

    Columns are in no order, and a span may go on with an earlier one of its own forward.
    """
    known: list[list[tuple[list[int], list[int]]]] = [[([], [])] for _ in range(num_rows)]
    free = [rng.sample(range(200), 200) for _ in range(num_rows)]
    for step in range(num_steps):
        spans, texts = [], []
        for row in rng.sample(range(num_rows), rng.randint(1, num_rows)):
            for _ in range(rng.randint(1, 3)):
                columns, text = rng.choice(known[row])
                kept = rng.randint(0, len(text)) if step else 0
                new = random_text(rng, rng.choice([1, 1, 2, 4]) if step else rng.choice([1, 3, 20]))
                places = [free[row].pop() for _ in new]
                spans.append(Span(row, columns[:kept], places, new))
                texts.append([*text[:kept], *new])
                known[row].append(([*columns[:kept], *places], texts[-1]))
        yield spans, texts


def assert_random_trees_agree(model: PreTrainedModel, tolerance: float, num_rows: int = 4, num_steps: int = 7) -> None:
    cached = PrefixCache(model, num_rows)
    for spans, texts in random_steps(random.Random(0), num_rows, num_steps):
        logits = cached.forward(spans)
        torch.testing.assert_close(logits, plain_logits(model, texts), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("name", MODELS)
def test_logits_equal_plain_forwards(name: str) -> None:
    assert_random_trees_agree(make_model(name), TOLERANCE.get(name, 1e-9))


@pytest.mark.parametrize("name", ["llama", "mistral", "gemma2"])
@pytest.mark.parametrize("num_rows", [1, 9])
def test_logits_do_not_depend_on_the_number_of_rows(name: str, num_rows: int) -> None:
    assert_random_trees_agree(make_model(name), TOLERANCE.get(name, 1e-9), num_rows)


@pytest.mark.parametrize("name", MODELS)
def test_float32_logits_are_close(name: str) -> None:
    assert_random_trees_agree(make_model(name).float(), 1e-4)


@pytest.mark.parametrize(
    ("name", "option"),
    [
        ("mistral", {"sliding_window": 200}),
        ("gemma2", {"sliding_window": 200}),
        ("gemma3_text", {"sliding_window": 200}),
        ("gemma2", {"attn_logit_softcapping": None}),
    ],
)
def test_windows_and_caps_matter_in_these_tests(name: str, option: dict[str, Any]) -> None:
    text = random_text(random.Random(0), 3 * WINDOW)
    without = plain_logits(make_model(name, **option), [text])
    assert (plain_logits(make_model(name), [text]) - without).abs().max() > 1e-2


@pytest.mark.parametrize("name", ["llama", "mistral", "gemma2"])
@pytest.mark.parametrize("max_tokens", [1, 7, 8])
def test_long_spans_are_cut_into_batches(name: str, max_tokens: int, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = random_text(random.Random(0), 20)
    model = make_model(name)
    monkeypatch.setattr(prefix_cache, "_MAX_TOKENS", max_tokens)
    lengths = []
    model.get_input_embeddings().register_forward_hook(lambda module, args, output: lengths.append(args[0].shape[1]))
    PrefixCache(model, 1).forward([root_span(0, whole)])
    assert sum(lengths) == 20
    assert max(lengths) == max_tokens
    assert_random_trees_agree(model, TOLERANCE.get(name, 1e-9), num_steps=4)


def test_a_span_may_attend_to_spans_before_it_in_the_same_forward(llama: PreTrainedModel) -> None:
    text = random_text(random.Random(0), 12)
    spans = [Span(0, list(range(start)), range(start, start + 4), text[start : start + 4]) for start in (0, 4, 8)]
    logits = PrefixCache(llama, 1).forward(spans)
    torch.testing.assert_close(logits, plain_logits(llama, [text[:4], text[:8], text]))


def test_columns_can_be_used_again(llama: PreTrainedModel) -> None:
    rng = random.Random(0)
    old, new = random_text(rng, 10), random_text(rng, 6)
    cached = PrefixCache(llama, 1)
    cached.forward([root_span(0, old)])
    logits = cached.forward([Span(0, range(4), [9, 5, 7, 6, 8, 4], new)])
    torch.testing.assert_close(logits, plain_logits(llama, [[*old[:4], *new]]))


def test_a_cache_grows_when_it_must_and_forgets_nothing(llama: PreTrainedModel) -> None:
    text = random_text(random.Random(0), 60)
    cached = PrefixCache(llama, 2)
    cached.forward([root_span(1, text[:3])])
    before = cached.num_columns
    logits = cached.forward([Span(1, range(3), range(3, 60), text[3:])])
    assert before < 60 <= cached.num_columns
    torch.testing.assert_close(logits, plain_logits(llama, [text]))


def test_reserve_only_adds(llama: PreTrainedModel) -> None:
    text = random_text(random.Random(0), 8)
    cached = PrefixCache(llama, 2)
    cached.reserve(20)
    cached.reserve(10)
    assert (cached.num_rows, cached.num_columns) == (2, 20)
    cached.forward([root_span(1, text[:5])])
    cached.reserve(30)
    assert cached.num_columns == 30
    logits = cached.forward([Span(1, range(5), [27, 28, 29], text[5:])])
    torch.testing.assert_close(logits, plain_logits(llama, [text]))


@pytest.mark.parametrize("rows", [[0, 1, 2, 3], [2], [3, 0], [1, 2, 3]])
def test_kept_rows_move_up_and_go_on_alike(llama: PreTrainedModel, rows: list[int]) -> None:
    rng = random.Random(0)
    texts = [random_text(rng, length) for length in (5, 30, 1, 12)]
    cached = PrefixCache(llama, 4)
    cached.forward([root_span(row, text) for row, text in enumerate(texts)])
    cached.keep(rows)
    assert cached.num_rows == len(rows)
    spans = [Span(place, range(len(texts[row])), [31], [row]) for place, row in enumerate(rows)]
    torch.testing.assert_close(cached.forward(spans), plain_logits(llama, [[*texts[row], row] for row in rows]))


def test_a_copied_prefix_serves_its_new_row(llama: PreTrainedModel) -> None:
    rng = random.Random(0)
    shared, source, target = (random_text(rng, 9) for _ in range(3))
    cached = PrefixCache(llama, 3)
    cached.forward([root_span(2, shared)])
    cached.copy(2, 0, range(9))
    spans = [Span(0, range(9), range(9, 18), target), Span(2, range(9), range(9, 18), source)]
    torch.testing.assert_close(cached.forward(spans), plain_logits(llama, [shared + target, shared + source]))


@pytest.mark.parametrize("num_columns", [0, 4])
def test_copying_before_anything_was_run_does_nothing(llama: PreTrainedModel, num_columns: int) -> None:
    cached = PrefixCache(llama, 2)
    cached.reserve(num_columns)
    cached.copy(1, 0, range(0))
    torch.testing.assert_close(cached.forward([root_span(0, [5, 6])]), plain_logits(llama, [[5, 6]]))


def test_a_layer_without_keys_and_values_is_an_error(llama: PreTrainedModel) -> None:
    llama.config.layer_types = ["full_attention", "linear_attention"]
    with pytest.raises(UserError, match="--model.model_name_or_path: .* it has linear_attention layers"):
        PrefixCache(llama, 1)


@pytest.mark.parametrize(
    ("name", "options", "reason"),
    [
        ("bloom", {}, "its attention cannot be replaced"),
        ("stablelm", {}, "its layers do not pass arguments on"),
        ("diffllama", {}, "its layers attend more than once"),
        ("gpt_oss", {"num_local_experts": 2, "head_dim": 8}, "sinks"),
    ],
)
def test_attention_of_another_kind_is_an_error(name: str, options: dict[str, Any], reason: str) -> None:
    implementation = "eager" if name == "gpt_oss" else None
    sizes = {"vocab_size": VOCABULARY} if name == "bloom" else SIZES
    config = CONFIG_MAPPING[name](**(sizes | options))
    model = AutoModelForCausalLM.from_config(config, attn_implementation=implementation)
    with pytest.raises(UserError, match=f"--model.model_name_or_path: .*{reason}"):
        PrefixCache(model, 1).forward([Span(0, [], [0], [1])])


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("token", [5, 10**6], ids=["success", "failure"])
def test_the_model_is_left_as_it_was(llama: PreTrainedModel, training: bool, implementation: str, token: int) -> None:
    llama.set_attn_implementation(implementation)
    llama.train(training)
    expected = plain_logits(llama, [[1, 2, 3]])
    seen = []
    llama.register_forward_pre_hook(lambda module, args: seen.append((module.training, module.config._attn_implementation)))
    cached = PrefixCache(llama, 1)
    if token == 5:
        cached.forward([root_span(0, [5])])
    else:
        with pytest.raises(IndexError):
            cached.forward([root_span(0, [token])])
    assert seen == [(False, "prefix_cache")]
    assert llama.config._attn_implementation == implementation
    assert {module.training for module in llama.modules()} == {training}
    assert torch.equal(plain_logits(llama, [[1, 2, 3]]), expected)


def test_no_gradient_is_tracked(llama: PreTrainedModel) -> None:
    assert not PrefixCache(llama, 1).forward([root_span(0, [5, 6])]).requires_grad


def test_bf16_autocast_does_not_change_logits_on_a_cpu(llama: PreTrainedModel) -> None:
    plain = PrefixCache(llama.float(), 1).forward([root_span(0, [5, 6])])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(PrefixCache(llama, 1).forward([root_span(0, [5, 6])]), plain)
