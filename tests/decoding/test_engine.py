"""The engine gives what a plain loop gives, one forward a token and no cache, but for far less work."""

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from functools import cache
from hashlib import blake2b

import numpy as np
import pytest
import torch
from conftest import make_tiny_model, transformers_greedy
from scipy.stats import chisquare
from torch import Tensor
from transformers import PreTrainedModel

from mixsd_lightning.context import ChatEncoder, expert_context, naive_context
from mixsd_lightning.data.kgfact import KGFact
from mixsd_lightning.decoding import engine as engine_module
from mixsd_lightning.decoding import prefix_cache
from mixsd_lightning.decoding.engine import MixingEngine
from mixsd_lightning.decoding.log_probs import completion_log_probs
from mixsd_lightning.decoding.mixing import (
    EXPERT,
    NAIVE,
    AcceptRule,
    MixedCompletion,
    MixingResult,
    MixingSettings,
    MixingTask,
    draws,
    is_looping,
)
from mixsd_lightning.decoding.prefix_cache import PrefixCache
from mixsd_lightning.decoding.prefix_tree import PrefixTree
from mixsd_lightning.models import load_student, stop_token_ids

# Many, so that some completions stop early.
STOP_IDS = frozenset(range(4, 257, 16))
NUM_TOKENS = 10

RandomModel = Callable[[int], PreTrainedModel]


@pytest.fixture(scope="module")
def random_model(tmp_path_factory: pytest.TempPathFactory) -> RandomModel:
    @cache
    def load(seed: int) -> PreTrainedModel:
        folder = tmp_path_factory.mktemp("random-model")
        make_tiny_model(folder, seed)
        return load_student(str(folder)).double().eval()

    return load


def random_prompt(rng: random.Random, length: int) -> tuple[int, ...]:
    return tuple(rng.randrange(256) for _ in range(length))


def make_tasks(seed: int, beginning: Sequence[int] = ()) -> list[MixingTask]:
    """Two generations of each of some examples: prompts of all lengths, with long common prefixes, duplicates and all."""
    rng = random.Random(seed)
    long = random_prompt(rng, 60)
    pairs = [(random_prompt(rng, naive), random_prompt(rng, expert)) for naive, expert in ((1, 80), (30, 2), (9, 9))]
    pairs += [(long + random_prompt(rng, 2), long + random_prompt(rng, 20)) for _ in range(2)]
    pairs += [(long, long[:50]), (long, long), (pairs[2][0], pairs[2][0])]
    pairs += [pairs[-1], pairs[0]]
    return [
        MixingTask(f"example-{index}", generation, (*beginning, *naive), (*beginning, *expert))
        for index, (naive, expert) in enumerate(pairs)
        for generation in (0, 1)
    ]


def shuffled(tasks: Sequence[MixingTask], seed: int) -> list[MixingTask]:
    """The tasks in another order, the generations of an example still side by side."""
    rng = random.Random(seed)
    place = {example_id: rng.random() for example_id in sorted({task.example_id for task in tasks})}
    return sorted(tasks, key=lambda task: place[task.example_id])


def accept_a_quarter(task: MixingTask, completion: MixedCompletion) -> bool:
    return blake2b(repr(completion.token_ids).encode()).digest()[0] < 64


def accept_none(task: MixingTask, completion: MixedCompletion) -> bool:
    return False


# The reference.


@cache  # many tests ask for the same
@torch.no_grad()
def plain_logits(model: PreTrainedModel, token_ids: tuple[int, ...]) -> list[float]:
    return model(torch.tensor([token_ids]), use_cache=False).logits[0, -1].tolist()


def plain_draw(model: PreTrainedModel, text: tuple[int, ...], settings: MixingSettings, uniform: float) -> int:
    """Inverse of the cumulative distribution: of the top k, most probable token first, or of the vocabulary as it is."""
    logits = plain_logits(model, text)
    tokens = list(range(len(logits)))
    if settings.top_k or settings.temperature == 0:
        tokens = sorted(tokens, key=lambda token: -logits[token])[: settings.top_k or 1]
    if settings.temperature == 0:
        return tokens[0]
    weights = np.exp((np.array(logits)[tokens] - max(logits)) / settings.temperature)
    return tokens[min(int((np.cumsum(weights / weights.sum()) <= uniform).sum()), len(tokens) - 1)]


@cache
def plain_attempt(model: PreTrainedModel, task: MixingTask, attempt: int, settings: MixingSettings) -> MixedCompletion:
    completion = MixedCompletion(finish_reason="max_new_tokens")
    tokens = completion.token_ids
    for context, uniform in zip(*draws(task, attempt, settings), strict=True):
        # Where the text ends with the first tokens of an answer, the next is protected.
        begun = [(answer, n) for answer in task.answers for n in range(1, len(answer)) if tokens[-n:] == [*answer[:n]]]
        if settings.protect_answer and begun:
            expert = plain_draw(model, (*task.expert_prompt, *tokens), settings, uniform)
            if any(answer[n] == expert for answer, n in begun):
                context = EXPERT
        prompt = task.expert_prompt if context == EXPERT else task.naive_prompt
        tokens.append(plain_draw(model, (*prompt, *tokens), settings, uniform))
        completion.from_expert.append(bool(context == EXPERT))
        if tokens[-1] in STOP_IDS or is_looping(tokens):
            completion.finish_reason = "stop" if tokens[-1] in STOP_IDS else "repetition"
            break
    return completion


def plain_result(
    model: PreTrainedModel, task: MixingTask, settings: MixingSettings, accept: AcceptRule, max_attempts: int
) -> MixingResult:
    for attempt in range(1, max_attempts + 1):
        completion = plain_attempt(model, task, attempt, settings)
        if accept(task, completion):
            return MixingResult(task, attempt, completion, True)
    return MixingResult(task, max_attempts, completion, False)


def assert_equals_plain(
    engine: MixingEngine,
    model: PreTrainedModel,
    tasks: Sequence[MixingTask],
    settings: MixingSettings,
    max_attempts: int,
    accept: AcceptRule = accept_a_quarter,
) -> list[MixingResult]:
    """The engine's results are those of the loop, each once; returns them."""
    found = {
        (result.task.example_id, result.task.generation): result for result in engine.generate(tasks, accept, max_attempts)
    }
    assert len(found) == len(tasks)
    for task in tasks:
        expected = plain_result(model, task, settings, accept, max_attempts)
        assert found[task.example_id, task.generation] == expected
    return list(found.values())


# Settings, seed of the model and the tasks, and the number of attempts.
CASES = [
    (MixingSettings(0.0, 0.0, 0, NUM_TOKENS), 0, 4),
    (MixingSettings(0.0, 1.0, 5, NUM_TOKENS), 1, 12),
    (MixingSettings(0.3, 0.0, 5, NUM_TOKENS), 0, 12),
    (MixingSettings(0.3, 1.0, 0, NUM_TOKENS), 1, 4),
    (MixingSettings(0.5, 0.0, 1, NUM_TOKENS), 2, 4),
    (MixingSettings(0.5, 1.0, 5, NUM_TOKENS), 2, 12),
    (MixingSettings(0.7, 0.0, 0, NUM_TOKENS), 1, 12),
    (MixingSettings(0.7, 1.0, 1, NUM_TOKENS), 0, 1),
    (MixingSettings(1.0, 0.0, 5, NUM_TOKENS), 2, 12),
    (MixingSettings(1.0, 1.0, 0, NUM_TOKENS), 0, 12),
]


# Completions in flight, and tokens that cost as much as a step.
ENGINES = [(1, 20.0), (2, 1000.0), (3, 0.0), (64, 20.0), (64, 1000.0)]


@pytest.mark.parametrize(("num_slots", "tokens_per_step"), ENGINES)
@pytest.mark.parametrize(("settings", "seed", "max_attempts"), CASES)
def test_results_equal_a_loop_without_a_cache(
    random_model: RandomModel,
    settings: MixingSettings,
    seed: int,
    max_attempts: int,
    num_slots: int,
    tokens_per_step: float,
) -> None:
    model = random_model(seed)
    tasks = shuffled(make_tasks(seed, beginning=range(seed * 5))[: 4 + 2 * num_slots], seed=num_slots)
    engine = MixingEngine(model, settings, STOP_IDS, num_slots, tokens_per_step)
    assert_equals_plain(engine, model, tasks, settings, max_attempts)


def test_the_cases_hold_many_kinds_of_results(random_model: RandomModel) -> None:
    results = [
        plain_result(random_model(seed), task, settings, accept_a_quarter, max_attempts)
        for settings, seed, max_attempts in CASES
        for task in make_tasks(seed, beginning=range(seed * 5))
    ]
    assert {result.completion.finish_reason for result in results} == {"stop", "max_new_tokens"}
    assert set(range(1, 9)) <= {result.attempt for result in results if result.accepted}
    assert {result.attempt for result in results if not result.accepted} == {1, 4, 12}


MIXED = MixingSettings(0.5, 1.0, 5, NUM_TOKENS)


def make_engine(
    model: PreTrainedModel, settings: MixingSettings, num_slots: int = 64, tokens_per_step: float = 0.0
) -> MixingEngine:
    return MixingEngine(model, settings, STOP_IDS, num_slots, tokens_per_step)


@pytest.mark.parametrize("num_slots", [1, 5])
def test_a_measured_price_of_a_step_gives_the_same(random_model: RandomModel, num_slots: int) -> None:
    engine = MixingEngine(random_model(0), MIXED, STOP_IDS, num_slots)
    assert_equals_plain(engine, random_model(0), make_tasks(0)[:8], MIXED, 4)


def test_the_order_of_tasks_changes_nothing(random_model: RandomModel) -> None:
    tasks = make_tasks(0)[:12]
    for seed in range(2):
        random.Random(seed).shuffle(tasks)
        assert_equals_plain(make_engine(random_model(0), MIXED, 3, 20.0), random_model(0), tasks, MIXED, 12)


def test_no_tasks_give_no_results(random_model: RandomModel) -> None:
    assert list(make_engine(random_model(0), MIXED).generate([], accept_none, 4)) == []


def test_an_engine_can_run_again(random_model: RandomModel) -> None:
    engine = make_engine(random_model(0), MIXED)
    for tasks in (make_tasks(0)[:6], make_tasks(1)[:6], make_tasks(0)[:6]):
        assert_equals_plain(engine, random_model(0), tasks, MIXED, 4)


@pytest.fixture
def counting_model(tiny_model: PreTrainedModel) -> PreTrainedModel:
    """A model that mostly goes on with the next number, so that text is easy to guess but not certain."""
    with torch.no_grad():
        tiny_model.lm_head.weight = torch.nn.Parameter(tiny_model.get_input_embeddings().weight.roll(1, 0))
        for layer in tiny_model.model.layers:
            layer.self_attn.o_proj.weight *= 0.03
            layer.mlp.down_proj.weight *= 0.03
    return tiny_model.double().eval()


@pytest.mark.parametrize("temperature", [0.0, 1.5])
@pytest.mark.parametrize("tokens_per_step", [20.0, 1000.0])
def test_attempts_run_ahead_and_tokens_are_guessed(
    counting_model: PreTrainedModel, temperature: float, tokens_per_step: float
) -> None:
    settings = replace(MIXED, temperature=temperature)
    tasks = [MixingTask(f"example-{start}", 0, (7, start), (*range(150), start)) for start in (20, 52, 100, 132)]
    cautious, bold = (make_engine(counting_model, settings, 64, tokens) for tokens in (0.0, tokens_per_step))
    for engine in (cautious, bold):
        assert_equals_plain(engine, counting_model, tasks, settings, 8, accept_none)
    assert bold.statistics.forwards < cautious.statistics.forwards / 2
    assert cautious.statistics.guessed == 0
    assert bold.statistics.guessed > 5
    assert 0 < bold.statistics.guessed_right <= bold.statistics.guessed
    assert temperature == 0 or bold.statistics.guessed_right < bold.statistics.guessed


def with_answers(model: PreTrainedModel, task: MixingTask, settings: MixingSettings) -> MixingTask:
    """The task, with answers that its attempts are in the middle of where a coin picks the naive context."""
    settings = replace(settings, protect_answer=False)
    answers = [tuple(plain_attempt(model, task, 1, replace(settings, mixing_rate=0.0)).token_ids[:5])]
    for attempt in (1, 2, 3, 4):
        contexts_T, uniforms_T = draws(task, attempt, settings)
        tokens = plain_attempt(model, task, attempt, settings).token_ids
        for position in [position for position in range(1, len(tokens)) if contexts_T[position] == NAIVE][:1]:
            begun = tokens[:position]
            expert = plain_draw(model, (*task.expert_prompt, *begun), settings, uniforms_T[position])
            answers.append((*begun[-2:], expert))
    return replace(task, answers=tuple(answers))


@pytest.mark.parametrize(("num_slots", "tokens_per_step"), [(2, 0.0), (3, 20.0), (64, 1000.0)])
@pytest.mark.parametrize(("rate", "temperature", "top_k"), [(0.5, 0.0, 64), (0.7, 1.0, 2), (0.5, 1.0, 0)])
def test_answers_are_protected(
    random_model: RandomModel, rate: float, temperature: float, top_k: int, num_slots: int, tokens_per_step: float
) -> None:
    model, settings = random_model(2), MixingSettings(rate, temperature, top_k, NUM_TOKENS, protect_answer=True)
    tasks = [with_answers(model, task, settings) for task in make_tasks(2)[::2]]
    results = assert_equals_plain(make_engine(model, settings, num_slots, tokens_per_step), model, tasks, settings, 4)
    num_protected = num_naive = 0
    for task, attempt, completion, _ in results:
        for context, from_expert in zip(draws(task, attempt, settings)[0], completion.from_expert, strict=False):
            assert from_expert or context == NAIVE
            num_protected += bool(context == NAIVE and from_expert)
            num_naive += not from_expert
    assert num_protected >= 6
    assert num_naive >= 6


def test_answers_that_are_not_to_be_protected_change_nothing(random_model: RandomModel) -> None:
    model = random_model(2)
    tasks = [with_answers(model, task, MIXED) for task in make_tasks(2)[::2]]
    for result in assert_equals_plain(make_engine(model, MIXED), model, tasks, MIXED, 4):
        contexts_T, _ = draws(result.task, result.attempt, MIXED)
        assert result.completion.from_expert == (contexts_T == EXPERT).tolist()[: len(result.completion.token_ids)]


def test_repetition_is_cut_short(tiny_model: PreTrainedModel) -> None:
    # An embedding and a head that know only one token.
    with torch.no_grad():
        tiny_model.get_input_embeddings().weight[:] = 0
        tiny_model.get_input_embeddings().weight[7] = 1
    settings = MixingSettings(0.5, max_new_tokens=40)
    engine = make_engine(tiny_model.eval(), settings, tokens_per_step=20.0)
    (result,) = assert_equals_plain(engine, tiny_model, [MixingTask("example", 0, (7,), (7, 7))], settings, 2)
    assert (result.completion.token_ids, result.completion.finish_reason) == ([7] * 16, "repetition")


# Pure rates.


def assert_equals_generate(
    model: PreTrainedModel, prompt: Sequence[int], completion: MixedCompletion, stop_ids: frozenset[int]
) -> None:
    assert completion.token_ids == transformers_greedy(model, prompt, stop_ids, NUM_TOKENS)


def assert_pure_rate_equals_generate(
    model: PreTrainedModel, tasks: Sequence[MixingTask], rate: float, stop_ids: frozenset[int]
) -> None:
    engine = MixingEngine(model, MixingSettings(rate, max_new_tokens=NUM_TOKENS), stop_ids, 64, 20.0)
    results = list(engine.generate(tasks, accept_none, 1))
    assert len(results) == len(tasks)
    for task, _, completion, _ in results:
        assert_equals_generate(model, task.naive_prompt if rate == 1 else task.expert_prompt, completion, stop_ids)
        assert set(completion.from_expert) == {rate == 0}


@pytest.mark.parametrize("rate", [0.0, 1.0])
def test_pure_rates_equal_generate_on_one_prompt(tiny_model: PreTrainedModel, rate: float) -> None:
    assert_pure_rate_equals_generate(tiny_model.eval(), make_tasks(0)[::2], rate, STOP_IDS)


@pytest.mark.builtin_model
@pytest.mark.parametrize("rate", [0.0, 1.0])
def test_pure_rates_equal_generate_on_the_real_model(
    builtin_model: PreTrainedModel, builtin_encoder: ChatEncoder, rate: float
) -> None:
    tasks = [
        MixingTask(
            example.id, 0, builtin_encoder.prompt(naive_context(example)), builtin_encoder.prompt(expert_context(example))
        )
        for example in KGFact(preset="KGFact-Small").build_splits(["train"])["train"][::500]
    ]
    stop_ids = stop_token_ids(builtin_model, builtin_encoder.end_of_turn_id)
    assert_pure_rate_equals_generate(builtin_model.eval(), tasks, rate, stop_ids)


@pytest.mark.parametrize("rate", [0.0, 1.0])
def test_a_context_that_is_never_picked_is_not_computed(tiny_model: PreTrainedModel, rate: float) -> None:
    outside_vocabulary = (10**6,)
    naive, expert = ((1, 2), outside_vocabulary) if rate == 1 else (outside_vocabulary, (1, 2))
    engine = make_engine(tiny_model, MixingSettings(rate, max_new_tokens=3), tokens_per_step=20.0)
    (result,) = engine.generate([MixingTask("example", 0, naive, expert)], accept_none, 2)
    assert result.attempt == 2
    assert engine.statistics.evaluated_tokens >= 2


# What it costs.


def num_needed_tokens(task: MixingTask, completions: Sequence[MixedCompletion]) -> int:
    """Tokens of the prompts and of different prefixes, each counted once under every context that it is needed in."""
    needed: set[tuple[bool, tuple[int, ...]]] = set()
    for completion in completions:
        for position, from_expert in enumerate(completion.from_expert):
            needed |= {(from_expert, tuple(completion.token_ids[:length])) for length in range(1, position + 1)}
    return len(task.naive_prompt) + len(task.expert_prompt) + len(needed)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_every_prefix_is_evaluated_about_once(random_model: RandomModel, temperature: float) -> None:
    model, settings = random_model(0), replace(MIXED, temperature=temperature, top_k=2, max_new_tokens=8)
    rng = random.Random(0)
    task = MixingTask("example", 0, random_prompt(rng, 20), random_prompt(rng, 30))
    engine = make_engine(model, settings)
    list(engine.generate([task], accept_none, 8))
    completions = [plain_attempt(model, task, attempt, settings) for attempt in range(1, 9)]
    num_needed = num_needed_tokens(task, completions)
    # Where a prefix was run but not asked what follows it, its last token is run again.
    assert num_needed <= engine.statistics.evaluated_tokens <= 1.2 * num_needed
    assert engine.statistics.evaluated_tokens < sum(num_needed_tokens(task, [completion]) for completion in completions) / 3


def test_generations_share_what_they_compute(random_model: RandomModel) -> None:
    tasks = make_tasks(0)[:2]
    evaluated = []
    for chosen in (tasks[:1], tasks[1:], tasks):
        engine = make_engine(random_model(0), MIXED)
        list(engine.generate(chosen, accept_none, 1))
        evaluated.append(engine.statistics.evaluated_tokens)
    first, second, both = evaluated
    num_prompt_tokens = len(tasks[0].naive_prompt) + len(tasks[0].expert_prompt)
    assert both <= first + second - num_prompt_tokens


def test_what_all_prompts_begin_with_is_evaluated_once(random_model: RandomModel) -> None:
    settings, beginning = replace(MIXED, max_new_tokens=1), random_prompt(random.Random(0), 50)
    evaluated = []
    for start in ((), beginning):
        engine = make_engine(random_model(0), settings)
        list(engine.generate(make_tasks(0, start), accept_none, 1))
        evaluated.append(engine.statistics.evaluated_tokens)
    assert evaluated[1] == evaluated[0] + 50


@pytest.mark.parametrize("tokens_per_step", [0.0, 20.0, 1000.0])
def test_attempts_that_cannot_differ_are_free(random_model: RandomModel, tokens_per_step: float) -> None:
    prompt = random_prompt(random.Random(0), 40)
    settings = MixingSettings(0.5, max_new_tokens=NUM_TOKENS)
    completions: list[list[int]] = []

    def note(task: MixingTask, completion: MixedCompletion) -> bool:
        completions.append(completion.token_ids)
        return False

    engine = make_engine(random_model(0), settings, tokens_per_step=tokens_per_step)
    (result,) = engine.generate([MixingTask("example", 0, prompt, prompt)], note, 50)
    assert result.attempt == engine.statistics.attempts == len(completions) == 50
    assert completions == [completions[0]] * 50
    # Under both contexts, the last token of the prompt and all but the last of the text; each perhaps run again (see above).
    assert engine.statistics.evaluated_tokens <= 39 + 4 * len(completions[0])
    assert engine.statistics.forwards <= 1 + 2 * len(completions[0])


def test_statistics_count_attempts_and_tokens(random_model: RandomModel) -> None:
    engine = make_engine(random_model(0), MIXED)
    tasks = make_tasks(0)
    results = assert_equals_plain(engine, random_model(0), tasks, MIXED, 4)
    attempts = [
        plain_attempt(random_model(0), result.task, attempt, MIXED)
        for result in results
        for attempt in range(1, result.attempt + 1)
    ]
    assert engine.statistics.attempts == len(attempts)
    assert engine.statistics.accepted == sum(result.accepted for result in results)
    assert engine.statistics.completion_tokens == sum(len(completion.token_ids) for completion in attempts)


# Room in the cache.


def spy(monkeypatch: pytest.MonkeyPatch, owner: type, name: str, measure: Callable[..., int]) -> list[int]:
    """How far each call of a method changes a number."""
    original, changes = getattr(owner, name), []

    def spied(self: object, *args: object) -> object:
        before = measure(self)
        result = original(self, *args)
        changes.append(measure(self) - before)
        return result

    monkeypatch.setattr(owner, name, spied)
    return changes


def tight_tasks() -> list[MixingTask]:
    """Tasks with prompts of one length, so that no row of a cache has room to spare."""
    rng = random.Random(0)
    prompts = [(random_prompt(rng, 9), random_prompt(rng, 9)) for _ in range(3)]
    return [MixingTask(f"example-{index}", generation, *pair) for index, pair in enumerate(prompts) for generation in (0, 1)]


@pytest.mark.parametrize(("spare", "tokens_per_step"), [(0, 0.0), (0, 20.0), (0, 1000.0), (7, 20.0), (7, 1000.0)])
@pytest.mark.parametrize(("top_k", "protect_answer"), [(2, False), (2, True), (0, True)])
def test_forgotten_attempts_change_nothing(
    random_model: RandomModel,
    monkeypatch: pytest.MonkeyPatch,
    spare: int,
    tokens_per_step: float,
    top_k: int,
    protect_answer: bool,
) -> None:
    model, settings = random_model(1), MixingSettings(0.5, 1.0, top_k, 5, protect_answer=protect_answer)
    tasks = [with_answers(model, task, settings) for task in tight_tasks()]
    monkeypatch.setattr(engine_module, "_SPARE_COLUMNS", spare)
    changes = spy(monkeypatch, PrefixTree, "evict", lambda tree: tree.num_columns)
    growth = spy(monkeypatch, PrefixCache, "forward", lambda cached: cached.num_columns)
    assert_equals_plain(make_engine(model, settings, 64, tokens_per_step), model, tasks, settings, 12, accept_none)
    assert sum(changes) < 0
    assert not any(growth)


@pytest.mark.parametrize("tokens_per_step", [0.0, 1000.0])
def test_a_cache_that_was_too_small_grows(
    random_model: RandomModel, monkeypatch: pytest.MonkeyPatch, tokens_per_step: float
) -> None:
    monkeypatch.setattr(engine_module, "_USUAL_LENGTH", 1)
    monkeypatch.setattr(engine_module, "_SPARE_COLUMNS", 0)
    changes = spy(monkeypatch, PrefixCache, "reserve", lambda cached: cached.num_columns)
    assert_equals_plain(make_engine(random_model(0), MIXED, 4, tokens_per_step), random_model(0), tight_tasks(), MIXED, 12)
    assert sum(change > 0 for change in changes) >= 2


def test_the_last_examples_get_the_rows_of_the_others(random_model: RandomModel, monkeypatch: pytest.MonkeyPatch) -> None:
    changes = spy(monkeypatch, PrefixCache, "keep", lambda cached: cached.num_rows)
    assert_equals_plain(make_engine(random_model(0), MIXED), random_model(0), make_tasks(0), MIXED, 12)
    assert len(changes) >= 2
    assert max(changes) < 0


def test_long_prompts_are_run_in_parts(random_model: RandomModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prefix_cache, "_MAX_TOKENS", 7)
    engine = make_engine(random_model(0), MIXED, 64, 20.0)
    assert_equals_plain(engine, random_model(0), make_tasks(0, beginning=range(20))[:12], MIXED, 2)


# The distribution.


def conditional(logits_NV: Tensor, top_k: int) -> Tensor:
    """Probabilities over the most probable tokens."""
    probabilities_NV = logits_NV.softmax(-1)
    if top_k:
        smallest = probabilities_NV.topk(top_k).values[:, -1:]
        probabilities_NV = probabilities_NV.where(probabilities_NV >= smallest, 0)
    return probabilities_NV / probabilities_NV.sum(-1, keepdim=True)


def p_value(observed: np.ndarray, probabilities: Tensor) -> float:
    expected = probabilities.numpy() * observed.sum()
    assert observed[expected == 0].sum() == 0
    rare = expected < 5
    pooled = [np.append(counts[~rare], counts[rare].sum()) for counts in (observed, expected)]
    return float(chisquare(*(counts[pooled[1] > 0] for counts in pooled)).pvalue)


@torch.no_grad()
@pytest.mark.parametrize("top_k", [0, 8])
def test_tokens_follow_the_mixture_distribution(random_model: RandomModel, top_k: int) -> None:
    model, rate, count = random_model(0), 0.3, 4000
    naive_prompt, expert_prompt = [1, 2, 3], [9, 8, 7, 6, 5]
    tasks = [MixingTask(f"example-{index}", 0, naive_prompt, expert_prompt) for index in range(count)]
    engine = MixingEngine(model, MixingSettings(rate, 1.0, top_k, 2), frozenset(), 1000, 0.0)
    chunks = [tasks[start : start + 250] for start in range(0, count, 250)]
    drawn = np.array([r.completion.token_ids for chunk in chunks for r in engine.generate(chunk, accept_none, 1)])
    size = model.config.vocab_size
    observed = [np.bincount(drawn[:, position], minlength=size) for position in (0, 1)]

    def mixture(prefixes: Tensor, rate: float) -> Tensor:
        naive_NV, expert_NV = (
            conditional(model(torch.cat([torch.tensor(prompt).expand(len(prefixes), -1), prefixes], 1)).logits[:, -1], top_k)
            for prompt in (naive_prompt, expert_prompt)
        )
        return rate * naive_NV + (1 - rate) * expert_NV

    empty, single = torch.zeros(1, 0, dtype=torch.long), torch.arange(size)[:, None]
    first_V = mixture(empty, rate)[0]
    assert p_value(observed[0], first_V) > 0.01
    assert p_value(observed[1], first_V @ mixture(single, rate)) > 0.01
    # The test has the power to tell other rates.
    assert p_value(observed[0], mixture(empty, rate + 0.1)[0]) < 1e-3


# The shell.


def test_results_come_as_soon_as_they_are_known(random_model: RandomModel) -> None:
    engine = make_engine(random_model(0), MIXED, num_slots=1)
    results: Iterator[MixingResult] = engine.generate(make_tasks(0), accept_none, 1)
    next(results)
    few = engine.statistics.forwards
    assert len(list(results)) == len(make_tasks(0)) - 1
    assert few < engine.statistics.forwards / 4


def test_identity_is_what_results_depend_on(tiny_model: PreTrainedModel) -> None:
    engine = MixingEngine(tiny_model, MIXED, frozenset([9, 3]))
    identity = engine.identity()
    assert asdict(MIXED).items() <= identity.items()
    assert (identity["stop_ids"], identity["precision"]) == ([3, 9], "float32")
    assert MixingEngine(tiny_model, MIXED, frozenset([9, 3]), num_slots=1, tokens_per_step=5.0).identity() == identity
    with torch.no_grad():
        next(tiny_model.parameters()).mul_(2)
    assert {key for key, value in engine.identity().items() if value != identity[key]} == {"model_weights"}
    tiny_model.double()
    assert engine.identity()["precision"] == "float64"


def test_log_probs_are_those_of_scoring(tiny_model: PreTrainedModel) -> None:
    prompts, completions = [[1, 2], [3]], [[4, 5], [6]]
    found = make_engine(tiny_model, MIXED).log_probs(prompts, completions)
    assert found == completion_log_probs(tiny_model, prompts, completions)


@pytest.mark.parametrize("training", [True, False])
def test_the_model_is_left_as_it_was(tiny_model: PreTrainedModel, training: bool) -> None:
    tiny_model.train(training)
    before = tiny_model.config._attn_implementation
    results = make_engine(tiny_model, MIXED).generate(make_tasks(0), accept_none, 1)
    for _ in (next(results), next(results)):  # between results, too
        assert {module.training for module in tiny_model.modules()} == {training}
        assert tiny_model.config._attn_implementation == before
