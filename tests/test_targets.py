"""Mixed targets: what a record holds, which attempt it is, and that processes sharing the work change nothing."""

import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from fake_engine import (
    ANSWER,
    SETTINGS,
    FakeEngine,
    Watched,
    build,
    built_bytes,
    fake_completion,
    make_examples,
    wrong_completion,
)
from transformers import PreTrainedModel

from mixsd_lightning.context import ChatEncoder, Message, expert_context, naive_context
from mixsd_lightning.decoding.engine import MixingEngine
from mixsd_lightning.decoding.mixing import EXPERT, Engine, MixedCompletion, MixingSettings, MixingTask, draws
from mixsd_lightning.errors import UserError
from mixsd_lightning.evaluation.scoring import extract_name
from mixsd_lightning.example import Example
from mixsd_lightning.models import load_tokenizer
from mixsd_lightning.target_store import Record
from mixsd_lightning.targets import MixedTargets, Shard, TargetSettings, is_accepted

pytestmark = pytest.mark.usefixtures("no_bars")

REAL = TargetSettings(MixingSettings(0.4, max_new_tokens=12), num_generations=2, max_attempts=4)


def real_engine(encoder: ChatEncoder, model: PreTrainedModel, settings: TargetSettings = REAL, **options: Any) -> MixingEngine:
    # Many stop tokens, so that even a random model ends by itself.
    stop_ids = frozenset([encoder.end_of_turn_id, *range(0, 256, 7)])
    return MixingEngine(model, settings.mixing, stop_ids, **options)


def task_of(encoder: ChatEncoder, example: Example, generation: int = 0) -> MixingTask:
    naive, expert = encoder.prompt(naive_context(example)), encoder.prompt(expert_context(example))
    return MixingTask(example.id, generation, naive, expert)


def answerable_examples(encoder: ChatEncoder, model: PreTrainedModel, settings: TargetSettings = REAL) -> list[Example]:
    """Examples that the random model gets right in the second attempt, if that names anything."""
    examples = make_examples(6)
    engine = real_engine(encoder, model, settings)
    tasks = [task_of(encoder, example) for example in examples]
    second = {r.task.example_id: r.completion for r in engine.generate(tasks, lambda *_: False, 2)}
    answers = [extract_name(encoder.decode(second[e.id].token_ids), e.question) or ANSWER for e in examples]
    return [replace(example, answer=answer) for example, answer in zip(examples, answers, strict=True)]


def build_together(
    encoder: ChatEncoder, folder: Path, engines: Sequence[Engine], **options: Any
) -> list[list[Record] | BaseException]:
    """What every rank of a build returns or raises."""
    barrier = threading.Barrier(len(engines), timeout=30)

    def run(rank: int) -> list[Record] | BaseException:
        try:
            return build(encoder, folder, engines[rank], shard=Shard(rank, len(engines), barrier.wait), **options)
        except (RuntimeError, ValueError) as error:
            barrier.abort()  # a process that dies takes the others with it
            return error

    with ThreadPoolExecutor(len(engines)) as pool:
        return list(pool.map(run, range(len(engines))))


# --- which attempt, and how many ---------------------------------------------------------------------------------------


def test_targets_are_in_input_order_whatever_the_order_of_the_engine(encoder: ChatEncoder, tmp_path: Path) -> None:
    engine = Watched(FakeEngine(encoder))
    records = build(encoder, tmp_path, engine)
    keys = [(f"q{index}", generation) for index in range(7) for generation in range(2)]
    assert [(record["id"], record["mix_meta"]["gen_index"]) for record in records] == keys
    assert engine.generated == keys[::-1]


def test_the_first_right_attempt_is_kept_or_else_the_last(encoder: ChatEncoder, tmp_path: Path) -> None:
    records = build(encoder, tmp_path)
    for record in records:
        task = MixingTask(record["id"], record["mix_meta"]["gen_index"], [], [])
        attempts = [fake_completion(encoder, task, attempt, SETTINGS.mixing) for attempt in range(1, 6)]
        right = [c.finish_reason == "stop" and ANSWER in encoder.decode(c.token_ids) for c in attempts]
        number = right.index(True) + 1 if any(right) else 5
        assert (record["mix_meta"]["num_attempts"], record["mix_meta"]["correct"]) == (number, any(right))
        assert record["token_ids"] == attempts[number - 1].token_ids
    assert {record["mix_meta"]["correct"] for record in records} == {True, False}
    assert len({record["mix_meta"]["num_attempts"] for record in records}) > 2


def test_tasks_carry_both_prompts(encoder: ChatEncoder, tmp_path: Path) -> None:
    engine = Watched(FakeEngine(encoder))
    build(encoder, tmp_path, engine)
    assert engine.tasks == [task_of(encoder, example, generation) for example in make_examples() for generation in range(2)]


@pytest.mark.parametrize("answer_format", ["code", "tool_calls"])
def test_answers_that_no_target_contains_cannot_be_protected(encoder: ChatEncoder, answer_format: str) -> None:
    examples = [replace(example, answer_format=answer_format) for example in make_examples(1)]
    MixedTargets(examples, encoder, TargetSettings(MixingSettings()))
    with pytest.raises(UserError, match=f"--model.protect_answer: what is right in the format {answer_format} is found out"):
        MixedTargets(examples, encoder, TargetSettings(MixingSettings(protect_answer=True)))


@pytest.mark.parametrize("protect_answer", [False, True])
def test_tasks_carry_the_answer_if_it_is_to_be_protected(encoder: ChatEncoder, tmp_path: Path, protect_answer: bool) -> None:
    settings = TargetSettings(MixingSettings(protect_answer=protect_answer))
    engine = Watched(FakeEngine(encoder, settings))
    (record,) = build(encoder, tmp_path, engine, make_examples(1), settings)
    assert engine.tasks[0].answers == (encoder.inside_text(ANSWER) if protect_answer else ())
    assert record["mix_meta"]["protect_answer"] is protect_answer


@pytest.mark.parametrize(
    ("mixing", "attempts"),
    [
        (MixingSettings(0.0), 1),
        (MixingSettings(1.0), 1),
        (MixingSettings(0.0, temperature=1.0, top_k=1), 1),
        (MixingSettings(0.3), 5),
        (MixingSettings(0.0, temperature=1.0), 5),
    ],
)
def test_deterministic_settings_make_one_attempt_only(
    encoder: ChatEncoder, tmp_path: Path, mixing: MixingSettings, attempts: int
) -> None:
    settings = TargetSettings(mixing, max_attempts=5)
    engine = FakeEngine(encoder, settings, wrong_completion)
    records = build(encoder, tmp_path, engine, make_examples(2), settings)
    assert [record["mix_meta"]["num_attempts"] for record in records] == [attempts, attempts]
    assert engine.statistics.attempts == 2 * attempts


@pytest.mark.parametrize(("first", "generations"), [(0, [0, 1]), (4, [4, 5])])
def test_generations_are_numbered_from_the_first(
    encoder: ChatEncoder, tmp_path: Path, first: int, generations: list[int]
) -> None:
    engine = FakeEngine(encoder)
    targets = MixedTargets(make_examples(2), encoder, SETTINGS, first)
    assert targets.identity(engine)["generations"] == generations
    records = targets.build(tmp_path, engine)
    assert [record["mix_meta"]["gen_index"] for record in records] == 2 * generations


@pytest.mark.parametrize(
    ("text", "finish_reason", "accepted"),
    [
        (f"It is {ANSWER}.", "stop", True),
        (f"It is {ANSWER}.", "repetition", False),
        (f"It is {ANSWER}.", "max_new_tokens", False),
        (f"It is {ANSWER}, not Mirel Dask.", "stop", False),
        ("It is Zorvan.", "stop", False),
        ("", "stop", False),
    ],
)
def test_acceptance_needs_a_stop_and_the_gold_answer(text: str, finish_reason: str, accepted: bool) -> None:
    assert is_accepted(make_examples(1)[0], text, finish_reason) is accepted


def test_boxed_examples_are_verified_by_their_box() -> None:
    example = replace(make_examples(1)[0], answer_format="boxed")
    assert is_accepted(example, f"So: \\boxed{{{ANSWER}}}", "stop")
    assert not is_accepted(example, f"It is {ANSWER}.", "stop")


# --- records -----------------------------------------------------------------------------------------------------------


def test_a_record_says_what_it_is(encoder: ChatEncoder, tmp_path: Path) -> None:
    (example,) = make_examples(1)
    token_ids = encoder.target(f"It is {ANSWER}.")

    def complete(*_: Any) -> MixedCompletion:
        return MixedCompletion(token_ids, [True] + [False] * (len(token_ids) - 1), "stop")

    settings = TargetSettings(MixingSettings(0.25, 0.5, 7), num_generations=1, max_attempts=9)
    engine = FakeEngine(encoder, settings, complete)
    (record,) = build(encoder, tmp_path, engine, [example], settings)
    task = task_of(encoder, example)
    assert record == {
        "id": "q0",
        "messages": [{"role": "user", "content": example.prompt}, {"role": "assistant", "content": f"It is {ANSWER}."}],
        "clear_answer": ANSWER,
        "subject": example.subject,
        "token_ids": token_ids,
        "from_expert": [1] + [0] * (len(token_ids) - 1),
        "naive_log_probs": engine.log_probs([task.naive_prompt], [token_ids])[0],
        "expert_log_probs": engine.log_probs([task.expert_prompt], [token_ids])[0],
        "mix_meta": {
            "lambda": 0.25,
            "temperature": 0.5,
            "topk": 7,
            "protect_answer": False,
            "num_generations_per_query": 1,
            "max_retries": 8,
            "extract_mode": "sentence",
            "gen_index": 0,
            "num_attempts": 1,
            "finish_reason": "stop",
            "correct": True,
            "student_token_fraction": 1 - 1 / len(token_ids),
            "num_tokens": len(token_ids),
            "ground_truth_assistant": example.target,
        },
    }
    assert record["naive_log_probs"] != record["expert_log_probs"]


@pytest.mark.parametrize("reason", ["max_new_tokens", "repetition"])
def test_a_right_answer_that_does_not_end_by_itself_is_rejected(encoder: ChatEncoder, tmp_path: Path, reason: str) -> None:
    def complete(*_: Any) -> MixedCompletion:
        token_ids = encoder.target(f"It is {ANSWER}.")[:-1]
        return MixedCompletion(token_ids, [True] * len(token_ids), reason)

    for record in build(encoder, tmp_path, FakeEngine(encoder, complete=complete)):
        assert (record["mix_meta"]["finish_reason"], record["mix_meta"]["correct"]) == (reason, False)
        assert record["mix_meta"]["num_attempts"] == 5
        assert record["mix_meta"]["student_token_fraction"] == 0


def test_the_first_message_of_a_record_encodes_to_the_naive_prompt(encoder: ChatEncoder, tmp_path: Path) -> None:
    by_id = {example.id: example for example in make_examples()}
    for record in build(encoder, tmp_path):
        naive_prompt = encoder.prompt(naive_context(by_id[record["id"]]))
        assert encoder.prompt([Message(**record["messages"][0])]) == naive_prompt


@pytest.mark.parametrize("separator", ["\u2028", "\u2029", "\u0085", "\r", "\x0b", "\x1c"])
@pytest.mark.parametrize("steps", [None, 3, 15])
def test_line_separators_in_texts_do_not_break_the_files(
    encoder: ChatEncoder, tmp_path: Path, separator: str, steps: int | None
) -> None:
    texts = ("question", "prompt", "answer", "target", "fact", "subject")
    examples = [replace(e, **dict.fromkeys(texts, f"Y{separator}Z"), answer_format="boxed") for e in make_examples()]

    def complete(*_: Any) -> MixedCompletion:
        token_ids = encoder.target(f"It is \\boxed{{Y{separator}Z}}")
        return MixedCompletion(token_ids, [True] * len(token_ids), "stop")

    engine = FakeEngine(encoder, complete=complete)
    if steps is not None:
        with pytest.raises(RuntimeError, match="power cut"):
            build(encoder, tmp_path, Watched(engine, steps), examples)
    records = build(encoder, tmp_path, engine, examples)
    assert len(records) == 14
    for record in records:
        assert record["clear_answer"] == record["subject"] == record["messages"][0]["content"] == f"Y{separator}Z"
        assert record["messages"][1]["content"] == f"It is \\boxed{{Y{separator}Z}}"
        assert record["mix_meta"]["correct"]
    assert build(encoder, tmp_path, engine, examples) == records


def test_records_of_the_real_engine_agree_with_their_coins_and_with_plain_forwards(
    encoder: ChatEncoder, tiny_model: PreTrainedModel, tmp_path: Path
) -> None:
    examples = answerable_examples(encoder, tiny_model)
    by_id = {example.id: example for example in examples}
    records = build(encoder, tmp_path, real_engine(encoder, tiny_model), examples, REAL)
    assert {record["mix_meta"]["correct"] for record in records} == {True, False}
    assert {record["mix_meta"]["num_attempts"] for record in records} >= {2, 4}
    for record in records:
        meta, token_ids = record["mix_meta"], record["token_ids"]
        task = task_of(encoder, by_id[record["id"]], meta["gen_index"])
        contexts_T, _ = draws(task, meta["num_attempts"], REAL.mixing)
        assert record["from_expert"] == [int(context == EXPERT) for context in contexts_T[: len(token_ids)]]
        assert meta["student_token_fraction"] == pytest.approx(record["from_expert"].count(0) / len(token_ids))
        for prompt, key in ((task.naive_prompt, "naive_log_probs"), (task.expert_prompt, "expert_log_probs")):
            with torch.no_grad():
                logits = tiny_model.eval()(torch.tensor([[*prompt, *token_ids]])).logits[0, len(prompt) - 1 : -1]
            expected = logits.log_softmax(-1)[range(len(token_ids)), token_ids]
            assert record[key] == pytest.approx(expected.tolist(), abs=1e-4)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_the_real_engine_writes_the_same_bytes_however_many_are_in_flight(
    encoder: ChatEncoder, tiny_model: PreTrainedModel, tmp_path: Path, temperature: float
) -> None:
    settings = replace(REAL, mixing=replace(REAL.mixing, temperature=temperature))
    examples = answerable_examples(encoder, tiny_model, settings)
    files = {
        built_bytes(
            encoder,
            tmp_path / f"{num_slots} {tokens_per_step}",
            real_engine(encoder, tiny_model, settings, num_slots=num_slots, tokens_per_step=tokens_per_step),
            examples=examples,
            settings=settings,
        )
        for num_slots, tokens_per_step in ((1, 0.0), (3, 20.0), (32, 500.0))
    }
    assert len(files) == 1


# --- identity ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("field", ["id", "question", "prompt", "answer", "target", "fact", "subject", "answer_format"])
def test_the_identity_changes_with_every_text_of_an_example(encoder: ChatEncoder, field: str) -> None:
    engine, examples = FakeEngine(encoder), make_examples()
    before = MixedTargets(examples, encoder, SETTINGS).identity(engine)
    examples[3] = replace(examples[3], **{field: "boxed"})
    after = MixedTargets(examples, encoder, SETTINGS).identity(engine)
    assert before["corpus"] != after["corpus"]
    assert (before["prompts"] != after["prompts"]) == (field in ("prompt", "fact", "answer_format"))


def test_the_identity_changes_with_the_tokenizer(encoder: ChatEncoder, tiny_model_path: str) -> None:
    tokenizer = load_tokenizer(tiny_model_path)
    tokenizer.add_tokens(["Zorvan"])
    engine = FakeEngine(encoder)
    before, after = (MixedTargets(make_examples(), e, SETTINGS).identity(engine) for e in (encoder, ChatEncoder(tokenizer)))
    assert before["tokenizer"] != after["tokenizer"]


def test_longest_prompt_counts_both_contexts(encoder: ChatEncoder) -> None:
    examples = [replace(example, fact="Long. " * index) for index, example in enumerate(make_examples())]
    targets = MixedTargets(examples, encoder, SETTINGS)
    assert targets.longest_prompt == (len(encoder.prompt(expert_context(examples[6]))), examples[6].id)


# --- shards ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("world_size", [2, 3])
def test_processes_that_share_the_work_write_the_bytes_of_one(encoder: ChatEncoder, tmp_path: Path, world_size: int) -> None:
    engines = [Watched(FakeEngine(encoder)) for _ in range(world_size)]
    first, *others = build_together(encoder, tmp_path / "shared", engines)
    assert (tmp_path / "shared" / "mixed.jsonl").read_bytes() == built_bytes(encoder, tmp_path / "alone")
    assert isinstance(first, list)
    assert all(other == first for other in others)
    shares = [set(engine.generated) for engine in engines]
    assert sorted(map(len, shares)) == sorted(len(range(rank, 14, world_size)) for rank in range(world_size))
    assert len(set.union(*shares)) == 14
    assert sum(engine.num_scored for engine in engines) == 2 * 14


@pytest.mark.parametrize("count", [1, 2])
def test_a_rank_with_nothing_to_do_does_not_hang(encoder: ChatEncoder, tmp_path: Path, count: int) -> None:
    settings = replace(SETTINGS, num_generations=1)
    engines = [Watched(FakeEngine(encoder, settings)) for _ in range(3)]
    records = build_together(encoder, tmp_path, engines, examples=make_examples(count), settings=settings)
    assert [len(engine.generated) for engine in engines] == [1] * count + [0] * (3 - count)
    assert isinstance(records[2], list)
    assert len(records[2]) == count


def test_ranks_take_up_finished_targets_without_any_work(encoder: ChatEncoder, tmp_path: Path) -> None:
    records = build(encoder, tmp_path)
    engines = [Watched(FakeEngine(encoder), steps=0) for _ in range(3)]
    assert build_together(encoder, tmp_path, engines) == [records] * 3


@pytest.mark.parametrize("before", [1, 2, 3])
@pytest.mark.parametrize("after", [1, 2, 3])
@pytest.mark.parametrize("steps", [1, 4, 5])
def test_a_build_that_was_killed_goes_on_with_another_number_of_processes(
    encoder: ChatEncoder, tmp_path: Path, before: int, after: int, steps: int
) -> None:
    broken = build_together(encoder, tmp_path / "killed", [Watched(FakeEngine(encoder), steps) for _ in range(before)])
    assert "power cut" in map(str, broken)
    assert not (tmp_path / "killed" / "mixed.jsonl").exists()
    engines = [Watched(FakeEngine(encoder)) for _ in range(after)]
    build_together(encoder, tmp_path / "killed", engines)
    assert (tmp_path / "killed" / "mixed.jsonl").read_bytes() == built_bytes(encoder, tmp_path / "whole")
    assert sum(len(engine.generated) for engine in engines) <= 14 - steps
    assert not list((tmp_path / "killed").glob("*.partial*"))


def test_all_ranks_say_what_is_wrong(encoder: ChatEncoder, tmp_path: Path) -> None:
    build(encoder, tmp_path)
    engines = [FakeEngine(encoder, model_weights="0ther") for _ in range(3)]
    for error in build_together(encoder, tmp_path, engines):
        assert "model_weights was f00d, now 0ther" in str(error)


def test_a_rank_that_fails_leaves_no_finished_file(encoder: ChatEncoder, tmp_path: Path) -> None:
    engines = [Watched(FakeEngine(encoder)), Watched(FakeEngine(encoder), steps=0)]
    outcomes = build_together(encoder, tmp_path, engines)
    assert str(outcomes[1]) == "power cut"
    assert isinstance(outcomes[0], threading.BrokenBarrierError)
    assert not (tmp_path / "mixed.jsonl").exists()
