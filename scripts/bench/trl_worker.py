"""Training steps of TRL, timed. Runs in an environment of its own, which `trl_peer.py` makes; knows nothing of this project.

    python trl_worker.py job.json

The job says which trainer (`sft` or `sdft`), the model's folder, the rows in the order of training, the batch size, the
threads, and whether to use bfloat16 autocast. The last line of the output is JSON: seconds and completion lengths of each step,
and peak MB.
"""

import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from memory import peak_megabytes
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback


class Stopwatch(TrainerCallback):
    """Seconds of each optimizer step, with whatever the trainer does for it, and the mean length of its completions."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.lengths: list[float] = []

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        """Start."""
        self._start = time.perf_counter()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """Stop."""
        self.seconds.append(time.perf_counter() - self._start)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float], **_: Any) -> None:
        """Take what the trainer logs of its rollouts."""
        if "completions/mean_length" in logs:
            self.lengths.append(logs["completions/mean_length"])


def main(job: dict[str, Any]) -> None:
    """Train over the rows once."""
    torch.set_num_threads(job["threads"])
    model = AutoModelForCausalLM.from_pretrained(job["model"], dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(job["model"])
    watch = Stopwatch()
    options = {
        "output_dir": tempfile.mkdtemp(),
        "per_device_train_batch_size": job["batch_size"],
        "num_train_epochs": 1,
        "learning_rate": 1e-5,
        "bf16": job["bf16"],
        "use_cpu": True,
        "gradient_checkpointing": False,
        "save_strategy": "no",
        "report_to": "none",
        "train_sampling_strategy": "sequential",
        "logging_steps": 1,
    }
    rows = Dataset.from_list(job["rows"])
    if job["kind"] == "sft":
        from trl import SFTConfig, SFTTrainer

        config = SFTConfig(**options)
        trainer = SFTTrainer(model, config, train_dataset=rows, processing_class=tokenizer, callbacks=[watch])
    else:
        from trl.experimental.sdft import SDFTConfig, SDFTTrainer

        config = SDFTConfig(
            **options,
            num_generations=1,
            max_completion_length=job["max_new_tokens"],
            distillation_mode="full_logits",
            distillation_alpha=0.0,
            distillation_is_clip=None,
            teacher_prompt_template="{privileged_context}\n\n{prompt}",
            shuffle_dataset=False,
        )
        trainer = SDFTTrainer(model, args=config, train_dataset=rows, processing_class=tokenizer, callbacks=[watch])
    trainer.train()
    print(json.dumps({"seconds": watch.seconds, "lengths": watch.lengths, "megabytes": peak_megabytes()}))


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
