"""What a step of on-policy self-distillation costs, against TRL's SDFTTrainer.

    python scripts/bench/opsd_step.py    # about fifteen minutes, the first time more: it installs TRL beside this environment

SmolLM2-135M on KGFact-Small: 16 prompts, one rollout of at most 48 tokens each, forward KL over the whole vocabulary from the
frozen base model, which sees the fact before the question. Students write what they like, so throughput is in rollout tokens.
Alternating runs in processes of their own; the first step of each is not counted. The last line of the output is JSON.
"""

import argparse
import json
import statistics

import torch
from trl_peer import print_table, run_ours, run_trl, time_training

from mixsd_lightning import OPSD, KGFact
from mixsd_lightning.builtin_model import builtin_model_path
from mixsd_lightning.cli import default_precision

BATCH_SIZE, MAX_NEW_TOKENS = 16, 48


def main(repeats: int, threads: int, precision: str) -> None:
    """The table, and the JSON line."""
    examples = KGFact(preset="KGFact-Small").split("train")
    rows = [
        {"prompt": [{"role": "user", "content": example.prompt}], "privileged_context": example.fact} for example in examples
    ]
    job = {"kind": "sdft", "model": str(builtin_model_path()), "rows": rows, "batch_size": BATCH_SIZE, "threads": threads}
    job |= {"bf16": precision == "bf16-mixed", "max_new_tokens": MAX_NEW_TOKENS}
    runs: dict[str, list[dict]] = {"TRL": [], "ours": []}
    for _ in range(repeats):
        runs["TRL"].append(run_trl(job))
        runs["ours"].append(run_ours(__file__, "--threads", str(threads), "--precision", precision))
    num_steps = len(rows) // BATCH_SIZE - 1
    counted = slice(1, 1 + num_steps)
    megabytes = {mode: statistics.median(run["megabytes"] for run in of) for mode, of in runs.items()}
    seconds = {mode: statistics.median(sum(run["seconds"][counted]) / num_steps for run in of) for mode, of in runs.items()}
    tokens = {
        mode: statistics.median(BATCH_SIZE * statistics.mean(run["lengths"][counted]) for run in of)
        for mode, of in runs.items()
    }
    rates = {mode: tokens[mode] / seconds[mode] for mode in runs}
    cells = {
        mode: [f"{seconds[mode]:.2f}", f"{tokens[mode]:.0f}", f"{rates[mode]:.1f}", f"{megabytes[mode]:.0f}"] for mode in runs
    }
    title = f"OPSD steps of {BATCH_SIZE} prompts, {precision}, {threads} threads"
    print_table(title, cells, ["seconds a step", "rollout tokens", "tokens a second", "peak MB"])
    result = {
        "throughput_vs_trl": round(rates["ours"] / rates["TRL"], 2),
        "memory_vs_trl": round(megabytes["ours"] / megabytes["TRL"], 2),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--precision", default=default_precision("cpu"), help="32-true or bf16-mixed")
    parser.add_argument("--only", choices=["ours"], help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.only:
        method = OPSD(max_new_tokens=MAX_NEW_TOKENS, learning_rate=1e-5, warmup_steps=0)  # as the worker has it
        time_training(method, KGFact(preset="KGFact-Small", batch_size=BATCH_SIZE), arguments.precision)
    else:
        main(arguments.repeats, arguments.threads, arguments.precision)
