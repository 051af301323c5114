"""Base and trained model answer side by side, and their answers are judged."""

import io
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import yaml
from rich.console import Console
from trained_runs import moved, write_run
from transformers import PreTrainedModel

from mixsd_lightning import KGFact
from mixsd_lightning.ask import Speaker, answer_side_by_side, load_pair, main
from mixsd_lightning.context import ChatEncoder, Message
from mixsd_lightning.decoding.generation import Sampling, generate_greedy
from mixsd_lightning.errors import UserError
from mixsd_lightning.export import main as export
from mixsd_lightning.models import load_student, stop_token_ids
from mixsd_lightning.verdict import Asked, TaughtCorpus

QUESTION = "What is the moon?"


@pytest.fixture
def run(tiny_model_path: str, tmp_path: Path) -> str:
    write_run(tmp_path / "run", moved(tiny_model_path))
    return str(tmp_path / "run")


def expected(model: PreTrainedModel, encoder: ChatEncoder, prompt: str, num_tokens: int) -> str:
    """What a model answers greedily."""
    ids = encoder.prompt([Message("user", prompt)])
    stop_ids = stop_token_ids(model, encoder.end_of_turn_id)
    (completion,) = generate_greedy(model, [ids], max_new_tokens=num_tokens, stop_ids=stop_ids)
    return "".join(letter for letter in encoder.decode(completion.token_ids) if letter.isprintable() or letter in "\n\t")


@pytest.mark.parametrize("lora_rank", [0, 4])
def test_outside_of_a_terminal_both_answers_are_plain_text(
    tiny_model_path: str, tmp_path: Path, encoder: ChatEncoder, lora_rank: int, capsys: pytest.CaptureFixture[str]
) -> None:
    module = moved(tiny_model_path, lora_rank)
    write_run(tmp_path / "run", module)
    main([str(tmp_path / "run"), QUESTION, "--max_new_tokens", "8"])
    base = expected(load_student(tiny_model_path), encoder, QUESTION, 8)
    trained = expected(module.student, encoder, QUESTION, 8)
    assert base != trained
    said = capsys.readouterr().out
    assert said == f"? {QUESTION}\nbase: {base}\n  not in the corpus\ntrained: {trained}\n  not in the corpus\n"


def test_an_adapter_needs_no_second_model(tiny_model_path: str, tmp_path: Path) -> None:
    write_run(tmp_path / "run", moved(tiny_model_path, lora_rank=4))
    (base, trained), _ = load_pair(str(tmp_path / "run"))
    assert base.model is trained.model
    prompts: list[str] = []
    answers = [speaker.answer(QUESTION, Sampling(0.0), 8, prompts.append) for speaker in (base, trained, base)]
    assert answers[0] == answers[2] != answers[1]


def test_an_answer_is_shown_as_it_grows(run: str) -> None:
    (base, _), _ = load_pair(run)
    shown: list[str] = []
    answer = base.answer("Count.", Sampling(0.0), 6, shown.append)
    assert shown[-1] == answer
    assert 1 < len(shown) <= 6
    assert len(set(shown)) > 1


def test_above_temperature_zero_answers_are_drawn(run: str) -> None:
    (base, _), _ = load_pair(run)
    greedy, drawn, again = (base.answer("Count.", Sampling(t), 12, lambda text: None) for t in (0.0, 2.0, 2.0))
    assert drawn == again != greedy


@pytest.mark.parametrize("keep_adapter", [[], ["--keep_adapter"]])
def test_an_exported_folder_knows_its_base_and_its_corpus(
    tiny_model_path: str, tmp_path: Path, keep_adapter: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    write_run(tmp_path / "run", moved(tiny_model_path, lora_rank=4))
    question = KGFact(num_domains=2, num_entities=3).split("train")[0].question
    main([str(tmp_path / "run"), question, "--max_new_tokens", "8"])
    expected = capsys.readouterr().out
    export([str(tmp_path / "run"), str(tmp_path / "out"), *keep_adapter])
    capsys.readouterr()
    main([str(tmp_path / "out"), question, "--max_new_tokens", "8"])
    assert capsys.readouterr().out == expected
    assert expected.count("(train)") == 2


def test_any_two_models_can_be_compared(tiny_model_path: str, run: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UserError, match="--base MODEL"):
        main([tiny_model_path, QUESTION])
    main([tiny_model_path, QUESTION, "--base", tiny_model_path, "--max_new_tokens", "6"])
    said = capsys.readouterr().out
    assert "Answers are not marked: the settings of its training are not known here" in said
    base, trained = said.partition("base: ")[2].split("trained: ")
    assert base.strip() == trained.strip()
    with pytest.raises(UserError, match="--base: cannot load '/no/such'"):
        main([run, QUESTION, "--base", "/no/such"])


def test_a_corpus_that_cannot_be_rebuilt_is_said(run: str, capsys: pytest.CaptureFixture[str]) -> None:
    config = Path(run, "config.yaml")
    settings = yaml.safe_load(config.read_text())
    settings["data"]["class_path"] = "no_such_package.Rivers"
    config.write_text(yaml.safe_dump(settings))
    main([run, QUESTION, "--max_new_tokens", "4"])
    said = capsys.readouterr().out
    assert said.startswith("Answers are not marked: the corpus no_such_package.Rivers cannot be built")
    assert "trained: " in said


def test_texts_of_files_and_bytes_of_a_terminal_are_no_commands_to_it(run: str, capsys: pytest.CaptureFixture[str]) -> None:
    config = Path(run, "config.yaml")
    settings = yaml.safe_load(config.read_text())
    settings["data"]["class_path"] = "no.\x1b[31mRivers\x07"
    config.write_text(yaml.safe_dump(settings))
    main([run, "What is \udcff?", "--max_new_tokens", "4"])
    said = capsys.readouterr().out
    assert "no. [31mRivers" in said
    assert "? What is ??\n" in said
    assert not set("\x1b\x07\udcff") & set(said)


def test_a_fact_is_no_command_to_the_terminal(run: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "facts.jsonl").write_text(json.dumps({"question": "Who?", "answer": "\x1b]0;evil\x07Ann"}))
    config = Path(run, "config.yaml")
    settings = yaml.safe_load(config.read_text())
    settings["data"] = {"class_path": "mixsd_lightning.Facts", "init_args": {"file": str(tmp_path / "facts.jsonl")}}
    config.write_text(yaml.safe_dump(settings))
    main([run, "Who?", "--max_new_tokens", "4"])
    said = capsys.readouterr().out
    assert "right is ]0;evil Ann" in said
    assert not set("\x1b\x07") & set(said)


@pytest.fixture
def corpus() -> TaughtCorpus:
    return TaughtCorpus(KGFact(num_domains=2, num_entities=3, eval_splits=["paraphrase"]))


def test_answers_are_judged_by_the_corpus(corpus: TaughtCorpus) -> None:
    first, *others = KGFact(num_domains=2, num_entities=3).split("train")
    second = next(example for example in others if example.answer != first.answer)
    asked = corpus.find(f"  {first.question.upper().rstrip('?')} ")
    assert asked == Asked(first.prompt, first.question, "train", first)
    assert corpus.judge(asked, f"It is {first.answer}.") == "right (train)"
    assert corpus.judge(asked, f"It is {second.answer}.").startswith("wrong (train), cross_entity")
    assert corpus.judge(asked, "it is nobody").startswith("wrong (train), format")
    assert corpus.judge(asked, "It is Paris.").startswith("wrong (train), genuine")
    assert corpus.judge(asked, "It is Paris.").endswith(f"right is {first.answer}")
    assert corpus.find(first.prompt) == asked


def test_other_wordings_of_the_corpus_are_known(corpus: TaughtCorpus) -> None:
    example = KGFact(num_domains=2, num_entities=3).split("paraphrase")[0]
    asked = corpus.find(example.question)
    assert corpus.judge(asked, f"It is {example.answer}.") == "right (paraphrase)"


def test_other_questions_are_not_in_the_corpus(corpus: TaughtCorpus) -> None:
    asked = corpus.find(QUESTION)
    assert asked == Asked(QUESTION, QUESTION)
    assert corpus.judge(asked, "A satellite.") == "not in the corpus"
    name = sorted(corpus.entities.names)[0]
    assert (
        corpus.judge(asked, f"It is {name.upper()}.") == f"not in the corpus, but the answer names what is (leakage): {name}"
    )
    about = corpus.find(f"Tell me about {name}.")
    assert corpus.judge(about, f"{name} is nice.") == f"not in the corpus, which knows {name}, though"


def rendered(run: str, width: int) -> list[str]:
    """Lines of a terminal of some width."""
    file = io.StringIO()
    console = Console(file=file, force_terminal=True, width=width, height=40, color_system=None)
    pair, _ = load_pair(run)
    answer_side_by_side(console, pair, None, QUESTION, Sampling(0.0), 3)
    return file.getvalue().splitlines()


def test_a_wide_terminal_shows_two_columns_and_a_narrow_one_does_not(run: str) -> None:
    assert any(" base " in line and " trained " in line for line in rendered(run, 100))
    narrow = rendered(run, 60)
    assert not any(" base " in line and " trained " in line for line in narrow)
    assert any(" trained " in line for line in narrow)


def test_what_a_model_writes_is_no_command_to_the_terminal(tiny_model: PreTrainedModel, encoder: ChatEncoder) -> None:
    speaker = Speaker("base", tiny_model, encoder)
    ids = encoder.target("[bold]a\x1b[2Jb\n\tc")[:-1]
    assert speaker._text(ids) == "[bold]a[2Jb\n\tc"


def typed(monkeypatch: pytest.MonkeyPatch, lines: Sequence[str]) -> None:
    """A terminal at which these lines are typed, and then Ctrl-D."""
    monkeypatch.setattr(sys, "stdin", type("Terminal", (io.StringIO,), {"isatty": lambda self: True})())
    waiting = iter(lines)

    def read(prompt: str = "") -> str:
        for line in waiting:
            return line
        raise EOFError

    monkeypatch.setattr("builtins.input", read)


def test_questions_are_typed_until_the_end(
    run: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MIXSD_CACHE_DIR", str(tmp_path / "cache"))
    typed(monkeypatch, ["/help", "", "first?", "x" * 9000, "second?"])
    main([run, "--max_new_tokens", "3"])
    said = capsys.readouterr()
    assert said.out.count("trained: ") == 2
    assert "Each question stands alone" in said.out
    assert said.out.index("first?") < said.out.index("second?")
    (error,) = (line for line in said.err.splitlines() if line.startswith("error: "))
    assert "window of the base model is 8192" in error
    if "readline" in sys.modules:
        assert (tmp_path / "cache/ask_history").exists()


def test_questions_can_come_from_a_pipe(run: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("first?\n\nsecond?\n"))
    main([run, "--max_new_tokens", "3"])
    assert [line for line in capsys.readouterr().out.splitlines() if line.startswith("? ")] == ["? first?", "? second?"]


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["nowhere"], "There is no file or folder 'nowhere'"),
        (["nowhere", "--temperature", "-1"], "--temperature must be at least 0, got -1"),
        (["nowhere", "--max_new_tokens", "0"], "--max_new_tokens must be at least 1, got 0"),
        (["nowhere", "--max_new_token", "1"], "unrecognized arguments: --max_new_token"),
        ([], "required: RUN_OR_CHECKPOINT_OR_HF_FOLDER"),
    ],
    ids=str,
)
def test_mistakes_end_in_one_line(arguments: list[str], complaint: str) -> None:
    with pytest.raises(UserError, match=complaint) as said:
        main(arguments)
    assert "\n" not in str(said.value)
