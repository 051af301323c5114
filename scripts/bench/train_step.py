"""What a step of supervised fine-tuning costs, against TRL's SFTTrainer and against its matrix products alone.

    python scripts/bench/train_step.py    # about ten minutes, the first time more: it installs TRL beside this environment

SmolLM2-135M on KGFact-Small, batches of 16, the same items in the same order, AdamW; alternating runs in processes of their
own; the first step of each is not counted. The last line of the output is JSON.
"""

import argparse
import json
import statistics

import torch
from trl_peer import matmul_rate, print_table, run_ours, run_trl, time_training

from mixsd_lightning import SFT, KGFact
from mixsd_lightning.builtin_model import builtin_model_path
from mixsd_lightning.cli import default_precision
from mixsd_lightning.data.batches import TrainingBatches, collate_training
from mixsd_lightning.models import load_student

BATCH_SIZE = 16


def main(repeats: int, threads: int, precision: str) -> None:
    """The table, and the JSON line."""
    method, corpus = SFT(), KGFact(preset="KGFact-Small", batch_size=BATCH_SIZE)
    items = method.training_items(corpus.split("train"))
    batches = list(TrainingBatches([item.num_tokens for item in items], BATCH_SIZE, seed=corpus.seed))
    counted = [batch for batch in batches[1:] if len(batch) == BATCH_SIZE]
    rows = [
        {
            "input_ids": items[i].prompt_ids + items[i].target_ids,
            "labels": [-100] * len(items[i].prompt_ids) + items[i].target_ids,
        }
        for batch in batches
        for i in batch
    ]
    job = {"kind": "sft", "model": str(builtin_model_path()), "rows": rows, "batch_size": BATCH_SIZE, "threads": threads}
    job["bf16"] = precision == "bf16-mixed"
    runs: dict[str, list[dict]] = {"TRL": [], "ours": []}
    for _ in range(repeats):
        runs["TRL"].append(run_trl(job))
        runs["ours"].append(run_ours(__file__, "--threads", str(threads), "--precision", precision))
    answer_tokens = sum(len(items[i].target_ids) for batch in counted for i in batch)
    padded = [collate_training([items[i] for i in batch]) for batch in counted]
    tokens = {
        "TRL": sum(batch.token_ids_BL.numel() for batch in padded),
        # Ours computes what all prompts of a batch begin with once.
        "ours": sum(batch.token_ids_BL[:, batch.num_shared :].numel() + batch.num_shared for batch in padded),
        "matrix products": sum(items[i].num_tokens for batch in counted for i in batch),
    }
    seconds = {mode: statistics.median(sum(run["seconds"][1 : 1 + len(counted)]) for run in of) for mode, of in runs.items()}
    megabytes = {mode: statistics.median(run["megabytes"] for run in of) for mode, of in runs.items()}
    torch.set_num_threads(threads)
    model = load_student(method.model_name_or_path)
    num_parameters = sum(p.numel() for p in model.parameters()) - model.get_input_embeddings().weight.numel()
    bound = 6 * num_parameters * tokens["matrix products"] / matmul_rate(torch.bfloat16 if job["bf16"] else torch.float32)
    seconds["matrix products"] = bound
    cells = {
        mode: [
            f"{tokens[mode] / len(counted):.0f}",
            f"{taken / len(counted):.2f}",
            f"{answer_tokens / taken:.1f}",
            f"{megabytes[mode]:.0f}" if mode in megabytes else "",
        ]
        for mode, taken in seconds.items()
    }
    title = f"SFT steps of {BATCH_SIZE} facts, {precision}, {threads} threads"
    print_table(title, cells, ["tokens a step", "seconds a step", "answer tokens a second", "peak MB"])
    result = {
        "throughput_vs_trl": round(seconds["TRL"] / seconds["ours"], 2),
        "memory_vs_trl": round(megabytes["ours"] / megabytes["TRL"], 2),
        "time_vs_matmul_bound": round(seconds["ours"] / bound, 2),
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
        time_training(
            SFT(learning_rate=1e-5, warmup_steps=0), KGFact(preset="KGFact-Small", batch_size=BATCH_SIZE), arguments.precision
        )
    else:
        main(arguments.repeats, arguments.threads, arguments.precision)
