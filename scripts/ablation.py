"""What each mechanism of UniSD gives on a corpus: the base model, SFT, OPSD, every mechanism alone, and UniSD*.

    python scripts/ablation.py scienceqa --data_dir DIR    # a few hours on two cores; killed, it goes on where it was

Every method has the same questions, steps and batches. The learning rates of SFT and of OPSD are chosen on the validation split;
everything that starts from OPSD takes OPSD's. What is reported is of the test split, after the last step. The table is Markdown;
`--csv FILE` writes its numbers, too.
"""

import argparse
import csv
import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from grid import Run, run_all

from mixsd_lightning.evaluation.metrics import wilson_interval

ROOT = Path(__file__).parents[1]
OFF = {"agreement": "none", "contrastive_weight": 0, "feature_weight": 0, "teacher": "frozen", "mask_truncated": False}
MECHANISMS: dict[str, dict[str, Any]] = {
    "token agreement, random": {"agreement": "token"},
    "token agreement, retrieval": {"agreement": "token", "auxiliary_contexts": "retrieval"},
    "token agreement, induction": {"agreement": "token", "auxiliary_contexts": "induction"},
    "sequence agreement, random": {"agreement": "sequence"},
    "hinge": {"contrastive_weight": 0.1},
    "features": {"feature_weight": 0.1},
    "features alone": {"feature_weight": 0.1, "token_loss_weight": 0},
    "clipped divergence": {"max_divergence_quantile": 0.95},
    "EMA teacher": {"teacher": "ema"},
    "masked truncation": {"mask_truncated": True},
}


@dataclass
class Row:
    """A method's numbers, over all seeds."""

    method: str
    learning_rate: float | None
    seeds: int
    questions: int
    right: float
    low: float
    high: float
    difference: float
    """Right answers less OPSD's."""
    difference_low: float
    difference_high: float
    kept: float
    agreement_kl: float
    drift_l2: float
    train_minutes: float
    peak_memory_mb: float


def run_of(corpus: str, options: argparse.Namespace, name: str, split: str, seed: int, **settings: Any) -> Run:
    """One epoch of a method on the corpus's questions, asked a split at the end."""
    method = settings.pop("method")
    arguments = [f"--config={ROOT / 'configs' / corpus / 'unisd_star.yaml'}", f"--model={method}"]
    arguments += [f"--model.{key}={value}" for key, value in settings.items()]
    arguments += [f"--data.eval_splits=[{split}]", "--data.max_eval_examples=null", f"--data.seed={seed}"]
    arguments += [f"--seed_everything={seed}", "--trainer.callbacks=null"]
    if options.data_dir:
        arguments.append(f"--data.data_dir={Path(options.data_dir).resolve()}")
    if options.examples:
        arguments.append(f"--data.max_examples={options.examples}")
    if options.steps:
        arguments.append(f"--trainer.limit_train_batches={options.steps}")
    if options.batch_size:
        arguments.append(f"--data.batch_size={options.batch_size}")
    if split == "validation":  # a trial of a learning rate
        arguments.append("--retention.suites=[bits_per_byte]")
    if name != "SFT":  # one run measures the base model
        arguments.append("--trainer.num_sanity_val_steps=0")
    return Run(f"{name.replace(', ', '-').replace(' ', '_')}-{split}-{seed}", tuple(arguments))


def right_and_asked(lines: Sequence[dict[str, float]]) -> tuple[float, int]:
    """Share of right answers, and the number of questions, over seeds."""
    asked = [int(line["memorization/test_count"]) for line in lines]
    share = sum(line["memorization/test"] * count for line, count in zip(lines, asked, strict=True)) / sum(asked)
    return share, sum(asked)


def difference(one: tuple[float, int], other: tuple[float, int]) -> tuple[float, float, float]:
    """Difference of two rates with its 95 % interval (Newcombe 1998, from Wilson intervals)."""
    (low, high), (other_low, other_high) = wilson_interval(*one), wilson_interval(*other)
    apart = one[0] - other[0]
    return (
        apart,
        apart - math.hypot(one[0] - low, other_high - other[0]),
        apart + math.hypot(high - one[0], other[0] - other_low),
    )


def row(method: str, rate: float | None, lines: Sequence[dict[str, float]], opsd: tuple[float, int]) -> Row:
    """A method's numbers from its last validation with each seed."""

    def mean(tag: str) -> float:
        return statistics.mean(line.get(tag, math.nan) for line in lines)

    share, asked = right_and_asked(lines)
    return Row(
        method,
        rate,
        len(lines),
        asked,
        share,
        *wilson_interval(share, asked),
        *difference((share, asked), opsd),
        kept=mean("retention/kept"),
        agreement_kl=mean("retention/agreement_kl"),
        drift_l2=mean("drift/l2"),
        train_minutes=mean("resources/train_seconds") / 60,
        peak_memory_mb=mean("resources/peak_memory_mb"),
    )


def with_seed(settings: dict[str, Any], seed: int) -> dict[str, Any]:
    """Settings of a method, and the seed of its rollouts if it has any."""
    return settings if settings["method"] == "SFT" else {**settings, "rollout_seed": seed}


def print_markdown(rows: Sequence[Row]) -> None:
    """The table. Where the interval of a difference contains 0, it is noise."""
    print("| method | right [95 %] | less OPSD's | kept | KL | drift | minutes |")
    print("|---|---|---|---|---|---|---|")
    for found in rows:
        verdict = "" if found.difference_low > 0 or found.difference_high < 0 else " (noise)"
        apart = "" if found.method == "OPSD" else f"{100 * found.difference:+.1f}{verdict}"
        cells = [
            found.method,
            f"{100 * found.right:.1f} % [{100 * found.low:.0f}, {100 * found.high:.0f}]",
            apart,
            f"{100 * found.kept:.1f} %",
            f"{found.agreement_kl:.3f}",
            f"{found.drift_l2:.2f}",
            "" if math.isnan(found.train_minutes) else f"{found.train_minutes:.1f}",
        ]
        print(f"| {' | '.join(cells)} |")


def main(corpus: str, options: argparse.Namespace) -> None:
    """All runs, the table, and the file."""
    folder = Path(options.folder) / corpus
    # The config has UniSD*'s teacher and mask, which OPSD has, too.
    plain = {"teacher": OFF["teacher"], "mask_truncated": OFF["mask_truncated"]}
    methods: dict[str, dict[str, Any]] = {"SFT": {"method": "SFT"}, "OPSD": {"method": "OPSD", **plain}}
    trials = {
        (name, rate): run_of(corpus, options, f"{name} {rate:g}", "validation", options.seeds[0], learning_rate=rate, **chosen)
        for name, chosen in methods.items()
        for rate in options.learning_rates
    }
    found = run_all(list(trials.values()), folder, options.jobs)
    rates = {
        name: max(options.learning_rates, key=lambda rate: found[trials[name, rate].name][-1]["memorization/validation"])
        for name in methods
    }
    methods |= {name: {"method": "UniSD", **OFF, **chosen} for name, chosen in MECHANISMS.items()}
    methods["UniSD*"] = {"method": "UniSD"}
    runs = {
        (name, seed): run_of(
            corpus, options, name, "test", seed, learning_rate=rates.get(name, rates["OPSD"]), **with_seed(chosen, seed)
        )
        for seed in options.seeds
        for name, chosen in methods.items()
    }
    found = run_all(list(runs.values()), folder, options.jobs)
    last = {name: [found[runs[name, seed].name][-1] for seed in options.seeds] for name in methods}
    base = [found[runs["SFT", seed].name][0] for seed in options.seeds]
    opsd = right_and_asked(last["OPSD"])
    rows = [row("base", None, base, opsd)]
    rows += [row(name, rates.get(name, rates["OPSD"]), last[name], opsd) for name in methods]
    print_markdown(rows)
    if options.csv:
        with Path(options.csv).open("w", newline="") as file:
            writer = csv.DictWriter(file, [field.name for field in fields(Row)])
            writer.writeheader()
            writer.writerows(asdict(each) for each in rows)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpus", choices=["scienceqa", "cose"])
    parser.add_argument("--data_dir", help="folder with the corpora's files; the Hub by default")
    parser.add_argument("--folder", default="runs/ablation", help="where the runs go")
    parser.add_argument("--seeds", type=int, nargs="+", default=[42])
    parser.add_argument("--learning_rates", type=float, nargs="+", default=[1e-5, 5e-5])
    parser.add_argument("--examples", type=int, help="questions of each split; the config's number by default")
    parser.add_argument("--steps", type=int, help="optimizer steps; one epoch by default")
    parser.add_argument("--batch_size", type=int, help="questions in an optimizer step; the config's number by default")
    parser.add_argument("--jobs", type=int, default=1, help="runs at once, which share the cores")
    parser.add_argument("--csv", help="file for the numbers")
    parsed = parser.parse_args()
    main(parsed.corpus, parsed)
