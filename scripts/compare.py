"""All methods on one corpus with equal budgets: base model, SFT, OPSD, MixSD over its mixing rates, and UniSD*.

    python scripts/compare.py --preset small     # 24 facts, one seed: 17 minutes on two cores
    python scripts/compare.py --jobs 2           # KGFact-Small, two seeds: a night; killed, it goes on where it was
    python scripts/compare.py --preset kgfunc    # worked solutions
    python scripts/compare.py --preset variants  # what else was tried on KGFact-Small

Every run has the same corpus, batch size and number of optimizer steps. Each method's learning rate is chosen from a small grid by runs
on a corpus of another seed, whose facts are not reported: the best product of facts recalled and next tokens that are still the
base model's (neither of which is what `kept` measures). `--data_dir` adds LAMBADA and HellaSwag to what should be kept. Finished runs
are not run again. The last step writes a report (tables, figures, a page) and `--csv FILE`.
"""

import argparse
import csv
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from grid import Run, run_all

from mixsd_lightning.report import write_report
from mixsd_lightning.report.measures import measured
from mixsd_lightning.report.settings import Setting

ROOT = Path(__file__).parents[1]
Settings = dict[str, Any]
TUNING_SEED = 7
SEEDED = {"SFT": [], "MixSD": ["mixing_seed"], "OPSD": ["rollout_seed"], "UniSD": ["rollout_seed", "context_seed"]}
"""Method -> its settings that take the seed of a run."""
COLUMNS = {
    "memorization": "memorization/train",
    "paraphrase": "memorization/paraphrase",
    "two_hop": "memorization/two_hop",
    "unseen_inputs": "memorization/unseen_inputs",
    "kept": "retention/kept",
    "everyday": "retention/probe/kept",
    "same_next_token": "retention/agreement_top1",
    "kl": "retention/agreement_kl",
    "fisher_drift": "drift/fisher",
    "target_nll": "targets/nll_base",
    "accepted": "targets/accepted",
}
"""Column -> tag; those with an interval have `_low` and `_high` beside them."""
_DISTANCES = ("kl", "fisher_drift", "target_nll")


def mixed(mixing_rate: float, protect_answer: bool = False) -> tuple[str, Settings]:
    """Name and settings of a MixSD run."""
    name = f"MixSD-{mixing_rate:g}{'-protected' * protect_answer}"
    return name, {"mixing_rate": mixing_rate, "protect_answer": protect_answer}


NAME, BEST = mixed(0.3, protect_answer=True)
"""What learning rates are chosen for, and what the variants of MixSD change one thing in."""
TUNED: dict[str, Settings] = {"SFT": {}, "OPSD": {}, NAME: BEST}
"""What learning rates are chosen for; UniSD, which is OPSD and more, takes OPSD's."""


@dataclass(frozen=True)
class Preset:
    """A comparison."""

    configs: Mapping[str, str]
    """Method -> its config."""
    compared: Sequence[tuple[str, Settings]]
    """Names, which begin with the method's, and settings: the method's own, or of the corpus with `data.` before them."""
    steps: int
    validations: int
    seeds: tuple[int, ...]
    learning_rates: tuple[float, ...]
    model: Settings
    """Of all methods."""
    data: Settings


LORA: Settings = {"lora_rank": 16, "lora_alpha": 32, "learning_rate": 1e-3}
KGFACT = {"SFT": "kgfact/sft", "OPSD": "kgfact/opsd", "MixSD": "kgfact/mixsd", "UniSD": "kgfact/unisd_star"}
PRESETS = {
    "kgfact": Preset(
        KGFACT,
        [
            ("SFT", {}),
            mixed(0.0),  # at rate 0 there is nothing to protect
            *(mixed(rate, protect) for rate in (0.3, 0.5, 0.7) for protect in (False, True)),
            ("OPSD", {}),
            ("UniSD", {}),
        ],
        steps=84,
        validations=1,
        seeds=(42, 43),
        learning_rates=(3e-5, 6e-5),
        model={},
        data={"eval_splits": "[train,paraphrase,two_hop]", "max_eval_examples": 100},
    ),
    "small": Preset(
        KGFACT,
        [("SFT", {}), mixed(0.0), mixed(0.3, True), mixed(0.5, True)],
        steps=24,
        validations=1,
        seeds=(42,),
        learning_rates=(1e-4,),
        model={"warmup_steps": 4},
        data={"num_domains": 3, "num_entities": 8, "batch_size": 8},  # 24 facts
    ),
    "kgfunc": Preset(
        dict.fromkeys(["SFT", "OPSD", "MixSD"], "kgfunc/mixsd"),
        [
            ("SFT", {}),
            *((name, {**settings, "max_attempts": 10}) for name, settings in (mixed(0.0), mixed(0.3), mixed(0.5))),
            ("OPSD", {"temperature": 0.0}),
        ],  # solutions are long, and attempts take most of the time
        steps=144,
        validations=2,
        seeds=(42,),
        learning_rates=(1e-4,),
        model={},
        data={"batch_size": 8, "eval_splits": "[train,unseen_inputs]", "max_eval_examples": 100},
    ),
    "variants": Preset(
        KGFACT,
        [
            *(("SFT", {"learning_rate": rate}) for rate in (3e-5, 2e-5, 6e-5, 1e-4)),
            ("SFT-LoRA", LORA),
            (NAME, BEST),
            *((NAME, {**BEST, "learning_rate": rate}) for rate in (3e-5, 1e-4)),
            (f"{NAME}-LoRA", {**BEST, **LORA}),
            (f"{NAME}-gold", {**BEST, "on_reject": "gold"}),
            (f"{NAME}-refreshed", {**BEST, "refresh_every_n_epochs": 1}),
            (f"{NAME}-sampled", {**BEST, "temperature": 1.0}),
            (f"{NAME}-four_targets", {**BEST, "num_generations": 4}),
            (f"{NAME}-recall", {**BEST, "data.expert_context": "recall"}),
            (f"{NAME}-trust", {**BEST, "data.expert_context": "trust"}),
        ],
        steps=84,
        validations=1,
        seeds=(42,),
        learning_rates=(6e-5,),
        model={},
        data={"eval_splits": "[train,paraphrase,two_hop]", "max_eval_examples": 100},
    ),
}


def run_of(
    preset: Preset, name: str, seed: int, learning_rate: float, settings: Settings, flags: Settings | None = None
) -> Run:
    """A run of a method, whose name begins with the method's."""
    method = name.partition("-")[0]
    model = {**preset.model, "learning_rate": learning_rate, **settings} | dict.fromkeys(SEEDED[method], seed)
    flags = {
        "model": method,
        **{key if key.startswith("data.") else f"model.{key}": value for key, value in model.items()},
        **{f"data.{key}": value for key, value in {**preset.data, "seed": seed}.items()},
        "seed_everything": seed,
        "trainer.callbacks": "null",
        # Methods may have different numbers of batches in an epoch (MixSD drops examples without a target); all take as many steps.
        "trainer.max_epochs": -1,
        "trainer.max_steps": preset.steps,
        "trainer.check_val_every_n_epoch": "null",
        "trainer.val_check_interval": preset.steps // preset.validations,
        **(flags or {}),
    }
    config = ROOT / "configs" / f"{preset.configs[method]}.yaml"
    return Run(
        f"{name}-lr{model['learning_rate']:g}-seed{seed}",
        (f"--config={config}", *(f"--{flag}={value}" for flag, value in flags.items())),
    )


def chosen_rates(preset: Preset, folder: Path, jobs: int = 1) -> dict[str, float]:
    """The learning rate of every method."""
    methods = {name.partition("-")[0] for name, _ in preset.compared}
    if len(preset.learning_rates) == 1:
        return dict.fromkeys(methods, preset.learning_rates[0])
    tuned = {name: settings for name, settings in TUNED.items() if name.partition("-")[0] in methods}
    brief = {
        "trainer.num_sanity_val_steps": 0,
        "trainer.val_check_interval": preset.steps,
        "data.eval_splits": "[train]",
        "retention.suites": "[agreement]",
    }
    trials = {
        (name, rate): run_of(preset, name, TUNING_SEED, rate, settings, brief)
        for rate in preset.learning_rates  # not side by side: the second run takes the targets of the first
        for name, settings in tuned.items()
    }
    found = run_all(list(trials.values()), folder, jobs)

    def score(name: str, rate: float) -> float:
        last = found[trials[name, rate].name][-1]
        return last["memorization/train"] * last["retention/agreement_top1"]

    best = {name.partition("-")[0]: max(preset.learning_rates, key=lambda rate: score(name, rate)) for name in tuned}
    return {method: best["OPSD" if method == "UniSD" else method] for method in methods}


def benchmarks(data_dir: str | None) -> Settings:
    """The suites, with public ones whose files are in a folder."""
    if data_dir is None:
        return {}
    of_data = [
        {"class_path": name, "init_args": {"data_dir": str(Path(data_dir).resolve()), "limit": limit}}
        for name, limit in (("Lambada", 400), ("HellaSwag", 200))
    ]
    return {"retention.suites": json.dumps(["probe", "bits_per_byte", "agreement", *of_data])}


def write_csv(path: Path, settings: Iterable[Setting]) -> None:
    """One row for each setting."""
    rows: list[dict[str, Any]] = []
    for setting in settings:
        row: dict[str, Any] = {"setting": setting.label, "method": setting.method}
        for key in ("mixing_rate", "protect_answer", "learning_rate"):
            row[key] = setting.values.get(f"model.{key}", "") if not setting.is_base else ""
        row["seeds"] = "" if setting.is_base else len(setting.runs)
        for column, tag in COLUMNS.items():
            if estimate := measured(setting, tag):
                ends = {column: estimate.value, f"{column}_low": estimate.low, f"{column}_high": estimate.high}
                row |= {name: f"{value:.4g}" for name, value in ends.items() if value is not None}
        if minutes := measured(setting, "resources/fit_seconds"):
            row["minutes"] = f"{minutes.value / 60:.1f}"
        rows.append(row)
    heads = ["setting", "method", "mixing_rate", "protect_answer", "learning_rate", "seeds"]
    heads += [name for column in COLUMNS for name in (column, f"{column}_low", f"{column}_high")] + ["minutes"]
    with path.open("w", newline="") as file:
        there = {name for row in rows for name in row}
        writer = csv.DictWriter(file, [name for name in heads if name in there], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def markdown(path: Path) -> str:
    """The shares of the file as a table, intervals in brackets, and its distances."""
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    shares = [name for name in COLUMNS if name in rows[0] and name not in _DISTANCES and name != "accepted"]
    lines = [["", *(name.replace("_", " ") for name in (*shares, *_DISTANCES))]]
    lines += [["---"] * len(lines[0])]
    lines += [
        [row["setting"], *(_share(row, name) for name in shares), *(_number(row[name]) for name in _DISTANCES)] for row in rows
    ]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _share(row: Mapping[str, str], column: str) -> str:
    """In per cent, with its interval if it has one."""
    value, low, high = (
        f"{100 * float(written):.0f}" if (written := row.get(name)) else ""
        for name in (column, f"{column}_low", f"{column}_high")
    )
    return f"{value} %" * bool(value) + f" [{low}, {high}]" * bool(low)


def _number(written: str) -> str:
    return f"{float(written):.2f}" if written else ""


def main(preset: Preset, folder: Path, csv_file: str | None, jobs: int = 1, data_dir: str | None = None) -> None:
    """All runs, the report, and the file."""
    rates = chosen_rates(preset, folder / "tuning", jobs)
    runs = [
        run_of(
            preset,
            name,
            seed,
            rates[name.partition("-")[0]],
            settings,
            # One run measures the base model.
            benchmarks(data_dir) | ({"trainer.num_sanity_val_steps": 0} if number else {}),
        )
        for seed in preset.seeds
        for number, (name, settings) in enumerate(preset.compared)
    ]
    run_all(runs, folder / "runs", jobs)
    corpora, notes = write_report([folder / "runs" / run.name for run in runs], folder / "report")
    for note in notes:
        print(f"note: {note}")
    if csv_file:
        write_csv(Path(csv_file), [setting for corpus in corpora for setting in corpus.rows])
        print(markdown(Path(csv_file)))
    print(f"Report: {folder / 'report' / 'report.html'}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", choices=PRESETS, default="kgfact")
    parser.add_argument("--seeds", type=int, nargs="+", help="seeds of corpus, targets and rollouts; the preset's by default")
    parser.add_argument("--steps", type=int, help="optimizer steps of each run; the preset's by default")
    parser.add_argument("--data_dir", help="folder with the files of LAMBADA and HellaSwag; without it they are not asked")
    parser.add_argument("--folder", help="where everything goes; runs/compare-<preset> by default")
    parser.add_argument("--jobs", type=int, default=1, help="runs at once, which share the cores")
    parser.add_argument("--csv", help="file for the numbers")
    parsed = parser.parse_args()
    chosen = PRESETS[parsed.preset]
    changes = {"seeds": tuple(parsed.seeds or chosen.seeds), "steps": parsed.steps or chosen.steps}
    folder = Path(parsed.folder or f"runs/compare-{parsed.preset}")
    main(Preset(**{**vars(chosen), **changes}), folder, parsed.csv, parsed.jobs, parsed.data_dir)
