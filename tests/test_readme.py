"""What the README shows is run here: commands with the tiny model, the Python examples as they stand."""

import re
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM

from mixsd_lightning import SFT, CorpusDataModule
from mixsd_lightning.cli import SUBCOMMANDS, main

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    """Fenced blocks of the README in one language."""
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


COMMANDS = [line for block in blocks("bash") for line in block.splitlines()]
FACTS = re.search(r"cat > (facts\.csv) <<'END'\n(.*?)END\n", README, flags=re.DOTALL)


def test_every_command_runs_in_the_order_shown(tiny_model_path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["mixsd_lightning"])
    Path("configs").symlink_to(ROOT / "configs")
    assert FACTS
    Path(FACTS[1]).write_text(FACTS[2], encoding="utf-8")
    # A model that needs no download and writes no right target; the first quickstart is the script's.
    small = ["--model.model_name_or_path", tiny_model_path, "--trainer.max_epochs", "1", "--model.max_new_tokens", "8"]
    mixing = ["--model.max_attempts", "1", "--model.on_reject", "gold"]
    small += ["--trainer.check_val_every_n_epoch", "1"]
    main(["fit", "--config", "configs/quickstart.yaml", *small, *mixing])
    programs = [shlex.split(command) for command in COMMANDS if command.startswith("python -m mixsd_lightning ")]
    assert len(programs) >= 7
    for _, _, _, subcommand, *arguments in programs:
        if subcommand in SUBCOMMANDS:
            main([subcommand, *arguments])
            continue
        is_mixing = not any(name in argument.lower() for argument in arguments for name in ("sft", "opsd"))
        extra = [] if subcommand == "validate" else [*small, *(mixing if is_mixing else [])]
        if "--print_config" in arguments:
            with pytest.raises(SystemExit, match="0"):
                main([subcommand, *arguments, *extra])
        else:
            main([subcommand, *arguments, *extra])
    assert len(list(Path("runs/quickstart").glob("version_*/metrics.jsonl"))) == 4
    assert Path("report/report.html").is_file()
    assert AutoModelForCausalLM.from_pretrained("quickstart-model") is not None
    (export,) = (block for block in blocks("python") if "export_student" in block)
    exec(compile(export, "README.md", "exec"), {})
    assert AutoModelForCausalLM.from_pretrained("my-model").generation_config is not None


def test_the_scripts_shown_exist_and_can_be_run() -> None:
    scripts = [command for command in COMMANDS if command.startswith("scripts/")]
    assert scripts == ["scripts/quickstart.sh", "scripts/test.sh"]
    for script in scripts:
        assert (ROOT / script).stat().st_mode & 0o111


@pytest.mark.builtin_model
def test_the_python_example_teaches_and_keeps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    example = blocks("python")[0]
    assert len(example.strip().splitlines()) <= 10
    exec(compile(example, "README.md", "exec"), {})
    printed = re.findall(r"\{'memorization/train': ([\d.]+), 'retention/kept': ([\d.]+)\}", capsys.readouterr().out)
    ((memorized, kept),) = printed
    assert float(memorized) >= 0.5
    assert float(kept) >= 0.5


def test_the_corpus_example_is_a_corpus_that_trains(tiny_model_path: str, tmp_path: Path) -> None:
    from lightning.pytorch import Trainer

    namespace: dict[str, Any] = {}
    exec(compile(blocks("python")[2], "README.md", "exec"), namespace)
    corpus: CorpusDataModule = namespace["Rivers"]()
    assert corpus.split("train")[0].target == "The river Ombrel rises at Mount Tasvik."
    trainer = Trainer(default_root_dir=tmp_path, accelerator="cpu", max_steps=1, logger=False, enable_checkpointing=False)
    trainer.fit(SFT(tiny_model_path, max_new_tokens=8), corpus)
    assert trainer.global_step == 1


def test_every_file_of_the_map_exists() -> None:
    file_map = README.partition("## File map")[2].split("```")[1]
    package, _, rest = file_map.partition("configs/")
    for name in re.findall(r"[\w/]+\.py|^  \w+/", package, flags=re.MULTILINE):
        assert list((ROOT / "mixsd_lightning").rglob(name.strip())), name
    for name in re.findall(r"\w+\.(?:sh|py|yaml)", rest):
        assert list((ROOT / "configs").rglob(name)) + list((ROOT / "scripts").rglob(name)), name
