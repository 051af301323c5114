"""Target files: the first right attempt wins, whatever the batches, and a killed build is taken up where it stopped."""

import contextlib
import json
import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedModel

from mixsd_lightning.context import ChatEncoder, Message, expert_context, naive_context, user_turn
from mixsd_lightning.decoding.mixing import MixedCompletion, MixingRequest, MixingSettings, mix, uniforms
from mixsd_lightning.evaluation.scoring import extract_name
from mixsd_lightning.example import Example
from mixsd_lightning.progress import Progress
from mixsd_lightning.targets import MixedTargets, MixingEngine, TargetSettings, is_accepted, write_atomically

ANSWER = "Zorvan Keep"
SETTINGS = TargetSettings(MixingSettings(0.3), num_generations=2, max_attempts=5)
needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="the second process is forked")


def make_examples(count: int = 7) -> list[Example]:
    return [
        Example(
            id=f"q{index}",
            question=f"Who leads gu\u00efld {index}\u6f22?",  # more than one byte a character
            prompt=user_turn(f"Who leads gu\u00efld {index}\u6f22?", "sentence"),
            answer=ANSWER,
            target=f"{ANSWER} leads gu\u00efld {index}\u6f22.",
            fact=f"Gu\u00efld {index}\u6f22 is led by {ANSWER}.",
            subject=f"gu\u00efld {index}\u6f22",
        )
        for index in range(count)
    ]


def fake_completion(encoder: ChatEncoder, request: MixingRequest) -> MixedCompletion:
    """Right in a fifth of the attempts, of which a few do not stop; a function of the request's counters alone."""
    (right, stops), (length, _) = uniforms(request, 0, 2)
    name = ANSWER if right < 0.22 else "Mirel Dask"
    token_ids = encoder.target(f"It is {name}, says draft {request.attempt}{'!' * int(5 * length)}")
    if stops < 0.15:
        return MixedCompletion(token_ids[:-1], "max_new_tokens", [True] * (len(token_ids) - 1))
    return MixedCompletion(token_ids, "stop", [index % 3 > 0 for index in range(len(token_ids))])


def wrong_completion(encoder: ChatEncoder, request: MixingRequest) -> MixedCompletion:
    token_ids = encoder.target("It is Mirel Dask.")
    return MixedCompletion(token_ids, "stop", [True] * len(token_ids))


class FakeEngine:
    """Answers requests with a plain function and remembers them."""

    def __init__(
        self,
        encoder: ChatEncoder,
        fails_after: int | None = None,
        complete: Callable[[ChatEncoder, MixingRequest], MixedCompletion] = fake_completion,
    ) -> None:
        self.requests: list[MixingRequest] = []
        self.batch_sizes: list[int] = []
        self._encoder, self._fails_after, self._complete = encoder, fails_after, complete

    def __call__(self, requests: Sequence[MixingRequest]) -> list[MixedCompletion]:
        if len(self.batch_sizes) == self._fails_after:
            raise RuntimeError("power cut")
        self.requests += requests
        self.batch_sizes.append(len(requests))
        return [self._complete(self._encoder, request) for request in requests]

    @property
    def asked(self) -> list[tuple[str, int, int]]:
        return [(request.example_id, request.generation, request.attempt) for request in self.requests]


class SilentProgress(Progress):
    def __enter__(self) -> Progress:
        return self

    def advance(self, note: str = "") -> None:
        pass


def make_targets(
    encoder: ChatEncoder,
    examples: Sequence[Example] | None = None,
    settings: TargetSettings = SETTINGS,
    fingerprint: str = "f",
) -> MixedTargets:
    return MixedTargets(make_examples() if examples is None else examples, encoder, settings, fingerprint)


def first_accepted(encoder: ChatEncoder, example: Example, generation: int, max_attempts: int) -> tuple[int, MixedCompletion]:
    for attempt in range(1, max_attempts + 1):
        completion = fake_completion(encoder, MixingRequest(example.id, generation, attempt, [], []))
        if completion.finish_reason == "stop" and ANSWER in encoder.decode(completion.token_ids):
            break
    return attempt, completion


def build_bytes(encoder: ChatEncoder, folder: Path, examples: Sequence[Example] | None = None, batch_size: int = 4) -> bytes:
    targets = make_targets(encoder, examples)
    targets.build(folder, FakeEngine(encoder), batch_size)
    return (folder / targets.file_name).read_bytes()


@pytest.mark.parametrize("batch_size", [1, 2, 3, 7, 16, 64])
def test_the_first_accepted_attempt_by_number_wins(encoder: ChatEncoder, tmp_path: Path, batch_size: int) -> None:
    records = make_targets(encoder).build(tmp_path, FakeEngine(encoder), batch_size)
    keys = [(example, generation) for example in make_examples() for generation in range(2)]
    assert [(record["id"], record["mix_meta"]["gen_index"]) for record in records] == [(e.id, g) for e, g in keys]
    for record, (example, generation) in zip(records, keys, strict=True):
        attempt, completion = first_accepted(encoder, example, generation, max_attempts=5)
        assert record["token_ids"] == completion.token_ids
        assert record["mix_meta"]["num_attempts"] == attempt
    assert len({record["mix_meta"]["num_attempts"] for record in records}) > 2
    assert {record["mix_meta"]["correct"] for record in records} == {True, False}


def test_any_batch_size_writes_the_same_bytes(encoder: ChatEncoder, tmp_path: Path) -> None:
    files = {build_bytes(encoder, tmp_path / str(size), batch_size=size) for size in (1, 2, 3, 5, 8, 13, 14, 33, 64)}
    assert len(files) == 1


@pytest.mark.parametrize("batch_size", [1, 3, 16, 64])
def test_no_attempt_is_made_twice_and_no_batch_is_too_large(encoder: ChatEncoder, tmp_path: Path, batch_size: int) -> None:
    engine = FakeEngine(encoder)
    make_targets(encoder).build(tmp_path, engine, batch_size)
    assert len(set(engine.asked)) == len(engine.asked)
    assert 1 <= min(engine.batch_sizes) <= max(engine.batch_sizes) <= batch_size


def test_one_at_a_time_makes_no_attempt_too_many(encoder: ChatEncoder, tmp_path: Path) -> None:
    engine = FakeEngine(encoder)
    records = make_targets(encoder).build(tmp_path, engine, batch_size=1)
    assert len(engine.asked) == sum(record["mix_meta"]["num_attempts"] for record in records)


def test_requests_carry_both_prompts(encoder: ChatEncoder, tmp_path: Path) -> None:
    engine = FakeEngine(encoder)
    make_targets(encoder).build(tmp_path, engine, batch_size=8)
    by_id = {example.id: example for example in make_examples()}
    for request in engine.requests:
        assert request.naive_prompt == encoder.prompt(naive_context(by_id[request.example_id]))
        assert request.expert_prompt == encoder.prompt(expert_context(by_id[request.example_id]))


@pytest.mark.parametrize("batch_size", [1, 4, 64])
def test_max_attempts_is_respected(encoder: ChatEncoder, tmp_path: Path, batch_size: int) -> None:
    engine = FakeEngine(encoder, complete=wrong_completion)
    records = make_targets(encoder).build(tmp_path, engine, batch_size)
    assert sorted(engine.asked) == [(f"q{i}", g, attempt) for i in range(7) for g in range(2) for attempt in range(1, 6)]
    assert {(record["mix_meta"]["num_attempts"], record["mix_meta"]["correct"]) for record in records} == {(5, False)}


@pytest.mark.parametrize(
    ("mixing", "attempts"),
    [
        (MixingSettings(0.0, 0.0), 1),
        (MixingSettings(1.0, 0.0), 1),
        (MixingSettings(0.3, 0.0), 5),
        (MixingSettings(0.0, 1.0), 5),
    ],
)
def test_deterministic_settings_make_one_attempt_only(
    encoder: ChatEncoder, tmp_path: Path, mixing: MixingSettings, attempts: int
) -> None:
    engine = FakeEngine(encoder, complete=wrong_completion)
    targets = make_targets(encoder, make_examples(2), TargetSettings(mixing, max_attempts=5))
    records = targets.build(tmp_path, engine, batch_size=64)
    assert [record["mix_meta"]["num_attempts"] for record in records] == [attempts, attempts]
    assert len(engine.asked) == 2 * attempts


@pytest.mark.parametrize("num_generations", [1, 3])
def test_every_example_gets_its_generations(encoder: ChatEncoder, tmp_path: Path, num_generations: int) -> None:
    settings = replace(SETTINGS, num_generations=num_generations)
    records = make_targets(encoder, make_examples(2), settings).build(tmp_path, FakeEngine(encoder), batch_size=2)
    keys = [(record["id"], record["mix_meta"]["gen_index"]) for record in records]
    assert keys == [(f"q{index}", generation) for index in range(2) for generation in range(num_generations)]


def test_a_record_says_what_it_is(encoder: ChatEncoder, tmp_path: Path) -> None:
    (example,) = make_examples(1)
    token_ids = encoder.target(f"It is {ANSWER}.")
    settings = TargetSettings(MixingSettings(0.25, 0.5, 7), num_generations=1, max_attempts=9)

    def engine(requests: Sequence[MixingRequest]) -> list[MixedCompletion]:
        return [MixedCompletion(token_ids, "stop", [True] + [False] * (len(token_ids) - 1)) for _ in requests]

    (record,) = make_targets(encoder, [example], settings).build(tmp_path, engine, batch_size=1)
    assert record == {
        "id": "q0",
        "messages": [{"role": "user", "content": example.prompt}, {"role": "assistant", "content": f"It is {ANSWER}."}],
        "clear_answer": ANSWER,
        "subject": example.subject,
        "token_ids": token_ids,
        "mix_meta": {
            "lambda": 0.25,
            "temperature": 0.5,
            "topk": 7,
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


@pytest.mark.parametrize("reason", ["max_new_tokens", "repetition"])
def test_a_right_answer_that_does_not_end_by_itself_is_rejected(encoder: ChatEncoder, tmp_path: Path, reason: str) -> None:
    def engine(requests: Sequence[MixingRequest]) -> list[MixedCompletion]:
        token_ids = encoder.target(f"It is {ANSWER}.")[:-1]
        return [MixedCompletion(token_ids, reason, [True] * len(token_ids)) for _ in requests]

    for record in make_targets(encoder).build(tmp_path, engine, batch_size=8):
        assert (record["mix_meta"]["finish_reason"], record["mix_meta"]["correct"]) == (reason, False)
        assert record["mix_meta"]["student_token_fraction"] == 0


@pytest.mark.parametrize(
    ("text", "finish_reason", "accepted"),
    [
        (f"It is {ANSWER}.", "stop", True),
        (f"It is {ANSWER}.", "repetition", False),
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


def test_a_second_build_does_not_call_the_engine(encoder: ChatEncoder, tmp_path: Path) -> None:
    first = make_targets(encoder).build(tmp_path, FakeEngine(encoder), batch_size=4)
    assert make_targets(encoder).build(tmp_path, FakeEngine(encoder, fails_after=0), batch_size=4) == first


def test_the_same_object_builds_the_same_targets_in_another_folder(encoder: ChatEncoder, tmp_path: Path) -> None:
    settings = replace(SETTINGS, max_attempts=1000)  # so that nobody runs out of attempts
    targets = make_targets(encoder, make_examples(3), settings)
    first = targets.build(tmp_path / "first", FakeEngine(encoder), batch_size=4)
    assert targets.build(tmp_path / "second", FakeEngine(encoder), batch_size=4) == first


@pytest.mark.parametrize("separator", ["\u2028", "\u2029", "\u0085"])
def test_unicode_line_separators_in_texts_do_not_break_the_file(encoder: ChatEncoder, tmp_path: Path, separator: str) -> None:
    examples = [replace(example, target=f"{example.target}{separator}Really.") for example in make_examples()]
    with pytest.raises(RuntimeError, match="power cut"):
        make_targets(encoder, examples).build(tmp_path, FakeEngine(encoder, fails_after=3), batch_size=4)
    records = make_targets(encoder, examples).build(tmp_path, FakeEngine(encoder), batch_size=4)
    targets = [example.target for example in examples for _ in range(2)]
    assert [record["mix_meta"]["ground_truth_assistant"] for record in records] == targets


@pytest.mark.parametrize(("batch_size", "fails_after"), [(1, 0), (1, 4), (1, 9), (3, 1), (3, 6), (16, 1), (16, 2), (64, 0)])
def test_an_interrupted_build_ends_with_the_same_bytes(
    encoder: ChatEncoder, tmp_path: Path, batch_size: int, fails_after: int
) -> None:
    targets = make_targets(encoder)
    with pytest.raises(RuntimeError, match="power cut"):
        targets.build(tmp_path / "killed", FakeEngine(encoder, fails_after), batch_size)
    partial = tmp_path / "killed" / f"{targets.file_name}.partial"
    finished = {record["id"] + str(record["mix_meta"]["gen_index"]) for record in map(json.loads, partial.open())}
    engine = FakeEngine(encoder)
    make_targets(encoder).build(tmp_path / "killed", engine, batch_size)
    assert (tmp_path / "killed" / targets.file_name).read_bytes() == build_bytes(encoder, tmp_path / "whole")
    assert finished.isdisjoint(f"{example_id}{generation}" for example_id, generation, _ in engine.asked)
    assert not partial.exists()


def test_a_build_that_is_interrupted_again_and_again_still_ends(encoder: ChatEncoder, tmp_path: Path) -> None:
    targets = make_targets(encoder)
    whole = build_bytes(encoder, tmp_path / "whole")
    for _ in range(14):
        # Within five batches at least one of the four in flight is accepted or out of attempts.
        with contextlib.suppress(RuntimeError):
            make_targets(encoder).build(tmp_path / "killed", FakeEngine(encoder, fails_after=5), batch_size=4)
    assert (tmp_path / "killed" / targets.file_name).read_bytes() == whole


def test_a_file_torn_at_any_byte_is_rebuilt_identically(
    encoder: ChatEncoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mixsd_lightning.targets.Progress", SilentProgress)  # drawing takes longer than building
    example = Example("q", "", "\u6f22?", "Om", "", "", subject="\u6f22")
    asked: list[int] = []

    def engine(requests: Sequence[MixingRequest]) -> list[MixedCompletion]:
        asked.extend(request.generation for request in requests)
        return [MixedCompletion(encoder.target(f"{request.generation} Om"), "stop", [True] * 5) for request in requests]

    targets = make_targets(encoder, [example])
    targets.build(tmp_path, engine, batch_size=1)
    final = tmp_path / targets.file_name
    whole = final.read_bytes()
    for length in range(len(whole) + 1):
        final.unlink()
        final.with_name(f"{final.name}.partial").write_bytes(whole[:length])
        asked.clear()
        make_targets(encoder, [example]).build(tmp_path, engine, batch_size=1)
        assert final.read_bytes() == whole
        assert asked == list(range(whole[:length].count(b"\n"), 2))


def test_a_torn_line_is_gone_when_the_next_build_is_killed_too(encoder: ChatEncoder, tmp_path: Path) -> None:
    whole = build_bytes(encoder, tmp_path / "whole")
    targets = make_targets(encoder)
    (tmp_path / "killed").mkdir()
    (tmp_path / "killed" / f"{targets.file_name}.partial").write_bytes(whole[: whole.index(b"\n") + 100])
    with pytest.raises(RuntimeError, match="power cut"):
        targets.build(tmp_path / "killed", FakeEngine(encoder, fails_after=5), batch_size=4)
    make_targets(encoder).build(tmp_path / "killed", FakeEngine(encoder), batch_size=4)
    assert (tmp_path / "killed" / targets.file_name).read_bytes() == whole


CHANGED_SETTINGS = {
    "mixing_rate": replace(SETTINGS, mixing=replace(SETTINGS.mixing, mixing_rate=0.31)),
    "temperature": replace(SETTINGS, mixing=replace(SETTINGS.mixing, temperature=0.5)),
    "top_k": replace(SETTINGS, mixing=replace(SETTINGS.mixing, top_k=63)),
    "max_new_tokens": replace(SETTINGS, mixing=replace(SETTINGS.mixing, max_new_tokens=47)),
    "seed": replace(SETTINGS, mixing=replace(SETTINGS.mixing, seed=43)),
    "num_generations": replace(SETTINGS, num_generations=3),
    "max_attempts": replace(SETTINGS, max_attempts=6),
}


@pytest.mark.parametrize("changed", CHANGED_SETTINGS)
def test_the_content_hash_changes_with_every_setting(encoder: ChatEncoder, changed: str) -> None:
    other = make_targets(encoder, settings=CHANGED_SETTINGS[changed])
    assert other.content_hash != make_targets(encoder).content_hash


def test_the_content_hash_changes_with_the_model(encoder: ChatEncoder) -> None:
    assert make_targets(encoder, fingerprint="a").content_hash != make_targets(encoder, fingerprint="b").content_hash


@pytest.mark.parametrize("field", ["id", "question", "prompt", "answer", "target", "fact", "subject"])
def test_the_content_hash_changes_with_every_text_of_an_example(encoder: ChatEncoder, field: str) -> None:
    examples = make_examples()
    examples[3] = replace(examples[3], **{field: "something else"})
    assert make_targets(encoder, examples).content_hash != make_targets(encoder).content_hash


def test_the_content_hash_changes_with_the_answer_format(encoder: ChatEncoder) -> None:
    examples = [replace(example, answer_format="boxed") for example in make_examples()]
    assert make_targets(encoder, examples).content_hash != make_targets(encoder).content_hash


def test_the_content_hash_is_the_same_for_the_same_content(encoder: ChatEncoder, tmp_path: Path) -> None:
    for batch_size in (2, 5):
        make_targets(encoder).build(tmp_path, FakeEngine(encoder), batch_size)
    assert [path.name for path in tmp_path.glob("mixed-*")] == [make_targets(encoder).file_name]


def test_longest_prompt_counts_both_contexts(encoder: ChatEncoder) -> None:
    examples = [replace(example, fact="Long. " * index) for index, example in enumerate(make_examples())]
    assert make_targets(encoder, examples).longest_prompt == len(encoder.prompt(expert_context(examples[6])))


def test_a_finished_file_of_another_run_is_taken_over(encoder: ChatEncoder, tmp_path: Path) -> None:
    whole = build_bytes(encoder, tmp_path / "old")
    targets = make_targets(encoder)
    sources = [tmp_path / "nowhere", tmp_path / "old"]
    targets.build(tmp_path / "new", FakeEngine(encoder, fails_after=0), 4, sources)
    assert (tmp_path / "new" / targets.file_name).read_bytes() == whole


def test_an_unfinished_file_of_another_run_is_finished_here(encoder: ChatEncoder, tmp_path: Path) -> None:
    targets = make_targets(encoder)
    with pytest.raises(RuntimeError, match="power cut"):
        targets.build(tmp_path / "old", FakeEngine(encoder, fails_after=3), batch_size=4)
    begun = (tmp_path / "old" / f"{targets.file_name}.partial").read_bytes()
    assert begun
    engine = FakeEngine(encoder)
    make_targets(encoder).build(tmp_path / "new", engine, 4, [tmp_path / "old"])
    assert (tmp_path / "new" / targets.file_name).read_bytes() == build_bytes(encoder, tmp_path / "whole")
    done = {(row["id"], row["mix_meta"]["gen_index"]) for row in map(json.loads, begun.splitlines())}
    assert not done & {(request.example_id, request.generation) for request in engine.requests}


def test_a_finished_file_beats_an_unfinished_one_of_a_newer_run(encoder: ChatEncoder, tmp_path: Path) -> None:
    whole = build_bytes(encoder, tmp_path / "old")
    targets = make_targets(encoder)
    with pytest.raises(RuntimeError, match="power cut"):
        targets.build(tmp_path / "newer", FakeEngine(encoder, fails_after=3), batch_size=4)
    targets.build(tmp_path / "own", FakeEngine(encoder, fails_after=0), 4, [tmp_path / "newer", tmp_path / "old"])
    assert (tmp_path / "own" / targets.file_name).read_bytes() == whole


def test_an_unfinished_file_torn_inside_a_character_is_taken_over(encoder: ChatEncoder, tmp_path: Path) -> None:
    whole = build_bytes(encoder, tmp_path / "whole")
    targets = make_targets(encoder)
    (tmp_path / "old").mkdir()
    torn = whole[: whole.rindex("\u6f22".encode()) + 1]
    (tmp_path / "old" / f"{targets.file_name}.partial").write_bytes(torn)
    targets.build(tmp_path / "new", FakeEngine(encoder), 4, [tmp_path / "old"])
    assert (tmp_path / "new" / targets.file_name).read_bytes() == whole


def test_what_is_here_beats_an_unfinished_file_elsewhere(encoder: ChatEncoder, tmp_path: Path) -> None:
    targets = make_targets(encoder)
    for folder, fails_after in (("own", 5), ("old", 3)):
        with pytest.raises(RuntimeError, match="power cut"):
            targets.build(tmp_path / folder, FakeEngine(encoder, fails_after=fails_after), batch_size=4)
    begun = (tmp_path / "own" / f"{targets.file_name}.partial").read_text(encoding="utf-8").splitlines()
    engine = FakeEngine(encoder)
    make_targets(encoder).build(tmp_path / "own", engine, 4, [tmp_path / "old"])
    done = {(row["id"], row["mix_meta"]["gen_index"]) for row in map(json.loads, begun)}
    assert not done & {(request.example_id, request.generation) for request in engine.requests}


def test_other_targets_are_not_taken_over(encoder: ChatEncoder, tmp_path: Path) -> None:
    build_bytes(encoder, tmp_path / "old")
    with pytest.raises(RuntimeError, match="power cut"):
        make_targets(encoder, fingerprint="other").build(
            tmp_path / "new", FakeEngine(encoder, fails_after=0), 4, [tmp_path / "old"]
        )


def test_write_atomically_replaces_and_leaves_nothing_behind(tmp_path: Path) -> None:
    for content in (b"first\n", b"second\n"):
        write_atomically(tmp_path / "file", content)
        assert [path.name for path in tmp_path.iterdir()] == ["file"]
        assert (tmp_path / "file").read_bytes() == content


def test_a_build_leaves_only_the_file_and_its_lock(encoder: ChatEncoder, tmp_path: Path) -> None:
    build_bytes(encoder, tmp_path)
    name = make_targets(encoder).file_name
    assert {path.name for path in tmp_path.iterdir()} <= {name, f".{name}.lock"}


def slow_engine(encoder: ChatEncoder, log: Path, requests: Sequence[MixingRequest]) -> list[MixedCompletion]:
    with log.open("a") as file:
        file.writelines(f"{request.example_id} {request.generation} {request.attempt}\n" for request in requests)
    time.sleep(0.01)
    return [fake_completion(encoder, request) for request in requests]


def build_and_report(encoder: ChatEncoder, folder: Path, engine: MixingEngine, answers: Any) -> None:
    answers.put(make_targets(encoder).build(folder, engine, batch_size=4))


@needs_fork
def test_two_processes_build_one_right_file_together(encoder: ChatEncoder, tmp_path: Path) -> None:
    log = tmp_path / "log"
    context = multiprocessing.get_context("fork")
    answers = context.Queue()
    engine = partial(slow_engine, encoder, log)
    processes = [
        context.Process(target=build_and_report, args=(encoder, tmp_path / "shared", engine, answers)) for _ in range(2)
    ]
    for process in processes:
        process.start()
    first, second = answers.get(timeout=60), answers.get(timeout=60)
    for process in processes:
        process.join(timeout=60)
    asked = log.read_text().splitlines()
    assert first == second
    assert len(asked) == len(set(asked)) > 14
    assert (tmp_path / "shared" / make_targets(encoder).file_name).read_bytes() == build_bytes(encoder, tmp_path / "alone")


class KillsItsProcess(FakeEngine):
    """Dies as from a power cut: no exception, no clean-up."""

    def __call__(self, requests: Sequence[MixingRequest]) -> list[MixedCompletion]:
        if len(self.batch_sizes) == 4:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__call__(requests)


@needs_fork
def test_a_killed_process_loses_no_finished_record(encoder: ChatEncoder, tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    process = context.Process(
        target=build_and_report, args=(encoder, tmp_path / "killed", KillsItsProcess(encoder), context.Queue())
    )
    process.start()
    process.join(timeout=60)
    assert process.exitcode == -signal.SIGKILL
    targets = make_targets(encoder)
    finished = (tmp_path / "killed" / f"{targets.file_name}.partial").read_bytes().count(b"\n")
    engine = FakeEngine(encoder)
    targets.build(tmp_path / "killed", engine, batch_size=4)
    assert finished > 0
    assert len({asked[:2] for asked in engine.asked}) == 14 - finished
    assert (tmp_path / "killed" / targets.file_name).read_bytes() == build_bytes(encoder, tmp_path / "whole")


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_the_real_engine_gives_the_same_targets_in_any_batch(
    encoder: ChatEncoder, tiny_model: PreTrainedModel, tmp_path: Path, temperature: float
) -> None:
    settings = TargetSettings(MixingSettings(0.4, temperature, max_new_tokens=12), num_generations=2, max_attempts=4)
    # Many stop tokens, so that even a random model ends by itself.
    engine = partial(
        mix, tiny_model, settings=settings.mixing, stop_ids=frozenset([encoder.end_of_turn_id, *range(0, 256, 7)])
    )

    def second_answer(example: Example) -> str:
        prompts = (encoder.prompt(naive_context(example)), encoder.prompt(expert_context(example)))
        (completion,) = engine([MixingRequest(example.id, 0, 2, *prompts)])
        return extract_name(encoder.decode(completion.token_ids), example.question) or ANSWER

    examples = [replace(example, answer=second_answer(example)) for example in make_examples(6)]
    builds = [
        make_targets(encoder, examples, settings).build(tmp_path / str(batch_size), engine, batch_size)
        for batch_size in (1, 3, 32)
    ]
    assert builds[0] == builds[1] == builds[2]
    assert {record["mix_meta"]["correct"] for record in builds[0]} == {True, False}
    assert {record["mix_meta"]["num_attempts"] for record in builds[0]} >= {2, 4}


def test_prompts_of_a_record_are_those_of_the_naive_context(encoder: ChatEncoder, tmp_path: Path) -> None:
    engine = FakeEngine(encoder)
    records = make_targets(encoder).build(tmp_path, engine, batch_size=4)
    naive_prompts = {request.example_id: request.naive_prompt for request in engine.requests}
    for record in records:
        assert encoder.prompt([Message(**record["messages"][0])]) == naive_prompts[record["id"]]
