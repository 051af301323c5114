"""Settings of others: read as plain values or refused in words, whatever they are and whoever reads them."""

import copy
import json
import string
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from fuzz_cases import CLEAN_TEXTS, TEXTS, VALUES, cases, mutated
from hypothesis import example, given
from hypothesis import strategies as st

from mixsd_lightning.cli import explain
from mixsd_lightning.data import CorpusDataModule
from mixsd_lightning.errors import UserError
from mixsd_lightning.model_card import model_card
from mixsd_lightning.report.collect import find_runs
from mixsd_lightning.report.settings import group
from mixsd_lightning.trained import read_settings, read_trained, rebuild_corpus
from mixsd_lightning.untrusted import DEEPEST, is_too_deep, parse_json, plain_values, read_yaml

GOOD: dict[str, Any] = {
    "seed_everything": 1,
    "trainer": {"max_epochs": 2, "precision": "32-true", "callbacks": [{"class_path": "ModelCheckpoint"}], "logger": None},
    "model": {
        "class_path": "mixsd_lightning.MixSD",
        "init_args": {"model_name_or_path": "a/b", "mixing_rate": 0.3, "lora_rank": 0},
    },
    "data": {
        "class_path": "mixsd_lightning.KGFact",
        "init_args": {"num_domains": 2, "num_entities": 2, "eval_splits": ["train"], "seed": 1, "batch_size": 4},
    },
    "retention": {"suites": ["probe"]},
    "drift": {"num_sequences": 4},
}
LINES = '{"step": 0, "memorization/train": 0.0, "memorization/train_count": 4}\n{"step": 2, "memorization/train": 1.0, "memorization/train_count": 4}\n'  # fmt: skip
YAML_PIECES = ["a", ": ", "\n", "  ", "- ", "[", "]", "{", "}", ",", "&a ", "*a", "!!set ", "!!python/name:os.system ", "!!binary ", "? ",
               "|\n", ">\n", "'", '"', "#", "---\n", "...\n", "2020-01-02", "0x_", "1:60", "~", "<<: ", "%YAML 9.9\n", "\t", "é", "\x00",
               "1e9", "=", "!", "@", "`", "0b", "1_0", "!!timestamp ", "!!int ", "!!float ", "!!omap ", "!!pairs "]  # fmt: skip
PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**9), 10**9) | st.floats(allow_nan=False) | CLEAN_TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(CLEAN_TEXTS, inner, max_size=3),
    max_leaves=6,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("configs")
    (path / "run").mkdir()
    (path / "run/metrics.jsonl").write_text(LINES)
    return path


@st.composite
def settings_of_others(draw: st.DrawFn) -> Any:
    return mutated(draw, copy.deepcopy(GOOD), draw(st.integers(1, 3)))


@cases(300)
@given(
    st.lists(st.sampled_from(YAML_PIECES), max_size=10).map("".join)
    | st.text(max_size=10).map(lambda t: t.encode(errors="ignore").decode())
)
@example("!!int ")
@example("!!float ")
def test_any_yaml_is_plain_values_or_an_error_in_words(folder: Path, text: str) -> None:
    path = folder / "any.yaml"
    path.write_text(text, encoding="utf-8", newline="")
    try:
        value = read_yaml(path)
    except UserError as error:
        assert f"{path} cannot be read" in str(error)
        return
    assert not is_too_deep(value)
    assert text_of(plain_values(value)) == text_of(value)
    path.write_text(yaml.safe_dump(value), encoding="utf-8")
    assert text_of(read_yaml(path)) == text_of(value)


def text_of(value: Any) -> str:
    return json.dumps(value)


@cases(200)
@given(PLAIN)
def test_values_that_are_written_are_read(folder: Path, value: Any) -> None:
    path = folder / "written.yaml"
    path.write_text(yaml.safe_dump(value), encoding="utf-8")
    assert read_yaml(path) == value == plain_values(value) == parse_json(json.dumps(value))


@cases(250)
@given(st.integers(0, 3 * DEEPEST), st.sampled_from(["[", "{", "mixed"]), TEXTS)
def test_depth_is_counted_as_brackets_are(depth: int, kind: str, text: str) -> None:
    value: Any = text
    for level in range(depth):
        value = [value, 1] if kind == "[" or (kind == "mixed" and level % 2) else {"a": value}
    assert is_too_deep(value) == (depth > DEEPEST)
    try:
        assert parse_json(json.dumps(value)) == value
    except ValueError:
        assert depth > DEEPEST


@cases(350)
@given(settings_of_others())
def test_settings_that_were_edited_are_used_or_refused_in_words(folder: Path, settings: Any) -> None:
    path = folder / "run/config.yaml"
    try:
        path.write_text(yaml.safe_dump(settings), encoding="utf-8")
    except ValueError:  # a number of more digits than Python writes
        path.write_text(json.dumps(GOOD))
    found = [read_or_refuse(lambda: read_settings(path)), read_or_refuse(lambda: group(find_runs([folder / "run"])[0]))]
    if isinstance(found[0], dict):
        assert isinstance(found[0]["model"]["class_path"], str)
        card = read_or_refuse(lambda: model_card("mine", known(found[0]), "float32", None))
        assert card is not None
        corpus = read_or_refuse(lambda: rebuild_corpus(found[0]))
        assert corpus is None or isinstance(corpus, CorpusDataModule)


def known(settings: dict[str, Any]) -> dict[str, Any]:
    settings = copy.deepcopy(settings)
    settings["model"]["init_args"].setdefault("model_name_or_path", "a/b")
    return settings


def read_or_refuse(read: Any) -> Any:
    """What is read; ``None`` where it is refused."""
    try:
        return read()
    except UserError as error:
        assert str(error).strip() and "\n" not in str(error)
        return None


@cases(150)
@given(st.data())
def test_a_checkpoint_that_was_changed_is_read_or_refused_in_words(folder: Path, data: st.DataObject) -> None:
    weights = {"student.a": torch.zeros(2)}
    checkpoint: Any = {
        "state_dict": weights,
        "global_step": 2,
        "hyper_parameters": dict(GOOD["model"]["init_args"]),
        "datamodule_hyper_parameters": {**GOOD["data"]["init_args"], "_class_path": "mixsd_lightning.KGFact"},
    }
    key = data.draw(st.sampled_from(sorted(checkpoint)))
    if data.draw(st.booleans()):
        checkpoint[key] = data.draw(VALUES) if key == "state_dict" else mutated(data.draw, checkpoint[key])
    path = folder / "a.ckpt"
    torch.save(checkpoint, path)
    if data.draw(st.booleans()):
        content = bytearray(path.read_bytes())
        place = data.draw(st.integers(0, len(content) - 1))
        content[place : place + data.draw(st.integers(0, 9))] = data.draw(st.binary(max_size=9))
        path.write_bytes(content)
    found = read_or_refuse(lambda: read_trained(path))
    if found is not None:
        assert all(isinstance(tensor, torch.Tensor) for tensor in found.weights.values())
        assert isinstance(found.model_options["model_name_or_path"], str)
        json.dumps(found.settings)


@cases(250)
@given(st.sampled_from(["", 'Parser key "model": ', "unrecognized arguments: --", "Option 'x", 'Parser key "data.init_args.seed": '])
       .flatmap(lambda start: TEXTS.map(lambda text: start + text)))  # fmt: skip
def test_any_complaint_of_the_parser_becomes_one_line(message: str) -> None:
    line = explain(message)
    assert "\n" not in line and len(line.split()) > 2
    assert any(letter in string.ascii_letters for letter in line)
