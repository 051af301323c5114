"""The vLLM engine gives what the transformers engine gives, on a stand-in for vLLM that runs a transformers model."""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import make_tiny_model
from transformers import PreTrainedModel

from mixsd_lightning.decoding.engine import MixingEngine
from mixsd_lightning.decoding.log_probs import completion_log_probs
from mixsd_lightning.decoding.mixing import MixedCompletion, MixingResult, MixingSettings, MixingTask
from mixsd_lightning.decoding.vllm_engine import VLLMEngine, load_llm
from mixsd_lightning.errors import UserError
from mixsd_lightning.models import load_student

STOP_IDS = frozenset(range(4, 257, 12))
SETTINGS = MixingSettings(0.4, max_new_tokens=18, top_k=5)


@dataclass
class SamplingParams:
    """The part of vLLM's class that is used."""

    temperature: float
    max_tokens: int
    ignore_eos: bool
    detokenize: bool
    logprobs: int | None = None
    prompt_logprobs: int | None = None


@dataclass
class StandInLLM:
    """Answers `generate` from a transformers model, one plain forward a token."""

    model: PreTrainedModel
    num_calls: int = 0
    llm_engine: Any = field(default_factory=lambda: SimpleNamespace(model_config=SimpleNamespace(dtype=torch.float32)))

    @torch.no_grad()
    def generate(self, prompts: Sequence[dict[str, list[int]]], parameters: SamplingParams, use_tqdm: bool) -> list[Any]:
        assert parameters.temperature == 0
        assert parameters.ignore_eos
        self.num_calls += 1
        return [self._answer(prompt["prompt_token_ids"], parameters) for prompt in prompts]

    def _answer(self, prompt: list[int], parameters: SamplingParams) -> Any:
        ids = list(prompt)
        log_probs = []
        for _ in range(parameters.max_tokens):
            row_V = self.model(torch.tensor([ids])).logits[0, -1].log_softmax(-1)
            ids.append(int(row_V.argmax()))
            log_probs.append(self._ranked(row_V, parameters.logprobs or 1))
        prompt_log_probs: list[Any] = [None]
        if parameters.prompt_logprobs is not None:
            rows_LV = self.model(torch.tensor([prompt])).logits[0].log_softmax(-1)
            for row_V, token in zip(rows_LV[:-1], prompt[1:], strict=True):
                given = {token: SimpleNamespace(logprob=float(row_V[token]))}
                prompt_log_probs.append(given | self._ranked(row_V, parameters.prompt_logprobs))
        output = SimpleNamespace(token_ids=ids[len(prompt) :], logprobs=log_probs)
        return SimpleNamespace(outputs=[output], prompt_logprobs=prompt_log_probs)

    @staticmethod
    def _ranked(row_V: torch.Tensor, count: int) -> dict[int, Any]:
        values, tokens = row_V.topk(count)
        return {int(t): SimpleNamespace(logprob=float(v)) for t, v in zip(tokens, values, strict=True)}


@pytest.fixture(autouse=True)
def vllm(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    module = ModuleType("vllm")
    module.SamplingParams = SamplingParams  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "vllm", module)
    return module


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> PreTrainedModel:
    folder = tmp_path_factory.mktemp("model")
    make_tiny_model(folder, seed=3)
    return load_student(str(folder)).eval().double()


def make_tasks(count: int) -> list[MixingTask]:
    generator = torch.Generator().manual_seed(0)

    def prompt(length: int) -> list[int]:
        return torch.randint(0, 256, (length,), generator=generator).tolist()

    answers = ((5, 9), (7, 8, 11))
    return [MixingTask(f"q{index}", index % 2, prompt(3 + 4 * index), prompt(25 - index), answers) for index in range(count)]


def accept(task: MixingTask, completion: MixedCompletion) -> bool:
    return sum(completion.token_ids) % 4 == 0


def results_of(engine: Any, tasks: Sequence[MixingTask]) -> dict[str, MixingResult]:
    return {result.task.example_id: result for result in engine.generate(tasks, accept, 5)}


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("rate", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("tokens_per_phase", [1, 5])
def test_results_equal_the_transformers_engine(
    model: PreTrainedModel, temperature: float, rate: float, tokens_per_phase: int
) -> None:
    settings = replace(SETTINGS, temperature=temperature, mixing_rate=rate)
    tasks = make_tasks(5)
    ours = VLLMEngine(StandInLLM(model), "w", settings, STOP_IDS, 3, tokens_per_phase)
    expected = results_of(MixingEngine(model, settings, STOP_IDS, tokens_per_step=0.0), tasks)
    assert results_of(ours, tasks) == expected
    assert any(result.attempt > 1 for result in expected.values())


def test_protected_answers_equal_the_transformers_engine(model: PreTrainedModel) -> None:
    plain = results_of(MixingEngine(model, SETTINGS, STOP_IDS, tokens_per_step=0.0), make_tasks(5))
    # Answers that the expert does write: any two neighbouring tokens of what it wrote.
    tasks = [
        replace(task, answers=tuple(pairwise(ids)))
        for task in make_tasks(5)
        for ids in [plain[task.example_id].completion.token_ids]
    ]
    settings = replace(SETTINGS, protect_answer=True)
    expected = results_of(MixingEngine(model, settings, STOP_IDS, tokens_per_step=0.0), tasks)
    assert results_of(VLLMEngine(StandInLLM(model), "w", settings, STOP_IDS), tasks) == expected
    assert expected != plain


def test_a_phase_gives_several_tokens(model: PreTrainedModel) -> None:
    settings = replace(SETTINGS, mixing_rate=0.0)

    def num_calls(tokens_per_phase: int) -> int:
        llm = StandInLLM(model)
        list(VLLMEngine(llm, "w", settings, frozenset(), 8, tokens_per_phase).generate(make_tasks(3), lambda *_: True, 1))
        return llm.num_calls

    # Two calls a phase.
    assert [num_calls(tokens) for tokens in (1, 6, 18)] == [36, 6, 2]


def test_log_probs_equal_a_plain_forward(model: PreTrainedModel) -> None:
    prompts = [list(task.naive_prompt) for task in make_tasks(3)]
    completions = [[1, 2, 3], [4], [5, 6, 7, 8, 9]]
    scored = VLLMEngine(StandInLLM(model), "w", SETTINGS, STOP_IDS).log_probs(prompts, completions)
    for got, expected in zip(scored, completion_log_probs(model, prompts, completions), strict=True):
        assert got == pytest.approx(expected, abs=1e-5)


def test_identity_tells_engines_and_settings_apart(model: PreTrainedModel) -> None:
    def identity(settings: MixingSettings = SETTINGS, weights: str = "w") -> dict[str, Any]:
        return VLLMEngine(StandInLLM(model), weights, settings, STOP_IDS).identity()

    assert identity() == identity()
    assert identity()["precision"] == "vllm float32"
    assert identity() != identity(weights="other")
    assert identity() != identity(replace(SETTINGS, mixing_rate=0.5))


def test_the_whole_vocabulary_is_refused(model: PreTrainedModel) -> None:
    with pytest.raises(UserError, match="--model.top_k"):
        VLLMEngine(StandInLLM(model), "w", replace(SETTINGS, temperature=1.0, top_k=0), STOP_IDS)


def test_without_vllm_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(UserError, match=r"mixsd_lightning\[vllm\]"):
        load_llm("model", 64)


def test_the_model_is_loaded_with_enough_log_probs(monkeypatch: pytest.MonkeyPatch, vllm: ModuleType) -> None:
    make: Callable[..., Any] = lambda **options: options  # noqa: E731
    monkeypatch.setattr(vllm, "LLM", make, raising=False)
    assert load_llm("folder", 64)["max_logprobs"] == 64
    assert load_llm("folder", 0)["max_logprobs"] == 1
