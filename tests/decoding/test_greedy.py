"""Cached, batched decoding gives what the model alone would say, whatever else is in the batch."""

import random
from collections.abc import Sequence

import pytest
import torch
from mixsd_lightning.decoding.decode import CachedRows, Completion, decode, generate_greedy, is_looping
from torch import Tensor
from transformers import PreTrainedModel

END = 256
LENGTHS = (1, 300, 2, 40, 9, 150, 41)
NUM_TOKENS = 20


def random_prompts(lengths: Sequence[int] = LENGTHS, seed: int = 0) -> list[list[int]]:
    rng = random.Random(seed)
    return [[rng.randrange(256) for _ in range(length)] for length in lengths]


def transformers_greedy(
    model: PreTrainedModel, prompt: list[int], stop_ids: frozenset[int], max_new_tokens: int = NUM_TOKENS
) -> list[int]:
    ids = torch.tensor([prompt])
    output = model.eval().generate(
        ids,
        attention_mask=torch.ones_like(ids),
        do_sample=False,
        max_new_tokens=max_new_tokens,
        eos_token_id=sorted(stop_ids),
        pad_token_id=0,
    )
    return output[0, len(prompt) :].tolist()


@torch.no_grad()
def next_logits(model: PreTrainedModel, token_ids: Sequence[int]) -> Tensor:
    return model(torch.tensor([list(token_ids)])).logits[0, -1]


@pytest.fixture
def stop_ids(tiny_model: PreTrainedModel) -> frozenset[int]:
    """Stop tokens that some of the prompts run into, at different positions."""
    endless = [transformers_greedy(tiny_model, prompt, frozenset([END])) for prompt in random_prompts()]
    return frozenset([END, endless[0][3], endless[3][11]])


@pytest.mark.parametrize("batch_size", [1, 2, 3, 64])
def test_greedy_equals_transformers_generate(tiny_model: PreTrainedModel, stop_ids: frozenset[int], batch_size: int) -> None:
    prompts = random_prompts()
    completions = generate_greedy(tiny_model, prompts, max_new_tokens=NUM_TOKENS, stop_ids=stop_ids, batch_size=batch_size)
    assert [c.token_ids for c in completions] == [transformers_greedy(tiny_model, prompt, stop_ids) for prompt in prompts]
    assert {c.finish_reason for c in completions} == {"stop", "max_new_tokens"}


def test_greedy_does_not_depend_on_order(tiny_model: PreTrainedModel, stop_ids: frozenset[int]) -> None:
    prompts = random_prompts()
    shuffled = random.Random(1).sample(range(len(prompts)), len(prompts))
    options = {"max_new_tokens": NUM_TOKENS, "stop_ids": stop_ids, "batch_size": 3}
    straight = generate_greedy(tiny_model, prompts, **options)
    mixed_up = generate_greedy(tiny_model, [prompts[index] for index in shuffled], **options)
    assert mixed_up == [straight[index] for index in shuffled]


def test_greedy_of_no_prompts_is_empty(tiny_model: PreTrainedModel) -> None:
    assert generate_greedy(tiny_model, [], max_new_tokens=3, stop_ids=frozenset()) == []


def test_greedy_stops_at_every_stop_id(tiny_model: PreTrainedModel) -> None:
    prompts = random_prompts((9,))
    endless = generate_greedy(tiny_model, prompts, max_new_tokens=NUM_TOKENS, stop_ids=frozenset())[0].token_ids
    for token in set(endless):
        (stopped,) = generate_greedy(tiny_model, prompts, max_new_tokens=NUM_TOKENS, stop_ids=frozenset([token, END]))
        assert stopped == Completion(endless[: endless.index(token) + 1], "stop")


@pytest.mark.parametrize("max_new_tokens", [1, 2, 7])
def test_completions_end_at_max_new_tokens(tiny_model: PreTrainedModel, max_new_tokens: int) -> None:
    completions = generate_greedy(tiny_model, random_prompts(), max_new_tokens=max_new_tokens, stop_ids=frozenset())
    assert {(len(c.token_ids), c.finish_reason) for c in completions} == {(max_new_tokens, "max_new_tokens")}


def test_a_stop_token_at_the_last_position_counts_as_stop(tiny_model: PreTrainedModel) -> None:
    prompts = random_prompts((40,))
    (completion,) = generate_greedy(tiny_model, prompts, max_new_tokens=1, stop_ids=frozenset())
    stop_ids = frozenset(completion.token_ids)
    assert generate_greedy(tiny_model, prompts, max_new_tokens=1, stop_ids=stop_ids)[0].finish_reason == "stop"


def test_finished_entries_leave_without_changing_the_others(tiny_model: PreTrainedModel) -> None:
    prompts = random_prompts()
    lifetimes = [4, 1, 6, 2, 6, 3, 5]
    in_flight_at: list[list[int]] = []

    def choose(in_flight: list[int], position: int, logits_CBV: Tensor) -> Tensor:
        in_flight_at.append(in_flight)
        ends = torch.tensor([lifetimes[entry] == position + 1 for entry in in_flight])
        return torch.where(ends, END, logits_CBV[0, :, :END].argmax(-1))

    completions = decode(tiny_model, [prompts], choose, max_new_tokens=9, stop_ids=frozenset([END]))
    for prompt, lifetime, completion in zip(prompts, lifetimes, completions, strict=True):
        tokens: list[int] = []
        while len(tokens) < lifetime - 1:
            tokens.append(int(next_logits(tiny_model, prompt + tokens)[:END].argmax()))
        assert completion == Completion([*tokens, END], "stop")
    assert in_flight_at == [[entry for entry in range(7) if lifetimes[entry] > position] for position in range(6)]


def test_every_context_sees_the_shared_completion(tiny_model: PreTrainedModel) -> None:
    contexts = [random_prompts((3, 60, 12), seed=1), random_prompts((90, 5, 30), seed=2), random_prompts((7, 8, 9), seed=3)]
    forced = random_prompts((5, 5, 5), seed=4)
    forced[1][1] = END

    def choose(in_flight: list[int], position: int, logits_CBV: Tensor) -> Tensor:
        for context, prompts in enumerate(contexts):
            for slot, entry in enumerate(in_flight):
                expected = next_logits(tiny_model, prompts[entry] + forced[entry][:position])
                torch.testing.assert_close(logits_CBV[context, slot], expected, rtol=1e-4, atol=1e-4)
        return torch.tensor([forced[entry][position] for entry in in_flight])

    completions = decode(tiny_model, contexts, choose, max_new_tokens=5, stop_ids=frozenset([END]))
    assert [c.token_ids for c in completions] == [forced[0], forced[1][:2], forced[2]]


def test_decoding_ends_repetition_only_when_asked(tiny_model: PreTrainedModel) -> None:
    def always_seven(in_flight: list[int], position: int, logits_CBV: Tensor) -> Tensor:
        return torch.full((len(in_flight),), 7)

    for asked, expected in ((True, (16, "repetition")), (False, (20, "max_new_tokens"))):
        (completion,) = decode(
            tiny_model,
            [[[1, 2]]],
            always_seven,
            max_new_tokens=20,
            stop_ids=frozenset([END]),
            stop_on_repetition=asked,
        )
        assert (len(completion.token_ids), completion.finish_reason) == expected


@pytest.mark.parametrize("training", [True, False])
def test_decoding_runs_in_eval_mode_and_restores_the_mode(tiny_model: PreTrainedModel, training: bool) -> None:
    tiny_model.train(training)
    seen: list[bool] = []

    def choose(in_flight: list[int], position: int, logits_CBV: Tensor) -> Tensor:
        seen.append(tiny_model.training)
        return logits_CBV[0].argmax(-1)

    decode(tiny_model, [[[1, 2]]], choose, max_new_tokens=2, stop_ids=frozenset())
    assert seen == [False, False]
    assert {module.training for module in tiny_model.modules()} == {training}


def test_decoding_tracks_no_gradient(tiny_model: PreTrainedModel) -> None:
    def choose(in_flight: list[int], position: int, logits_CBV: Tensor) -> Tensor:
        assert not logits_CBV.requires_grad
        return logits_CBV[0].argmax(-1)

    decode(tiny_model, [[[1, 2]]], choose, max_new_tokens=2, stop_ids=frozenset())


def test_bf16_autocast_does_not_change_cpu_decoding(tiny_model: PreTrainedModel) -> None:
    logits: list[Tensor] = []

    def choose(in_flight: list[int], position: int, logits_CBV: Tensor) -> Tensor:
        logits.append(logits_CBV)
        return logits_CBV[0].argmax(-1)

    decode(tiny_model, [[[1, 2, 3]]], choose, max_new_tokens=1, stop_ids=frozenset())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        decode(tiny_model, [[[1, 2, 3]]], choose, max_new_tokens=1, stop_ids=frozenset())
    assert torch.equal(logits[0], logits[1])


@torch.no_grad()
@pytest.mark.parametrize("kept", [[0, 1, 2, 3], [2], [3, 0], [1, 2, 3]])
def test_kept_rows_go_on_as_if_they_were_alone(tiny_model: PreTrainedModel, kept: list[int]) -> None:
    prompts = random_prompts((5, 70, 1, 20))
    rows = CachedRows(tiny_model.eval(), prompts)
    rows.append(torch.tensor([10, 11, 12, 13]))
    rows.keep(kept)
    texts = [[*prompts[row], 10 + row] for row in kept]
    for token in (50, 51):
        expected_NV = torch.stack([next_logits(tiny_model, text) for text in texts])
        torch.testing.assert_close(rows.logits_NV, expected_NV, rtol=1e-4, atol=1e-4)
        rows.append(torch.full((len(kept),), token))
        texts = [[*text, token] for text in texts]


@pytest.mark.parametrize(
    ("token_ids", "looping"),
    [
        ([], False),
        ([7] * 15, False),
        ([7] * 16, True),
        ([1, 2] * 7 + [1], False),
        ([1, 2] * 8, True),
        ([1, 2, 3] * 5, False),
        ([1, 2, 3] * 5 + [1], True),
        ([1, 2, 3, 4] * 4, True),
        ([1, 2, 3, 4, 5] * 3 + [1, 2, 3, 4], False),
        ([1, 2, 3, 4, 5] * 4, True),
        (list(range(16)) * 4, True),
        ((list(range(16)) * 4)[1:], False),
        (list(range(17)) * 8, False),
        ([7] * 30 + [8], False),
        ([9, 8] + [7] * 16, True),
        ([7] * 8 + [8] + [7] * 15, False),
        (list(range(100)), False),
    ],
)
def test_is_looping(token_ids: list[int], looping: bool) -> None:
    assert is_looping(token_ids) is looping


def test_is_looping_heeds_the_longest_period() -> None:
    assert is_looping([1, 2, 3] * 8, longest_period=3)
    assert not is_looping([1, 2, 3] * 8, longest_period=2)
