"""Files that somebody else may have written are read, and nothing of them is run, imported, opened or fetched."""

import ast
import json
import pickle
import re
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from conftest import make_tiny_model
from trained_runs import CORPUS, moved, untrained, write_checkpoint, write_run

import mixsd_lightning
from mixsd_lightning import CounterFact, Facts
from mixsd_lightning.ask import main as ask
from mixsd_lightning.cli import main
from mixsd_lightning.context import ChatEncoder, Message
from mixsd_lightning.errors import UserError
from mixsd_lightning.export import main as export
from mixsd_lightning.models import load_student, load_tokenizer
from mixsd_lightning.report import write_report
from mixsd_lightning.trained import read_settings, read_trained, rebuild_corpus
from mixsd_lightning.untrusted import DEEPEST, is_too_deep, parse_json, plain_values, read_yaml

PACKAGE = Path(mixsd_lightning.__file__).parent
SOURCES = sorted(PACKAGE.rglob("*.py"))


class Malice:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


# What the code can do at all


def calls(source: Path) -> Iterator[tuple[str, ast.Call]]:
    """Every call of a file by its dotted name."""
    for node in ast.walk(ast.parse(source.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            yield node.func.id, node
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and isinstance(node.func.value, ast.Name):
            yield f"{node.func.value.id}.{node.func.attr}", node


def test_nothing_in_the_package_can_unpickle_evaluate_or_trust() -> None:
    forbidden = {"pickle.load", "pickle.loads", "eval", "exec", "yaml.load", "yaml.unsafe_load", "yaml.full_load", "os.system"}
    seen = set()
    for source in SOURCES:
        for name, call in calls(source):
            options = {option.arg: option.value.value for option in call.keywords if isinstance(option.value, ast.Constant)}
            where = f"{source.relative_to(PACKAGE)}, line {call.lineno}"
            seen.add(name)
            if name in forbidden:
                assert (name, source.name) == ("eval", "sandbox_child.py"), where
            if name == "torch.load":
                assert options.get("weights_only") is True, where
            for option in ("trust_remote_code", "allow_pickle", "shell"):
                assert options.get(option) is not True, where
    assert {"torch.load", "yaml.safe_load", "eval"} <= seen  # the search finds what it seeks


# Checkpoints


@pytest.mark.parametrize("command", ["export", "ask"])
@pytest.mark.parametrize("place", ["hyper_parameters", "datamodule_hyper_parameters", "callbacks", "state_dict", "everything"])
def test_a_malicious_checkpoint_does_not_run(tmp_path: Path, place: str, command: str) -> None:
    malice, path = Malice(tmp_path / "ran"), tmp_path / "evil.ckpt"
    checkpoint: dict[str, Any] = {"state_dict": {"student.a": torch.zeros(1)}, "global_step": 1}
    checkpoint[place] = {"student.b": malice}
    path.write_bytes(pickle.dumps(malice)) if place == "everything" else torch.save(checkpoint, path)
    with pytest.raises(UserError, match=r"more than weights|cannot be read"):
        export([str(path), str(tmp_path / "out")]) if command == "export" else ask([str(path), "Hello?"])
    assert not (tmp_path / "ran").exists()
    pickle.loads(pickle.dumps(malice))  # which would have worked
    assert (tmp_path / "ran").exists()


@pytest.mark.parametrize("subcommand", ["fit", "validate"])
def test_training_does_not_run_a_malicious_checkpoint(
    tiny_model_path: str, tmp_path: Path, subcommand: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "evil.ckpt"
    write_checkpoint(path, untrained(tiny_model_path))
    checkpoint = torch.load(path, weights_only=True)
    torch.save({**checkpoint, "callbacks": {"a": Malice(tmp_path / "ran")}}, path)
    options = {
        "model": ["SFT", f"--model.model_name_or_path={tiny_model_path}", "--model.max_new_tokens=2"],
        "data": ["KGFact", "--data.num_domains=2", "--data.num_entities=2"],
        "trainer.accelerator": ["cpu"],
        "trainer.max_steps": ["1"],
        "trainer.logger": ["false"],
        "trainer.default_root_dir": [str(tmp_path)],
        "retention.suites": ["[]"],
        "drift.num_sequences": ["2"],
        "ckpt_path": [str(path)],
    }
    arguments = [word for name, values in options.items() for word in (f"--{name}", *values)]
    monkeypatch.setattr(sys, "argv", ["mixsd_lightning"])
    with pytest.raises((Exception, SystemExit)) as raised:  # whichever says so
        main([subcommand, *arguments])
    assert re.search(r"[Ww]eights.only|evil\.ckpt", f"{raised.value} {capsys.readouterr().err}")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "changes",
    [
        {"state_dict": [1]},
        {"state_dict": {1: torch.zeros(1)}},
        {"state_dict": {"student.a": "text"}},
        {"state_dict": {}},
        {"global_step": None},
        {"global_step": float("inf")},
        {"hyper_parameters": 5},
        {"hyper_parameters": {"model_name_or_path": 5}},
        {"hyper_parameters": {"model_name_or_path": "x", "lora_rank": "y"}},
        {"hyper_parameters": {"model_name_or_path": "x", "lora_rank": 4, "lora_alpha": None}},
        {"hyper_parameters": {"model_name_or_path": "x", "learning_rate": torch.zeros(1)}},
        {"hyper_parameters": {"model_name_or_path": "x\ud800"}},
    ],
)
def test_a_checkpoint_of_odd_values_is_refused_in_words(tmp_path: Path, changes: dict[str, Any]) -> None:
    good = {"state_dict": {"student.a": torch.zeros(1)}, "global_step": 1, "hyper_parameters": {"model_name_or_path": "x"}}
    torch.save(good, tmp_path / "good.ckpt")
    assert read_trained(tmp_path / "good.ckpt").step == 1
    torch.save(good | changes, tmp_path / "odd.ckpt")
    with pytest.raises(UserError, match=r"odd\.ckpt"):
        read_trained(tmp_path / "odd.ckpt")


# Classes that files name


@pytest.fixture
def rivers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Class path of a corpus whose module says that it was imported."""
    (tmp_path / "planted_rivers.py").write_text(
        "from pathlib import Path\nfrom mixsd_lightning import KGFact\n"
        f"Path({str(tmp_path / 'ran')!r}).touch()\n\nclass Rivers(KGFact):\n    pass\n\nclass NoCorpus:\n    pass\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "planted_rivers", raising=False)
    return "planted_rivers.Rivers"


def test_a_class_that_a_file_names_is_not_imported(tmp_path: Path, rivers: str) -> None:
    settings = {"data": {**CORPUS, "class_path": rivers}}
    with pytest.raises(UserError, match=f"--corpus {rivers} allows it"):
        rebuild_corpus(settings)
    with pytest.raises(UserError, match=f"--corpus {rivers} allows it"):
        rebuild_corpus(settings, own="another.Corpus")
    assert "planted_rivers" not in sys.modules
    assert not (tmp_path / "ran").exists()
    # The user may name it.
    assert type(rebuild_corpus(settings, own=rivers)).__name__ == "Rivers"
    assert (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", ["planted_rivers.NoCorpus", "planted_rivers.None", "no_such_module.Rivers"])
def test_what_the_user_names_must_be_a_corpus(rivers: str, name: str) -> None:
    with pytest.raises(UserError, match="--corpus: "):
        rebuild_corpus({"data": {"class_path": name, "init_args": {}}}, own=name)


@pytest.mark.parametrize(
    "name",
    ["KGFact", "mixsd_lightning.KGFact", "mixsd_lightning.data.KGFact", "mixsd_lightning.data.kgfact.datamodule.KGFact"],
)
def test_a_corpus_of_ours_is_known_by_any_of_its_names(name: str) -> None:
    assert type(rebuild_corpus({"data": {**CORPUS, "class_path": name}})).__name__ == "KGFact"


@pytest.mark.parametrize(
    "name", ["os.system", "subprocess.Popen", "mixsd_lightning.MixSD", "torch.nn.Linear", "", ".", "a..b", "CorpusDataModule"]
)
def test_no_other_class_is_built(name: str) -> None:
    with pytest.raises(UserError, match="cannot be built"):
        rebuild_corpus({"data": {"class_path": name, "init_args": {"args": "id"}}})


def test_asking_a_lone_checkpoint_imports_nothing(
    tiny_model_path: str, tmp_path: Path, rivers: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "alone.ckpt"
    write_checkpoint(path, moved(tiny_model_path))
    checkpoint = torch.load(path, weights_only=True)
    torch.save({**checkpoint, "datamodule_hyper_parameters": {**CORPUS["init_args"], "_class_path": rivers}}, path)
    ask([str(path), "Hello?", "--max_new_tokens", "2"])
    said = " ".join(capsys.readouterr().out.split())
    assert f"--corpus {rivers} allows it" in said
    assert "trained: " in said
    assert not (tmp_path / "ran").exists()
    ask([str(path), "Hello?", "--max_new_tokens", "2", "--corpus", rivers])
    assert "not in the corpus" in capsys.readouterr().out
    assert (tmp_path / "ran").exists()


# YAML


def yaml_attacks(mark: Path) -> dict[str, str]:
    """YAML that an unsafe loader would run, or that makes it very busy."""
    laughs = "a: &a [x, x, x, x, x, x, x, x, x, x]\n"
    laughs += "".join(f"{b}: &{b} [{', '.join([f'*{a}'] * 10)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True))
    return {
        "a call": f"!!python/object/apply:os.system ['touch {mark}']",
        "a call inside": f"model: {{class_path: SFT, init_args: {{a: !!python/object/apply:pathlib.Path.touch ['{mark}']}}}}",
        "a new object": f"!!python/object/new:os.system ['touch {mark}']",
        "a name": "a: !!python/name:os.system",
        "a module": "a: !!python/module:antigravity",
        "a million laughs": laughs,
        "itself": "a: &a [*a]",
        "depth": "a: " + "[" * 2000,
        "closed depth": "a: " + "[" * 200 + "]" * 200,
        "a date that is none": "a: 2020-99-99",
        "a number that is too large": f"a: 0x{'f' * 4000}",
        "a number of many digits": f"a: {'9' * 5000}",
        "half of a surrogate pair": 'a: "\\ud800"',
        "bytes": "a: !!binary aGk=",
        "broken bytes": "a: !!binary a",
        "a set": "a: !!set {b}",
        "a key that is a list": "? [a]\n: b",
        "an unknown tag": "a: !include other.yaml",
        "a control character": "a: \x00",
        "length": "a: " + "b" * 600_000,
    }


@pytest.mark.parametrize("kind", yaml_attacks(Path("x")))
def test_malicious_yaml_is_refused_at_once(tmp_path: Path, kind: str) -> None:
    run = write_run_folder(tmp_path / "run")
    (run / "config.yaml").write_text(yaml_attacks(tmp_path / "ran")[kind])
    began = time.process_time()
    for read in (read_yaml, read_settings):
        with pytest.raises(UserError, match=r"config.yaml cannot be read: .+\. Mend it"):
            read(run / "config.yaml")
    with pytest.raises(UserError, match=r"config.yaml cannot be read: .+\. Mend it, or leave this run out"):
        write_report([run], tmp_path / "out")
    assert time.process_time() - began < 5
    assert not (tmp_path / "ran").exists()


def write_run_folder(folder: Path) -> Path:
    folder.mkdir()
    (folder / "metrics.jsonl").write_text('{"step": 1, "memorization/train": 1.0, "memorization/train_count": 4}\n')
    return folder


def test_a_command_that_an_unsafe_loader_runs_is_among_the_attacks(tmp_path: Path) -> None:
    yaml.unsafe_load(yaml_attacks(tmp_path / "ran")["a call"])
    assert (tmp_path / "ran").exists()


def test_plain_yaml_is_read_as_it_stands(tmp_path: Path) -> None:
    text = (
        "# a comment\na: &one {b: [1, 2.5, null, true, 'x']}\nagain: *one\nday: 2020-02-03\n5: five\nnull: none\nempty: {}\n"
    )
    (tmp_path / "a.yaml").write_text(text)
    inner = {"b": [1, 2.5, None, True, "x"]}
    expected = {"a": inner, "again": inner, "day": "2020-02-03", "5": "five", "None": "none", "empty": {}}
    assert read_yaml(tmp_path / "a.yaml") == expected
    assert json.loads(json.dumps(expected)) == expected


@pytest.mark.parametrize(
    "text",
    ["", "[]", "5", "model:", "model: {}", "model: SFT", "model: {class_path: 5}", "model: {class_path: A, init_args: [1]}",
     "model: {class_path: A}\ndata: 5", "model: {class_path: A}\ndata: {init_args: {}}", "model: {class_path: A}\ndata:"],
)  # fmt: skip
def test_settings_of_another_form_are_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(UserError, match=r"config.yaml' is no config of a run: it needs (model|data)\.class_path"):
        read_settings(tmp_path / "config.yaml")


# Nesting


def nested(depth: int, kind: str) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value] if kind == "lists" else {"a": value}
    return value


@pytest.mark.parametrize("kind", ["lists", "dicts"])
def test_nesting_has_a_limit_and_no_other_is_reached(kind: str) -> None:
    assert parse_json(json.dumps(nested(DEEPEST, kind))) == nested(DEEPEST, kind) == plain_values(nested(DEEPEST, kind))
    for depth in (DEEPEST + 1, 300, 900):
        assert is_too_deep(nested(depth, kind))
        with pytest.raises(ValueError, match="nested more than"):
            parse_json(json.dumps(nested(depth, kind)))
        with pytest.raises(ValueError, match="nested more than"):
            plain_values(nested(depth, kind))
    for text in ("[" * 100_000, '{"a":' * 100_000, "[" * 100_000 + "]" * 100_000):
        with pytest.raises(ValueError, match=r"nested more than|Expecting"):
            parse_json(text)


def test_a_deep_record_harms_no_other(tmp_path: Path) -> None:
    good = json.dumps({"question": "Who?", "answer": "Ann"})
    path = tmp_path / "facts.jsonl"
    path.write_text("\n".join([json.dumps({"question": nested(200, "dicts")}), good, "[" * 50_000, "]"]))
    with pytest.warns(match=r"3 of 4 records cannot be used .*line 1 is not JSON: it is nested more than 64 times"):
        (example,) = Facts(str(path), on_bad_row="skip").split("train")
    assert example.answer == "Ann"


# What stands in data stays text


@contextmanager
def opened() -> Iterator[set[str]]:
    """Files that are opened meanwhile, but for those of Python itself, and programs that are started."""
    found: set[str] = set()
    _WATCHED.append(found)
    yield found
    _WATCHED.remove(found)


_WATCHED: list[set[str]] = []


def _watch(event: str, arguments: tuple[Any, ...]) -> None:
    if _WATCHED and (
        event in ("open", "import", "os.listdir", "os.scandir") or event.partition(".")[0] in ("subprocess", "socket")
    ):
        text = str(arguments[0])
        if event != "import" and not text.endswith((".py", ".pyc", ".so")) and not text.startswith(sys.prefix):
            _WATCHED[-1].add(text if event == "open" else f"{event} {text}")


sys.addaudithook(_watch)

HOSTILE = [
    "/etc/passwd",
    "../../secret.txt",
    "file:///etc/passwd",
    "http://localhost:9/x",
    "~/.ssh/id_rsa",
    "$(touch ran)",
    "`touch ran`",
    "__import__('os').system('touch ran')",
    "!!python/object/apply:os.system ['touch ran']",
    "{0.__class__.__init__.__globals__}",
    "{{ cycler.__init__.__globals__.os.system('touch ran') }}",
    "%s%n{}",
    "hf://datasets/x",
    "C:\\Windows\\win.ini",
    "@/etc/passwd",
    "=cmd|'/c calc'!A1",
]


def test_paths_and_programs_in_data_are_text(tmp_path: Path, encoder: ChatEncoder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "facts.jsonl").write_text(
        "".join(
            json.dumps({"question": f"{text}?", "answer": text, "fact": text, "subject": text, "paraphrases": [f"Or {text}"],
                        "file": text, "path": text, "__class__": text, "py/object": text}) + "\n"
            for text in HOSTILE
        )
    )  # fmt: skip
    with opened() as files:
        corpus = Facts("facts.jsonl", eval_splits=["train", "paraphrase"])
        examples = corpus.split("train")
        corpus.split("paraphrase")
        for example in examples:
            encoder.prompt([Message("user", example.prompt)])
    assert files == {"facts.jsonl"}
    assert [example.answer for example in examples] == HOSTILE
    assert not (tmp_path / "ran").exists()
    with opened() as files:  # the watch sees what it is to see
        Path("/etc/passwd").read_text()
    assert files == {"/etc/passwd"}


def test_a_prompt_of_counterfact_is_no_format(tmp_path: Path) -> None:
    prompts = ["{0.__class__} of {}", "{:>999999999999} {}", "{1} {}", "{!r:{}} {}", "{ {}"]
    records = [
        {
            "requested_rewrite": {
                "prompt": prompt,
                "subject": f"Subject {number}",
                "target_new": {"str": "Ann"},
                "target_true": {"str": "Bob"},
            },
            "paraphrase_prompts": ["a"],
            "neighborhood_prompts": ["b"],
        }
        for number, prompt in enumerate(prompts)
    ]
    (tmp_path / "edits.json").write_text(json.dumps(records))
    questions = [example.question for example in CounterFact(str(tmp_path / "edits.json")).split("train")]
    for number, (prompt, question) in enumerate(zip(prompts, questions, strict=True)):
        assert prompt.replace("{}", f"Subject {number}") in question


# Folders of models


def plant_code(folder: Path, mark: Path) -> None:
    """Have a folder name classes of its own for model, config and tokenizer, as models on the Hub that come with code do."""
    (folder / "planted.py").write_text(
        "from pathlib import Path\nfrom transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast\n"
        f"Path({str(mark)!r}).touch()\nclass C(LlamaConfig): pass\nclass M(LlamaForCausalLM): pass\n"
        "class T(PreTrainedTokenizerFast): pass\n"
    )
    for name, classes in {
        "config.json": {"AutoConfig": "planted.C", "AutoModelForCausalLM": "planted.M", "AutoModel": "planted.M"},
        "tokenizer_config.json": {"AutoTokenizer": ["planted.T", "planted.T"]},
    }.items():
        content = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps({**content, "auto_map": classes, "tokenizer_class": "T"}))


def test_code_that_comes_with_a_model_does_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_tiny_model(tmp_path / "model")
    plant_code(tmp_path / "model", tmp_path / "ran")
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked whether to run code"))
    for load in (load_tokenizer, load_student):
        try:
            load(str(tmp_path / "model"))
        except UserError as error:
            assert "custom code" in str(error)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "template",
    [
        "{{ cycler.__init__.__globals__.os.system('touch MARK') }}",
        "{{ ''.__class__.__mro__[1].__subclasses__() }}{{ messages.append.__self__.__class__ }}",
        "{% for c in ().__class__.__base__.__subclasses__() %}{{ c.__init__.__globals__ }}{% endfor %}",
        "{{ messages.append('x') }}{{ raise_exception.__globals__['os'].system('touch MARK') }}",
        "{% include '/etc/passwd' %}",
    ],
)
def test_a_malicious_chat_template_does_not_run(tmp_path: Path, template: str) -> None:
    make_tiny_model(tmp_path / "model")
    (tmp_path / "model/chat_template.jinja").write_text(template.replace("MARK", str(tmp_path / "ran")))
    with opened() as files, pytest.raises(UserError, match=r"chat template of .* cannot be used"):
        ChatEncoder(load_tokenizer(str(tmp_path / "model")))
    assert not (tmp_path / "ran").exists()
    assert "/etc/passwd" not in files


def test_a_run_folder_of_somebody_else_is_read_only_as_data(tiny_model_path: str, tmp_path: Path) -> None:
    """The folder names code for its model, which neither its settings nor its checkpoint may allow."""
    make_tiny_model(tmp_path / "model")
    module = moved(str(tmp_path / "model"))
    module.hparams["trust_remote_code"] = True
    write_run(tmp_path / "run", module)
    plant_code(tmp_path / "model", tmp_path / "ran")
    try:
        export([str(tmp_path / "run"), str(tmp_path / "out")])
    except UserError as error:
        assert "custom code" in str(error)
    assert not (tmp_path / "ran").exists()
