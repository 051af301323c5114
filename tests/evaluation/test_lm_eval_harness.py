"""Tasks of lm-evaluation-harness, written here so that nothing is fetched, against our own suites and plain forwards."""

import copy
import json
import logging
import random
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from transformers import PreTrainedModel

from mixsd_lightning.context import ChatEncoder
from mixsd_lightning.errors import UserError
from mixsd_lightning.evaluation.suites import LMEvaluationHarness, MultipleChoice

lm_eval_tasks = pytest.importorskip("lm_eval.tasks")

NUM_QUESTIONS = 24
CHOICE_TASK = {
    "output_type": "multiple_choice",
    "doc_to_text": "{{question}}",
    "doc_to_choice": "{{choices}}",
    "doc_to_target": "{{answer}}",
    "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
}


def random_records(seed: int) -> list[dict[str, Any]]:
    rng = random.Random(seed)

    def words(most: int) -> str:
        return " ".join(rng.choices(["sun", "rain", "river", "stone", "bread", "wolf"], k=rng.randint(1, most)))

    return [
        {"question": f"{words(9)}?", "choices": [words(6) for _ in range(4)], "answer": rng.randrange(4)}
        for _ in range(NUM_QUESTIONS)
    ]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Tasks: `first` and `second` (multiple choice), `both` (their group), `said` (generation), `prose` (perplexity)."""
    for seed, name in enumerate(("first", "second")):
        text = "".join(json.dumps(record) + "\n" for record in random_records(seed))
        (tmp_path / f"{name}.jsonl").write_text(text)
        add_task(tmp_path, name, name, CHOICE_TASK)
    add_task(
        tmp_path,
        "said",
        "first",
        {
            "output_type": "generate_until",
            "doc_to_text": "{{question}}",
            "doc_to_target": "{{choices[0]}}",
            "generation_kwargs": {"until": ["\n"], "max_gen_toks": 4},
            "metric_list": [{"metric": "exact_match"}],
            "filter_list": [
                {
                    "name": "none found",
                    "filter": [{"function": "regex", "regex_pattern": "(z{9})", "fallback": "wolf"}, first()],
                },
                {"name": "all", "filter": [first()]},
            ],
        },
    )
    add_task(
        tmp_path,
        "prose",
        "first",
        {
            "output_type": "loglikelihood_rolling",
            "doc_to_text": "",
            "doc_to_target": "{{question}}",
            "metric_list": [{"metric": "bits_per_byte"}],
        },
    )
    # To read the definitions of all its own tasks takes the harness many seconds each time.
    own_only = partial(lm_eval_tasks.TaskManager, include_defaults=False)
    monkeypatch.setattr(lm_eval_tasks, "TaskManager", own_only)
    (tmp_path / "both.yaml").write_text(yaml.safe_dump({"group": "both", "task": ["first", "second"]}))
    return tmp_path


def first() -> dict[str, str]:
    return {"function": "take_first"}


def add_task(folder: Path, name: str, data: str, task: dict[str, Any]) -> None:
    dataset = {
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(folder / f"{data}.jsonl")}, "cache_dir": str(folder / "cache")},
        "test_split": "test",
    }
    (folder / f"{name}.yaml").write_text(yaml.safe_dump({"task": name, **dataset, **task}))


@pytest.mark.parametrize("limit", [0, 5])
@pytest.mark.parametrize("batch_size", [1, 16])
def test_multiple_choice_is_that_of_our_own_suite(
    tiny_model: PreTrainedModel, encoder: ChatEncoder, folder: Path, limit: int, batch_size: int
) -> None:
    suite = LMEvaluationHarness(["first"], limit=limit, include_path=str(folder), batch_size=batch_size)
    scores = suite.measure(tiny_model, encoder)
    ours = MultipleChoice(str(folder / "first.jsonl"), limit=limit).measure(tiny_model, encoder)["multiple_choice"]
    assert list(scores) == ["lm_eval/first"]
    assert scores["lm_eval/first"] == ours
    assert len(ours.values) == (limit or NUM_QUESTIONS)
    assert 0 < sum(ours.values) < len(ours.values)


def test_a_group_has_the_samples_of_all_its_tasks(tiny_model: PreTrainedModel, encoder: ChatEncoder, folder: Path) -> None:
    scores = LMEvaluationHarness(["both", "first", "second"], include_path=str(folder)).measure(tiny_model, encoder)
    parts = [scores[f"lm_eval/{name}"].values for name in ("first", "second")]
    assert scores["lm_eval/both"].values == [*parts[0], *parts[1]]
    assert scores["lm_eval/both"].has_kept_share


def test_generated_answers_are_scored_after_the_first_filter(
    tiny_model: PreTrainedModel, encoder: ChatEncoder, folder: Path
) -> None:
    score = LMEvaluationHarness(["said"], include_path=str(folder)).measure(tiny_model, encoder)["lm_eval/said"]
    assert score.values == [float(record["choices"][0] == "wolf") for record in random_records(0)]
    assert sum(score.values) > 0


@torch.no_grad()
def test_a_metric_that_is_no_mean_is_one_number(tiny_model: PreTrainedModel, encoder: ChatEncoder, folder: Path) -> None:
    score = LMEvaluationHarness(["prose"], include_path=str(folder)).measure(tiny_model, encoder)["lm_eval/prose"]
    nats = num_bytes = 0.0
    for record in random_records(0):
        text = record["question"]
        ids = torch.tensor([[encoder.tokenizer.bos_token_id, *encoder.tokenizer(text)["input_ids"]]])
        nats += float(tiny_model.eval()(ids, labels=ids).loss) * len(text)
        num_bytes += len(text.encode())
    assert score.value == pytest.approx(nats / num_bytes / np.log(2), rel=1e-4)
    assert (score.higher_is_better, score.has_kept_share) == (False, False)


@pytest.mark.parametrize("training", [True, False])
def test_measuring_leaves_everything_as_it_was(
    tiny_model: PreTrainedModel, encoder: ChatEncoder, folder: Path, training: bool
) -> None:
    tiny_model.train(training)
    bare = ChatEncoder(copy.deepcopy(encoder.tokenizer))
    bare.tokenizer.pad_token = None
    weights = copy.deepcopy(tiny_model.state_dict())
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    level = logging.getLogger("lm_eval").level
    LMEvaluationHarness(["first", "said"], limit=2, include_path=str(folder)).measure(tiny_model, bare)
    assert bare.tokenizer.pad_token is None
    assert bare.tokenizer.padding_side == encoder.tokenizer.padding_side
    assert {module.training for module in tiny_model.modules()} == {training}
    assert all(torch.equal(tensor, weights[name]) for name, tensor in tiny_model.state_dict().items())
    assert torch.equal(states[0], torch.get_rng_state())
    assert states[1:] == (random.getstate(), np.random.get_state()[1].tolist())
    assert logging.getLogger("lm_eval").level == level


def test_worked_examples_are_the_same_each_time_and_change_scores(
    tiny_model: PreTrainedModel, encoder: ChatEncoder, folder: Path
) -> None:
    add_task(folder, "shown", "first", {**CHOICE_TASK, "fewshot_split": "test"})
    suite = LMEvaluationHarness(["shown"], num_fewshot=3, include_path=str(folder))
    found = suite.measure(tiny_model, encoder)
    assert suite.measure(tiny_model, encoder) == found
    bare = LMEvaluationHarness(["shown"], include_path=str(folder))
    assert bare.measure(tiny_model, encoder) != found
    assert bare.settings != suite.settings


def test_a_task_without_worked_examples_stays_so(tiny_model: PreTrainedModel, encoder: ChatEncoder, folder: Path) -> None:
    add_task(folder, "never", "first", {**CHOICE_TASK, "fewshot_split": "test", "num_fewshot": 0})
    scores = LMEvaluationHarness(["never", "first"], num_fewshot=3, include_path=str(folder)).measure(tiny_model, encoder)
    plain = LMEvaluationHarness(["first"], include_path=str(folder)).measure(tiny_model, encoder)
    assert scores["lm_eval/never"] == plain["lm_eval/first"]


def test_tasks_can_be_asked_in_a_chat(tiny_model: PreTrainedModel, encoder: ChatEncoder, folder: Path) -> None:
    seen: list[str] = []
    tiny_model.register_forward_pre_hook(
        lambda module, inputs: seen.append(encoder.tokenizer.decode(inputs[0][0])) if inputs else None
    )
    LMEvaluationHarness(["first"], limit=1, include_path=str(folder)).measure(tiny_model, encoder)
    num_plain = len(seen)
    LMEvaluationHarness(["first"], limit=1, include_path=str(folder), apply_chat_template=True).measure(tiny_model, encoder)
    assert num_plain > 0
    assert not any("assistant" in text for text in seen[:num_plain])
    assert all("<|im_start|>assistant\n" in text for text in seen[num_plain:])


def test_every_rank_measures_all(
    tiny_model: PreTrainedModel, encoder: ChatEncoder, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    suite = LMEvaluationHarness(["first"], include_path=str(folder))
    alone = suite.measure(tiny_model, encoder)
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert suite.measure(tiny_model, encoder) == alone


def test_settings_follow_the_task_and_its_data(folder: Path) -> None:
    def settings(**changes: Any) -> dict[str, Any]:
        return LMEvaluationHarness(["first"], include_path=str(folder), **changes).settings

    before = settings()
    assert settings(batch_size=3, every_n_validations=2) == before
    json.dumps(before)
    assert settings(limit=3) != before
    assert settings(apply_chat_template=True) != before
    add_task(folder, "first", "first", {**CHOICE_TASK, "doc_to_text": "Question: {{question}}"})
    changed = settings()
    assert changed != before
    add_task(folder, "first", "second", CHOICE_TASK)
    assert settings() not in (before, changed)


def test_a_task_that_runs_code_is_refused(folder: Path) -> None:
    add_task(folder, "risky", "first", {**CHOICE_TASK, "unsafe_code": True})
    with pytest.raises(UserError, match="'risky' of lm_eval runs code .* Use the suite humaneval"):
        LMEvaluationHarness(["risky"], include_path=str(folder)).setup()


def test_an_unknown_task_is_refused(folder: Path) -> None:
    with pytest.raises(UserError, match="lm-evaluation-harness has no task 'frist'"):
        LMEvaluationHarness(["frist"], include_path=str(folder)).setup()


def test_a_task_without_its_data_is_refused_on_one_line(folder: Path) -> None:
    (folder / "first.jsonl").unlink()
    with pytest.raises(UserError, match="cannot load the task 'first' of lm_eval: ") as caught:
        LMEvaluationHarness(["first"], include_path=str(folder)).setup()
    assert "\n" not in str(caught.value)
    assert caught.value.__cause__ is not None


def test_without_lm_eval_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval.tasks", None)
    with pytest.raises(UserError, match=r"pip install 'mixsd_lightning\[eval\]'"):
        LMEvaluationHarness(["first"]).setup()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"tasks": []}, "lm_eval.tasks must be a list of at least one task"),
        ({"tasks": ["a"], "limit": -1}, "lm_eval.limit must be at least 1, or 0 for all samples, got -1"),
        ({"tasks": ["a"], "batch_size": 0}, "lm_eval.batch_size must be at least 1, got 0"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        LMEvaluationHarness(**settings)
