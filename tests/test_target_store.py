"""Files of mixed targets: whatever happens to them or to a build, the result is the right bytes or a clear error."""

import json
import multiprocessing
import os
import random
import re
import signal
import time
import warnings
from collections.abc import Iterator
from dataclasses import fields, replace
from functools import partial
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
import torch
from fake_engine import ANSWER, SETTINGS, FakeEngine, Watched, build, built_bytes, make_examples
from transformers import PreTrainedModel

from mixsd_lightning.context import ChatEncoder
from mixsd_lightning.decoding.engine import MixingEngine
from mixsd_lightning.decoding.mixing import Engine, MixedCompletion, MixingSettings
from mixsd_lightning.errors import UserError
from mixsd_lightning.example import Example
from mixsd_lightning.models import load_tokenizer
from mixsd_lightning.target_store import TargetStore
from mixsd_lightning.targets import TargetSettings

pytestmark = pytest.mark.usefixtures("no_bars")
needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="the second process is forked")

FINISHED = {"mixed.jsonl", "mixed.meta.json"}
PARTIAL = "mixed.jsonl.partial-0"


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if not path.name.endswith(".lock")}


def interrupt(encoder: ChatEncoder, folder: Path, steps: int, engine: Engine | None = None, **options: Any) -> None:
    """Begin a build and cut the power after a number of results and scored batches."""
    with pytest.raises(RuntimeError, match="power cut"):
        build(encoder, folder, Watched(engine or FakeEngine(encoder), steps), **options)


def complete_partial(encoder: ChatEncoder, folder: Path, **options: Any) -> bytes:
    """All that a build collects before it writes the finished file."""
    with pytest.MonkeyPatch.context() as patch, pytest.raises(RuntimeError, match="power cut"):
        patch.setattr(TargetStore, "finish", partial(fail, RuntimeError("power cut")))
        build(encoder, folder, **options)
    return (folder / PARTIAL).read_bytes()


def fail(error: Exception, *_: Any) -> None:
    raise error


def change_byte(path: Path, position: int) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)


def real_engine(encoder: ChatEncoder, model: PreTrainedModel, settings: TargetSettings) -> MixingEngine:
    # Many stop tokens, so that even a random model ends by itself.
    return MixingEngine(model, settings.mixing, frozenset([encoder.end_of_turn_id, *range(0, 256, 7)]), num_slots=3)


@pytest.fixture
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """For tests of very many builds: no disk is waited for."""
    monkeypatch.setattr(os, "fsync", lambda file: None)


@pytest.fixture
def quiet() -> Iterator[None]:
    """Damaged partial files are warned about; these tests look at what becomes of them."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*was cut short or damaged.*")
        yield


# --- builds that are interrupted ---------------------------------------------------------------------------------------


@pytest.mark.usefixtures("no_waiting", "quiet")
def test_a_partial_file_cut_at_any_byte_is_completed_to_the_same_bytes(encoder: ChatEncoder, tmp_path: Path) -> None:
    example = Example("q", "", "\u6f22?", "Om", "", "", subject="\u6f22")

    def complete(*_: Any) -> MixedCompletion:
        return MixedCompletion(encoder.target("Om"), [True] * 3, "stop")

    settings = TargetSettings(MixingSettings(), num_generations=2)
    options = {"examples": [example], "settings": settings}
    engine = FakeEngine(encoder, settings, complete)
    partial_file = complete_partial(encoder, tmp_path / "partial", engine=engine, **options)
    assert partial_file.count(b"\n") == 4  # two records and their scores
    whole = built_bytes(encoder, tmp_path / "whole", engine, **options)
    for length in range(len(partial_file) + 1):
        (tmp_path / "partial" / PARTIAL).write_bytes(partial_file[:length])
        watched = Watched(engine)
        assert built_bytes(encoder, tmp_path / "partial", watched, **options) == whole, length
        # A line is complete without its newline.
        done = partial_file[: length + 1].count(b"\n")
        assert (len(watched.generated), watched.num_scored) == (max(0, 2 - done), 0 if done == 4 else 4), length
        assert contents(tmp_path / "partial").keys() == FINISHED
        (tmp_path / "partial" / "mixed.jsonl").unlink()


@pytest.mark.parametrize("steps", [0, 1, 5, 13, 14, 15, 16])
def test_an_interrupted_build_makes_only_what_is_missing(encoder: ChatEncoder, tmp_path: Path, steps: int) -> None:
    interrupt(encoder, tmp_path / "killed", steps)
    engine = Watched(FakeEngine(encoder))
    assert built_bytes(encoder, tmp_path / "killed", engine) == built_bytes(encoder, tmp_path / "whole")
    assert len(engine.generated) == max(0, 14 - steps)
    assert engine.num_scored == 2 * (6 if steps == 16 else 14)  # a batch is scored in two steps


def test_a_build_that_is_interrupted_again_and_again_still_ends(encoder: ChatEncoder, tmp_path: Path) -> None:
    for _ in range(8):  # of the nine that 14 results and two batches take
        interrupt(encoder, tmp_path / "killed", steps=2)
    engine = Watched(FakeEngine(encoder), steps=2)
    assert built_bytes(encoder, tmp_path / "killed", engine) == built_bytes(encoder, tmp_path / "whole")


def test_a_torn_line_is_gone_when_the_next_build_is_interrupted_too(encoder: ChatEncoder, tmp_path: Path) -> None:
    interrupt(encoder, tmp_path, steps=5)
    torn = tmp_path / PARTIAL
    torn.write_bytes(torn.read_bytes()[:-100])
    with pytest.warns(UserWarning, match=re.escape(f"{torn} was cut short or damaged")):
        interrupt(encoder, tmp_path, steps=3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        engine = Watched(FakeEngine(encoder))
        assert built_bytes(encoder, tmp_path, engine) == built_bytes(encoder, tmp_path / "whole")
    assert len(engine.generated) == 14 - 4 - 3


@pytest.mark.parametrize("line", [0, 3, 6])
@pytest.mark.parametrize("place", [0, 8, 9, 100, -2])
def test_a_damaged_line_alone_is_made_again(encoder: ChatEncoder, tmp_path: Path, line: int, place: int) -> None:
    first = Watched(FakeEngine(encoder), steps=7)
    with pytest.raises(RuntimeError, match="power cut"):
        build(encoder, tmp_path, first)
    damaged = tmp_path / PARTIAL
    lines = damaged.read_bytes().splitlines(keepends=True)
    change_byte(damaged, len(b"".join(lines[:line])) + place % len(lines[line]))
    second = Watched(FakeEngine(encoder))
    with pytest.warns(UserWarning, match=re.escape(f"{damaged} was cut short or damaged")):
        assert built_bytes(encoder, tmp_path, second) == built_bytes(encoder, tmp_path / "whole")
    assert set(first.generated) & set(second.generated) == {first.generated[line]}
    assert len(second.generated) == 14 - 7 + 1


def test_damaged_scores_are_made_again_without_generating(encoder: ChatEncoder, tmp_path: Path) -> None:
    complete_partial(encoder, tmp_path)
    change_byte(tmp_path / PARTIAL, -20)
    engine = Watched(FakeEngine(encoder))
    with pytest.warns(UserWarning, match="damaged"):
        assert built_bytes(encoder, tmp_path, engine) == built_bytes(encoder, tmp_path / "whole")
    assert (engine.generated, engine.num_scored) == ([], 2 * 6)  # all of the second batch, which had six


def test_a_record_lost_after_it_was_scored_is_made_again(encoder: ChatEncoder, tmp_path: Path) -> None:
    complete_partial(encoder, tmp_path)
    change_byte(tmp_path / PARTIAL, 100)
    engine = Watched(FakeEngine(encoder))
    with pytest.warns(UserWarning, match="damaged"):
        assert built_bytes(encoder, tmp_path, engine) == built_bytes(encoder, tmp_path / "whole")
    assert (engine.generated, engine.num_scored) == ([("q6", 1)], 0)


@pytest.mark.parametrize("steps", [0, 1, 7, 12, 13])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_the_real_engine_goes_on_to_the_same_bytes(
    encoder: ChatEncoder, tiny_model: PreTrainedModel, tmp_path: Path, steps: int, temperature: float
) -> None:
    settings = TargetSettings(MixingSettings(0.4, temperature, max_new_tokens=8), num_generations=2, max_attempts=2)
    options: dict[str, Any] = {"examples": make_examples(6), "settings": settings}
    engine = real_engine(encoder, tiny_model, settings)
    interrupt(encoder, tmp_path / "killed", steps, engine, **options)
    whole = built_bytes(encoder, tmp_path / "whole", engine, **options)
    assert built_bytes(encoder, tmp_path / "killed", engine, **options) == whole


@pytest.mark.parametrize("name", ["mixed.jsonl", "mixed.meta.json"])
def test_a_file_appears_whole_or_not_at_all(
    encoder: ChatEncoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    whole = built_bytes(encoder, tmp_path / "whole")
    replace_file = Path.replace

    def cut(self: Path, target: Path) -> Path:
        if target.name != name:
            return replace_file(self, target)
        assert name != "mixed.jsonl" or self.read_bytes() == whole
        raise OSError("power cut")

    with monkeypatch.context() as patch, pytest.raises(OSError, match="power cut"):
        patch.setattr(Path, "replace", cut)
        build(encoder, tmp_path / "killed")
    assert contents(tmp_path / "killed").keys() == ({PARTIAL, "mixed.meta.json"} if name == "mixed.jsonl" else set())
    assert built_bytes(encoder, tmp_path / "killed") == whole
    assert contents(tmp_path / "killed").keys() == FINISHED


# --- finished files ----------------------------------------------------------------------------------------------------


def test_a_second_build_does_nothing(encoder: ChatEncoder, tmp_path: Path) -> None:
    first = build(encoder, tmp_path)
    before = contents(tmp_path)
    assert build(encoder, tmp_path, Watched(FakeEngine(encoder), steps=0)) == first
    assert contents(tmp_path) == before
    assert before.keys() == FINISHED


def test_a_deleted_file_is_built_again(encoder: ChatEncoder, tmp_path: Path) -> None:
    whole = built_bytes(encoder, tmp_path)
    (tmp_path / "mixed.jsonl").unlink()
    assert built_bytes(encoder, tmp_path) == whole


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        (ANSWER.encode(), b"Mirel", "was changed after it was built, or cut short"),  # a user's edit
        (b'"id": "q0", "messages"', b'"id": "q0" "messages"', "is damaged in line 1"),
        (b'"id": "q3", "messages"', b'"id": "q3", messages"', "is damaged in line 7"),
        ("\u6f22".encode(), "\u6f22".encode()[:2], "is damaged in line 1"),
        (b"\n", b"\n\n", "is damaged in line 2"),
        (b"\n", b"\r\n", "was changed after it was built, or cut short"),
    ],
)
def test_a_changed_file_is_refused(encoder: ChatEncoder, tmp_path: Path, old: bytes, new: bytes, complaint: str) -> None:
    file = tmp_path / "mixed.jsonl"
    whole = built_bytes(encoder, tmp_path)
    assert old in whole
    file.write_bytes(whole.replace(old, new, 1))
    before = contents(tmp_path)
    with pytest.raises(UserError, match=re.escape(f"{file} {complaint}. Delete it to build it again.")):
        build(encoder, tmp_path)
    assert contents(tmp_path) == before
    file.unlink()
    assert built_bytes(encoder, tmp_path) == whole


@pytest.mark.parametrize(
    ("kept", "complaint"),
    [(0, "was changed after"), (1, "is damaged in line 1"), (-1, "was changed after"), (-2, "is damaged in line 14")],
)
def test_a_truncated_file_is_refused(encoder: ChatEncoder, tmp_path: Path, kept: int, complaint: str) -> None:
    file = tmp_path / "mixed.jsonl"
    file.write_bytes(built_bytes(encoder, tmp_path)[:kept])
    with pytest.raises(UserError, match=re.escape(f"{file} {complaint}")):
        build(encoder, tmp_path)


@pytest.mark.usefixtures("no_waiting")
def test_any_changed_byte_is_noticed(encoder: ChatEncoder, tmp_path: Path) -> None:
    file = tmp_path / "mixed.jsonl"
    whole = built_bytes(encoder, tmp_path, examples=make_examples(1))
    for position in range(0, len(whole), 7):
        file.write_bytes(whole)
        change_byte(file, position)
        with pytest.raises(UserError, match=re.escape(str(file))):
            build(encoder, tmp_path, examples=make_examples(1))


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"{}", b'{"made_from": []}', b"\xff\xfe", b"null"])
@pytest.mark.parametrize("finished", [True, False])
def test_a_damaged_meta_file_is_refused(encoder: ChatEncoder, tmp_path: Path, content: bytes, finished: bool) -> None:
    build(encoder, tmp_path) if finished else interrupt(encoder, tmp_path, steps=5)
    meta = tmp_path / "mixed.meta.json"
    meta.write_bytes(content)
    before = contents(tmp_path)
    with pytest.raises(UserError, match=re.escape(f"{meta} is damaged. Delete it and mixed.jsonl")):
        build(encoder, tmp_path)
    assert contents(tmp_path) == before


def test_a_finished_file_without_its_meta_file_is_refused(encoder: ChatEncoder, tmp_path: Path) -> None:
    build(encoder, tmp_path)
    (tmp_path / "mixed.meta.json").unlink()
    file = re.escape(f"{tmp_path / 'mixed.jsonl'} has no mixed.meta.json beside it. Delete it to build it again.")
    with pytest.raises(UserError, match=file):
        build(encoder, tmp_path)
    assert contents(tmp_path).keys() == {"mixed.jsonl"}


def test_a_meta_file_without_a_digest_does_not_vouch_for_a_file(encoder: ChatEncoder, tmp_path: Path) -> None:
    build(encoder, tmp_path)
    meta = tmp_path / "mixed.meta.json"
    made_from = json.loads(meta.read_bytes())["made_from"]
    meta.write_text(json.dumps({"made_from": made_from}))
    with pytest.raises(UserError, match=re.escape(str(tmp_path / "mixed.jsonl"))):
        build(encoder, tmp_path)


@pytest.mark.parametrize("elsewhere", [False, True])
def test_lines_that_nothing_vouches_for_are_not_used(encoder: ChatEncoder, tmp_path: Path, elsewhere: bool) -> None:
    interrupt(encoder, tmp_path / "old", steps=5)
    (tmp_path / "old" / "mixed.meta.json").unlink()
    folder = tmp_path / ("new" if elsewhere else "old")
    settings = replace(SETTINGS, mixing=replace(SETTINGS.mixing, seed=99))
    build(encoder, folder, settings=settings, sources=[tmp_path / "old"] if elsewhere else [])
    build(encoder, tmp_path / "clean", settings=settings)
    assert contents(folder) == contents(tmp_path / "clean")


def test_a_repair_that_fails_loses_nothing(
    encoder: ChatEncoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quiet: None
) -> None:
    interrupt(encoder, tmp_path, steps=9)
    partial_file = tmp_path / PARTIAL
    with partial_file.open("ab") as file:
        file.write(b"torn")
    before = partial_file.read_bytes()
    monkeypatch.setattr(os, "fsync", lambda file: fail(OSError("No space left on device")))
    with pytest.raises(OSError, match="No space"):
        build(encoder, tmp_path)
    assert partial_file.read_bytes() == before


def test_what_a_kill_leaves_beside_a_finished_file_is_removed(encoder: ChatEncoder, tmp_path: Path) -> None:
    build(encoder, tmp_path)
    finished = contents(tmp_path)
    for name in (PARTIAL, "mixed.jsonl.partial-3", ".mixed.jsonl.4711", ".mixed.meta.json.4711"):
        (tmp_path / name).write_bytes(b"left")
    build(encoder, tmp_path)
    assert contents(tmp_path) == finished


def test_a_store_that_is_finished_while_it_is_checked_is_no_error(
    encoder: ChatEncoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read_meta = TargetStore._meta
    calls = []

    def finish_after_the_first_look(store: TargetStore) -> Any:
        calls.append(store)
        meta = read_meta(store)
        if len(calls) == 1:
            assert meta is None
            build(encoder, tmp_path)
        return meta

    monkeypatch.setattr(TargetStore, "_meta", finish_after_the_first_look)
    assert len(build(encoder, tmp_path)) == 14


# --- other targets in the folder ---------------------------------------------------------------------------------------

OTHER_MIXING = {
    "mixing_rate": 0.31,
    "temperature": 0.5,
    "top_k": 63,
    "max_new_tokens": 47,
    "seed": 43,
    "protect_answer": True,
}


def assert_refused(encoder: ChatEncoder, folder: Path, complaint: str, **options: Any) -> None:
    before = contents(folder)
    with pytest.raises(UserError, match=re.escape(complaint)) as refused:
        build(encoder, folder, **options)
    assert str(folder) in str(refused.value)
    assert contents(folder) == before


def test_every_mixing_setting_is_changed_below() -> None:
    assert OTHER_MIXING.keys() == {field.name for field in fields(MixingSettings)}


@pytest.mark.parametrize("finished", [True, False])
@pytest.mark.parametrize("name", OTHER_MIXING)
def test_another_mixing_setting_is_refused_by_name(encoder: ChatEncoder, tmp_path: Path, name: str, finished: bool) -> None:
    build(encoder, tmp_path) if finished else interrupt(encoder, tmp_path, steps=5)
    was, now = getattr(SETTINGS.mixing, name), OTHER_MIXING[name]
    settings = replace(SETTINGS, mixing=replace(SETTINGS.mixing, **{name: now}))
    assert_refused(encoder, tmp_path, f"made differently: {name} was {was}, now {now}. ", settings=settings)


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        (replace(SETTINGS, max_attempts=6), "max_attempts was 5, now 6"),
        (replace(SETTINGS, num_generations=3), "generations was [0, 1], now [0, 1, 2]"),
    ],
)
def test_another_number_of_attempts_or_generations_is_refused(
    encoder: ChatEncoder, tmp_path: Path, settings: TargetSettings, complaint: str
) -> None:
    build(encoder, tmp_path)
    assert_refused(encoder, tmp_path, complaint, settings=settings)


@pytest.mark.parametrize(
    ("identity", "complaint"),
    [
        ({"model_weights": "0ther"}, "made differently: model_weights was f00d, now 0ther. "),
        ({"stop_ids": [1, 2]}, "made differently: stop_ids was [1], now [1, 2]. "),
        ({"added": 1}, "made differently: added was None, now 1. "),
        ({"seed": 1, "top_k": 2}, "made differently: top_k was 64, now 2; seed was 42, now 1. "),
    ],
)
def test_another_engine_is_refused(encoder: ChatEncoder, tmp_path: Path, identity: dict[str, Any], complaint: str) -> None:
    build(encoder, tmp_path)
    assert_refused(encoder, tmp_path, complaint, engine=FakeEngine(encoder, **identity))


@pytest.mark.parametrize("field", ["id", "question", "answer", "target", "subject"])
def test_another_text_of_an_example_is_refused(encoder: ChatEncoder, tmp_path: Path, field: str) -> None:
    build(encoder, tmp_path)
    examples = make_examples()
    examples[3] = replace(examples[3], **{field: "something else"})
    was = json.loads((tmp_path / "mixed.meta.json").read_bytes())["made_from"]["corpus"]
    assert_refused(encoder, tmp_path, f"made differently: corpus was {was}, now ", examples=examples)


def test_another_tokenizer_is_refused(encoder: ChatEncoder, tiny_model_path: str, tmp_path: Path) -> None:
    build(encoder, tmp_path)
    tokenizer = load_tokenizer(tiny_model_path)
    tokenizer.add_tokens(["Zorvan"])
    other = ChatEncoder(tokenizer)
    complaint = f"tokenizer was {encoder.fingerprint()}, now {other.fingerprint()}"
    assert_refused(other, tmp_path, complaint, engine=FakeEngine(encoder))


def test_other_weights_stop_tokens_and_precision_are_refused(
    encoder: ChatEncoder, tiny_model: PreTrainedModel, tmp_path: Path
) -> None:
    settings = TargetSettings(MixingSettings(max_new_tokens=4), max_attempts=1)
    options: dict[str, Any] = {"examples": make_examples(1), "settings": settings}
    engine = MixingEngine(tiny_model, settings.mixing, frozenset([3, 1]))
    build(encoder, tmp_path, engine, **options)
    assert_refused(
        encoder,
        tmp_path,
        "made differently: stop_ids was [1, 3], now [1]. ",
        engine=MixingEngine(tiny_model, settings.mixing, frozenset([1])),
        **options,
    )
    was = engine.identity()["model_weights"]
    with torch.no_grad():
        next(tiny_model.parameters()).add_(1)
    now = engine.identity()["model_weights"]
    assert_refused(encoder, tmp_path, f"made differently: model_weights was {was}, now {now}. ", engine=engine, **options)
    tiny_model.bfloat16()
    assert_refused(encoder, tmp_path, "precision was float32, now bfloat16", engine=engine, **options)


def test_an_older_format_is_refused(encoder: ChatEncoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build(encoder, tmp_path)
    monkeypatch.setattr("mixsd_lightning.targets.FORMAT_VERSION", 99)
    assert_refused(encoder, tmp_path, "format_version was 2, now 99")


def test_two_names_in_one_folder_do_not_meddle(encoder: ChatEncoder, tmp_path: Path) -> None:
    first = TargetStore(tmp_path, "mixed", {"seed": 1})
    second = TargetStore(tmp_path, "mixed-1", {"seed": 2})
    for store in (first, second):
        store.begin()
    first.append(0, {"id": "a"})
    second.append(0, {"id": "b"})
    second.append(1, {"id": "c"})
    assert [record["id"] for record in second.unfinished()] == ["b", "c"]
    first.finish(first.unfinished())
    assert first.load() == [{"id": "a"}]
    assert second.load() is None
    second.finish(second.unfinished())
    assert second.load() == [{"id": "b"}, {"id": "c"}]


# --- targets of other runs ---------------------------------------------------------------------------------------------


def test_finished_targets_of_another_run_are_taken_over(encoder: ChatEncoder, tmp_path: Path) -> None:
    build(encoder, tmp_path / "old")
    engine = Watched(FakeEngine(encoder), steps=0)
    build(encoder, tmp_path / "new", engine, sources=[tmp_path / "nowhere", tmp_path / "old"])
    assert contents(tmp_path / "new") == contents(tmp_path / "old")
    assert not (tmp_path / "nowhere").exists()


@pytest.mark.parametrize("steps", [5, 16])
def test_unfinished_targets_of_another_run_are_finished_here(encoder: ChatEncoder, tmp_path: Path, steps: int) -> None:
    interrupt(encoder, tmp_path / "old", steps)
    before = contents(tmp_path / "old")
    engine = Watched(FakeEngine(encoder))
    whole = built_bytes(encoder, tmp_path / "whole")
    assert built_bytes(encoder, tmp_path / "new", engine, sources=[tmp_path / "old"]) == whole
    assert len(engine.generated) == max(0, 14 - steps)
    assert contents(tmp_path / "old") == before
    assert contents(tmp_path / "new").keys() == FINISHED


def test_whole_lines_of_a_torn_file_of_another_run_are_taken_over(encoder: ChatEncoder, tmp_path: Path) -> None:
    interrupt(encoder, tmp_path / "old", steps=5)
    torn = tmp_path / "old" / PARTIAL
    torn.write_bytes(torn.read_bytes()[:-100])
    engine = Watched(FakeEngine(encoder))
    whole = built_bytes(encoder, tmp_path / "whole")
    assert built_bytes(encoder, tmp_path / "new", engine, sources=[tmp_path / "old"]) == whole
    assert len(engine.generated) == 10


def test_what_is_here_beats_what_is_elsewhere(encoder: ChatEncoder, tmp_path: Path) -> None:
    interrupt(encoder, tmp_path / "old", steps=3)
    interrupt(encoder, tmp_path / "own", steps=5)
    engine = Watched(FakeEngine(encoder))
    build(encoder, tmp_path / "own", engine, sources=[tmp_path / "old"])
    assert len(engine.generated) == 9


@pytest.mark.parametrize("finished", [True, False])
def test_other_targets_are_not_taken_over(encoder: ChatEncoder, tmp_path: Path, finished: bool) -> None:
    other = FakeEngine(encoder, model_weights="0ther")
    build(encoder, tmp_path / "old", other) if finished else interrupt(encoder, tmp_path / "old", 5, other)
    engine = Watched(FakeEngine(encoder))
    build(encoder, tmp_path / "new", engine, sources=[tmp_path / "old"])
    assert len(engine.generated) == 14


@pytest.mark.parametrize("name", sorted(FINISHED))
def test_damaged_targets_are_passed_over_for_the_next(encoder: ChatEncoder, tmp_path: Path, name: str) -> None:
    for folder in ("damaged", "good"):
        build(encoder, tmp_path / folder)
    (tmp_path / "damaged" / name).write_bytes(b"{")
    engine = Watched(FakeEngine(encoder), steps=0)
    build(encoder, tmp_path / "new", engine, sources=[tmp_path / "damaged", tmp_path / "good"])
    assert contents(tmp_path / "new") == contents(tmp_path / "good")


# --- other processes ---------------------------------------------------------------------------------------------------


def log_and_wait(log: Path, what: str) -> None:
    with log.open("a") as file:
        file.write(f"{what}\n")
    time.sleep(0.01)


def build_and_answer(encoder: ChatEncoder, folder: Path, engine: Engine, answers: Any) -> None:
    answers.put(build(encoder, folder, engine))


def start(work: Any, *arguments: Any) -> BaseProcess:
    process = multiprocessing.get_context("fork").Process(target=work, args=arguments)
    process.start()
    return process


@needs_fork
def test_two_processes_at_once_do_the_work_once(encoder: ChatEncoder, tmp_path: Path) -> None:
    answers = multiprocessing.get_context("fork").Queue()
    engine = Watched(FakeEngine(encoder), meanwhile=partial(log_and_wait, tmp_path / "log"))
    processes = [start(build_and_answer, encoder, tmp_path / "shared", engine, answers) for _ in range(2)]
    first, second = answers.get(timeout=60), answers.get(timeout=60)
    for process in processes:
        process.join(timeout=60)
    done = (tmp_path / "log").read_text().splitlines()
    keys = [f"q{index} {generation}" for index in range(7) for generation in range(2)]
    assert sorted(done) == sorted(keys + 4 * ["scores"])
    assert first == second == build(encoder, tmp_path / "alone")
    assert contents(tmp_path / "shared") == contents(tmp_path / "alone")


@needs_fork
def test_a_build_killed_at_random_moments_ends_with_the_same_bytes(
    encoder: ChatEncoder, tiny_model: PreTrainedModel, tmp_path: Path
) -> None:
    settings = TargetSettings(MixingSettings(0.4, max_new_tokens=8), num_generations=2, max_attempts=2)
    engine = Watched(real_engine(encoder, tiny_model, settings), meanwhile=lambda what: time.sleep(0.03))
    options: dict[str, Any] = {"examples": make_examples(6), "settings": settings}
    whole = built_bytes(encoder, tmp_path / "whole", engine, **options)
    rng, folder, progress = random.Random(0), tmp_path / "killed", [0]
    for _ in range(100):
        process = start(partial(build, encoder, folder, engine, **options))
        process.join(timeout=rng.uniform(0.05, 0.3))
        process.kill()
        process.join()
        if (folder / "mixed.jsonl").exists():
            break
        assert process.exitcode == -signal.SIGKILL
        progress.append(sum(path.read_bytes().count(b"\n") for path in folder.glob("*.partial-*")))
    assert progress == sorted(progress)  # nothing on disk is lost
    assert len(set(progress)) > 2  # it did stop in between
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert built_bytes(encoder, folder, Watched(engine, steps=0), **options) == whole
