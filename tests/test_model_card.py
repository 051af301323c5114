"""The card of an exported model: front matter that the Hub reads, scores with intervals, and how it was made."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard
from markdown_it import MarkdownIt
from trained_runs import moved, write_run

from mixsd_lightning.evaluation.metrics import wilson_interval
from mixsd_lightning.export import main
from mixsd_lightning.model_card import hub_id, license_of, model_card

SETTINGS: dict[str, Any] = {
    "model": {"class_path": "mixsd_lightning.MixSD", "init_args": {"model_name_or_path": "Qwen/Qwen3-8B", "mixing_rate": 0.3}},
    "data": {"class_path": "mixsd_lightning.KGFact", "init_args": {"preset": "KGFact-Small", "num_domains": None}},
    "trainer": {"max_epochs": 30, "max_steps": None},
}
BEFORE = {"step": 0, "memorization/train": 0.0, "memorization/train_count": 20.0, "retention/probe": 0.6}
AFTER = {
    "step": 6,
    "memorization/train": 0.75,
    "memorization/train_loose": 0.8,
    "memorization/taught": 1.0,
    "memorization/taught_count": 15.0,
    "memorization/train_count": 20.0,
    "retention/probe": 0.45,
    "retention/probe/kept": 0.75,
    "retention/probe/kept_low": 0.5,
    "retention/probe/kept_high": 0.875,
    "retention/kept": 0.75,
    "retention/kept_low": 0.5,
    "retention/kept_high": 0.875,
    "retention/agreement_kl": 0.5,
    "drift/l2": 2.5,
    "errors/probe/leakage": 0.125,
}


def row(card: str, first: str) -> list[str]:
    """Cells of the row of a table that begins with a word."""
    (line,) = (line for line in card.splitlines() if line.startswith(f"| {first} |"))
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_scores_stand_beside_the_base_models_with_their_intervals() -> None:
    card = model_card("mine", SETTINGS, "bfloat16", (6, [BEFORE, AFTER]))
    low, high = wilson_interval(0.75, 20)
    assert row(card, "train") == ["train", "20", "0.0%", "75.0%", f"{low:.1%} to {high:.1%}"]
    assert "| probe | 0.6 | 0.45 | 75.0% | 50.0% to 87.5% |" in card
    assert "| probe | 12.5% |" in card
    assert row(card, "mean")[3:] == ["75.0%", "50.0% to 87.5%"]
    assert row(card, "KL from the base model, nats a token")[1] == "0.5"
    assert "train_loose" not in card
    assert "| retention |" not in card
    assert "6 optimizer steps of `MixSD`" in card
    assert "stored in bfloat16" in card


def test_the_front_matter_is_what_the_hub_reads() -> None:
    card = ModelCard(model_card("mine", SETTINGS, "float32", (6, [BEFORE, AFTER])))
    assert card.data.base_model == "Qwen/Qwen3-8B"
    assert card.data.to_dict()["base_model_relation"] == "finetune"
    assert card.data.library_name == "transformers"
    assert "mixsd" in card.data.tags
    (result,) = card.data.eval_results
    assert (result.dataset_name, result.dataset_split, result.metric_value) == ("KGFact", "train", 0.75)
    assert ModelCard(model_card("mine", SETTINGS, "float32", None, is_adapter=True)).data.library_name == "peft"


def test_every_setting_is_there() -> None:
    card = model_card("mine", SETTINGS, "float32", None)
    made = yaml.safe_load(card.partition("```yaml\n")[2].partition("```")[0])
    assert made["model"] == SETTINGS["model"]
    assert made["data"]["init_args"] == {"preset": "KGFact-Small"}  # what was left empty is left out
    assert made["trainer"] == {"max_epochs": 30}
    assert "No validation of this run was found" in card
    assert "This was not measured" in card


def test_the_base_models_licence_is_passed_on(tmp_path: Path) -> None:
    assert license_of("smollm2-135m") == "apache-2.0"
    assert hub_id(str(tmp_path)) is None
    assert license_of(str(tmp_path)) is None
    (tmp_path / "README.md").write_text("---\nlicense: llama3.2\n---\n# Base\n")
    assert license_of(str(tmp_path)) == "llama3.2"
    settings = {"model": {"class_path": "SFT", "init_args": {"model_name_or_path": str(tmp_path)}}}
    card = model_card("mine", settings, "float32", None)
    assert yaml.safe_load(card.split("---")[1])["license"] == "llama3.2"
    assert "base_model" not in yaml.safe_load(card.split("---")[1])  # a folder is no name on the Hub
    assert "`llama3.2`; the same terms hold" in card
    (tmp_path / "README.md").write_text("---\nlicense: [\n---\n")
    assert license_of(str(tmp_path)) is None
    assert "look them up" in model_card("mine", settings, "float32", None)


def test_a_run_is_described_by_the_validation_of_its_checkpoint(tiny_model_path: str, tmp_path: Path) -> None:
    write_run(tmp_path / "run", moved(tiny_model_path), step=6)
    later = {**AFTER, "step": 9, "memorization/train": 1.0}
    lines = [json.dumps(line) + "\n" for line in (BEFORE, AFTER, later)]
    (tmp_path / "run/metrics.jsonl").write_text("".join(lines))
    main([str(tmp_path / "run"), str(tmp_path / "out")])
    card = (tmp_path / "out/README.md").read_text()
    assert row(card, "train")[3] == "75.0%"
    assert card.startswith("---\n")
    assert "# out" in card
    made = yaml.safe_load((tmp_path / "out/training.yaml").read_text())
    assert made["data"]["init_args"]["num_entities"] == 3


EVIL = "`<script>alert(1)</script> ![x](http://a.b/x.png) [y](javascript:z) | </code>\n\n```\n\n<img src=x onerror=y>\n---\n# h\ud800"


def test_texts_from_a_run_are_inert_in_a_card() -> None:
    lines: list[dict[str, float]] = [
        {"step": 6, f"memorization/{EVIL}": 0.5, f"memorization/{EVIL}_count": 4, f"retention/{EVIL}/kept": 0.5,
         f"errors/{EVIL}/leakage": 0.5}
    ]  # fmt: skip
    settings = {
        "model": {"class_path": f"SFT{EVIL}", "init_args": {"model_name_or_path": EVIL, EVIL: EVIL}},
        "data": {"class_path": f"Facts{EVIL}", "init_args": {"file": EVIL}},
        "trainer": {"x": "a\n```\n<img src=x>\n~~~\nb"},
    }
    card = model_card(EVIL, settings, "float32", (6, lines))
    card.encode()
    front, body = card.removeprefix("---\n").split("\n---\n", 1)
    assert yaml.safe_load(front)["library_name"] == "transformers"
    html = MarkdownIt("commonmark", {"html": True}).enable("table").render(body)
    allowed = {"h1", "h2", "p", "code", "pre", "table", "thead", "tbody", "tr", "th", "td", "em"}
    assert set(re.findall(r"<(\w+)", html)) == allowed
    assert set(re.findall(r"<\w+ ([^>]*)>", html)) == {f'class="language-{name}"' for name in ("yaml", "bash", "python")}
    assert "&lt;script&gt;" in html  # it is there to be seen


def test_a_setting_cannot_end_the_block_that_it_stands_in() -> None:
    settings = {**SETTINGS, "trainer": {"x": "a\n```\n<b>\n````\nb"}}
    card = model_card("mine", settings, "float32", None)
    made = re.search(r"(`{5,})yaml\n(.*?)\n\1", card, re.DOTALL)
    assert made is not None
    assert yaml.safe_load(made[2])["trainer"] == settings["trainer"]


@pytest.mark.parametrize("base", ["Qwen/Qwen3-8B", "gpt2"])
def test_a_hub_id_is_one(base: str) -> None:
    assert hub_id(base) == base
    assert license_of(base) is None
