"""How time and memory grow with the number of facts, beside what formulas say.

    python scripts/bench/growth.py    # about an hour on two cores

Facts of KGFact (14 domains of 50 entities), a random choice, into SmolLM2-135M: targets from the expert alone (mixing rate 0, one attempt,
float32, 32 at once), and an epoch of SFT (batches of 16). Each number of facts has processes of its own. The formulas, which are those
of scripts/plan.py, know operations and not the machine: they get its speed from the run with 100 facts, and have to tell the others.
The last line of the output is JSON.
"""

import argparse
import json
import random
from collections.abc import Sequence
from dataclasses import replace

import torch
from memory import peak_megabytes
from rich.console import Console
from targets import SETTINGS, Workload, ours
from trl_peer import print_table, run_ours, time_training
from typing_extensions import override

from mixsd_lightning import SFT, KGFact
from mixsd_lightning.builtin_model import BUILTIN_MODEL
from mixsd_lightning.cli import default_precision
from mixsd_lightning.example import Example
from mixsd_lightning.sizes import forward_flops, shape_by_name, training_flops

KNOWN = 100
"""Facts of the run that tells the speed of the machine."""


class SomeFacts(KGFact):
    """A random choice of the facts of all domains."""

    def __init__(self, num_facts: int) -> None:
        super().__init__(num_domains=14, num_entities=50, eval_splits=["train"])
        self.num_facts = num_facts

    @override
    def build_splits(self, names: Sequence[str]) -> dict[str, list[Example]]:
        rng = random.Random(self.seed)
        return {name: rng.sample(examples, self.num_facts) for name, examples in super().build_splits(names).items()}


def write_targets(corpus: SomeFacts) -> None:
    """Print what writing targets took, as one line of JSON, and what it has to take by the formula."""
    workload = Workload(corpus.split("train"))
    run = ours(workload, replace(SETTINGS, mixing_rate=0.0))
    written = sum(len(result.completion.token_ids) for result in run.results.values())
    read = sum(len(task.expert_prompt) for task in workload.tasks)
    flops = forward_flops(shape_by_name(BUILTIN_MODEL), read + written, read / len(workload.tasks), written)
    print(json.dumps({"seconds": run.seconds, "megabytes": peak_megabytes(), "flops": flops}))


def epoch_flops(corpus: SomeFacts) -> float:
    """Operations of an epoch by the formula."""
    items = SFT().training_items(corpus.split("train"))
    tokens, predicted = sum(item.num_tokens for item in items), sum(len(item.target_ids) for item in items)
    return training_flops(shape_by_name(BUILTIN_MODEL), tokens, tokens / len(items), predicted)


def main(counts: Sequence[int], threads: int) -> None:
    """The table, and the JSON line."""
    found = []
    for count in counts:
        arguments = ("--threads", str(threads), "--facts", str(count))
        targets, epoch = (run_ours(__file__, *arguments, "--part", part) for part in ("targets", "epoch"))
        found.append(
            {
                "facts": count,
                "targets": targets["seconds"],
                "targets_flops": targets["flops"],
                "targets_mb": targets["megabytes"],
                "epoch": sum(epoch["seconds"]),
                "epoch_flops": epoch_flops(SomeFacts(count)),
                "epoch_mb": epoch["megabytes"],
            }
        )
        Console().print(found[-1])
    known = next(row for row in found if row["facts"] == KNOWN)
    for row in found:
        for part in ("targets", "epoch"):
            row[f"{part}_predicted"] = known[part] * row[f"{part}_flops"] / known[f"{part}_flops"]
    columns = [f"{part}{what}" for part in ("targets", "epoch") for what in ("", "_predicted", "_mb")]
    title = f"Growth with the number of facts, {threads} threads, training in {default_precision('cpu')}"
    headings = [f"{part}, {what}" for part in ("targets", "an epoch") for what in ("s", "predicted", "peak MB")]
    print_table(title, {str(row["facts"]): [f"{row[column]:.0f}" for column in columns] for row in found}, headings)
    print(json.dumps(found))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--facts", type=int, nargs="+", default=[25, KNOWN, 525, 2000, 4550])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--only", choices=["ours"], help=argparse.SUPPRESS)
    parser.add_argument("--part", choices=["targets", "epoch"], help=argparse.SUPPRESS)
    parsed = parser.parse_args()
    torch.set_num_threads(parsed.threads)
    if parsed.part == "targets":
        write_targets(SomeFacts(*parsed.facts))
    elif parsed.part == "epoch":
        time_training(SFT(learning_rate=1e-5), SomeFacts(*parsed.facts), default_precision("cpu"))
    elif KNOWN not in parsed.facts:
        parser.error(f"--facts: {KNOWN} has to be among them.")
    else:
        main(parsed.facts, parsed.threads)
