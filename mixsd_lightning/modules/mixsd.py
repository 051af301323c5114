"""MixSD (arXiv 2605.16865): supervised fine-tuning on targets that the base model itself wrote."""

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from transformers import PreTrainedModel
from typing_extensions import override

from mixsd_lightning.builtin_model import BUILTIN_MODEL
from mixsd_lightning.data.base import EvalBatch
from mixsd_lightning.data.batches import TrainItem
from mixsd_lightning.decoding.engine import MixingEngine
from mixsd_lightning.decoding.mixing import Engine, MixingSettings
from mixsd_lightning.decoding.vllm_engine import VLLMEngine, load_llm
from mixsd_lightning.errors import UserError, require
from mixsd_lightning.example import Example
from mixsd_lightning.models import model_source, weights_fingerprint
from mixsd_lightning.modules.supervised import SupervisedModule
from mixsd_lightning.run_folder import run_folder, sibling_runs
from mixsd_lightning.sharding import in_step
from mixsd_lightning.targets import MixedTargets, Shard, TargetSettings


class MixSD(SupervisedModule):
    """Mixed self-distillation: the targets mix the base model's own expert and naive conditionals.

    Before the first step the base model writes a target for every example: token by token a coin picks the *naive*
    conditional (the plain question) with probability `mixing_rate`, else the *expert* one (the fact is in the context).
    Targets whose answer is wrong are attempted again. Training is then plain NLL, as in SFT.
    """

    def __init__(
        self,
        model_name_or_path: str = BUILTIN_MODEL,
        mixing_rate: float = 0.3,
        temperature: float = 0.0,
        top_k: int = 64,
        num_generations: int = 1,
        max_attempts: int = 30,
        protect_answer: bool = False,
        on_reject: Literal["drop", "gold", "fact", "keep"] = "drop",
        refresh_every_n_epochs: int = 0,
        refresh_device: str | None = None,
        engine: Literal["transformers", "vllm"] = "transformers",
        generation_batch_size: int = 32,
        mixing_seed: int = 42,
        **options: Any,
    ) -> None:
        """
        Args:
            model_name_or_path: `smollm2-135m` (built in), a local Hugging Face folder, or a Hub id.
            mixing_rate: Probability of the naive conditional at each token (λ of the paper): 0 is pure expert, 1 pure naive.
            temperature: Of the base model when it writes targets; 0 is greedy.
            top_k: Sample from the k most probable tokens (0: from all); only above temperature 0.
            num_generations: Targets per example.
            max_attempts: Attempts per target until its answer is right.
            protect_answer: Beyond the paper: while the expert goes on writing the gold answer's tokens, take its token
                whatever the coin says, so that invented names survive a high `mixing_rate`.
            on_reject: What becomes of an example without a right target: `drop` it, train on the `gold` answer turn or on
                the `fact` sentence instead, or `keep` the last attempt.
            refresh_every_n_epochs: Build new targets, with new coins, every n epochs; 0 builds them once.
            refresh_device: Device that holds a copy of the base model while targets are built anew, such as `cpu` or
                `cuda:1`; the student's by default.
            engine: What runs the base model when targets are built: `transformers`, or `vllm` (extra `vllm`; on GPUs).
            generation_batch_size: Targets in flight at once.
            mixing_seed: Decides all coins and draws of the targets.
            options: What all methods have (:class:`KnowledgeModule`); `max_new_tokens` limits targets and answers alike.
        """
        super().__init__(model_name_or_path, **options)
        require("model.mixing_rate", mixing_rate, 0 <= mixing_rate <= 1, "between 0 and 1")
        require("model.temperature", temperature, temperature >= 0, "at least 0")
        require("model.top_k", top_k, top_k >= 0, "at least 1, or 0 for the whole vocabulary")
        require("model.num_generations", num_generations, num_generations >= 1, "at least 1")
        require("model.max_attempts", max_attempts, max_attempts >= 1, "at least 1")
        require("model.generation_batch_size", generation_batch_size, generation_batch_size >= 1, "at least 1")
        refresh = refresh_every_n_epochs
        require("model.refresh_every_n_epochs", refresh, refresh >= 0, "at least 1, or 0 for never")
        mixing = MixingSettings(mixing_rate, temperature, top_k, self.max_new_tokens, mixing_seed, protect_answer)
        self.target_settings = TargetSettings(mixing, num_generations, max_attempts)
        self.on_reject = on_reject
        self.refresh_every_n_epochs = refresh_every_n_epochs
        self.refresh_device = refresh_device
        self.engine = engine
        self.generation_batch_size = generation_batch_size
        self._refresh: int | None = None
        self._resumed_epoch = 0
        self.records: list[dict[str, Any]] = []
        """The mixed targets, once they are built."""

    @override
    def prepare_data(self) -> None:
        super().prepare_data()
        longest, example_id = self._targets().longest_prompt
        if longest + self.max_new_tokens > self.context_window:
            raise UserError(
                f"The longest prompt, of example '{example_id}', and its target need {longest + self.max_new_tokens} tokens, but the "
                f"model's window has {self.context_window}. Lower --model.max_new_tokens or shorten the facts."
            )

    @override
    def setup(self, stage: str) -> None:
        # Another corpus, another trainer: whatever was built for an earlier run does not count.
        self._refresh = None
        self._resumed_epoch = 0
        if self.refresh_every_n_epochs:
            # Every epoch asks for its items, so that a run that is resumed between two refreshes has the right ones.
            self.trainer.reload_dataloaders_every_n_epochs = 1  # type: ignore[attr-defined]

    @override
    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        self._resumed_epoch = int(checkpoint["epoch"])

    @override
    def on_predict_start(self) -> None:
        self.build_targets()

    @override
    def predict_step(self, batch: EvalBatch, batch_idx: int, dataloader_idx: int = 0) -> list[dict[str, Any]]:
        """The records of the mixed targets of a batch of training examples, as they stand in the target file."""
        ids = {example.id for example in batch.examples}
        return [record for record in self.records if record["id"] in ids]

    def build_targets(self, refresh: int = 0) -> None:
        """Build the targets of the training split into the run folder, or reuse those that a run beside it has built.

        Args:
            refresh: How often targets were built anew before; each time has coins of its own.
        """
        targets = self._targets(first_generation=refresh * self.target_settings.num_generations)
        earlier = [run / "targets" for run in sibling_runs(self.trainer)]
        name = f"mixed-{refresh}" if refresh else "mixed"
        with (
            self.base_model(self.refresh_device) as base,
            in_step(base) as barrier,
            self._target_folder() as folder,
        ):
            shard = Shard(self.trainer.global_rank, self.trainer.world_size, barrier)
            self.records = targets.build(folder, self._make_engine(base), earlier, name, shard)
        self._refresh = refresh
        accepted = [record["mix_meta"] for record in self.records if record["mix_meta"]["correct"]]
        tokens = sum(meta["num_tokens"] for meta in accepted)
        naive_tokens = sum(meta["student_token_fraction"] * meta["num_tokens"] for meta in accepted)
        self.target_statistics = {
            "targets/accepted": float(len(accepted)),
            "targets/rejected": float(len(self.records) - len(accepted)),
            "targets/attempts": float(sum(record["mix_meta"]["num_attempts"] for record in self.records)),
        }
        if accepted:
            self.target_statistics["targets/expert_fraction"] = 1 - naive_tokens / tokens
        fate = {"drop": "dropped", "gold": "replaced by gold", "fact": "replaced by the fact", "keep": "kept"}
        self.print(
            f"Mixed targets: {len(accepted)} of {len(self.records)} accepted in "
            f"{self.target_statistics['targets/attempts']:.0f} attempts, "
            f"{len(self.records) - len(accepted)} {fate[self.on_reject]} ({folder / name}.jsonl)"
        )

    def _make_engine(self, base: PreTrainedModel) -> Engine:
        mixing = self.target_settings.mixing
        if self.engine == "transformers":
            return MixingEngine(base, mixing, self.stop_ids, self.generation_batch_size)
        llm = load_llm(model_source(self.model_name_or_path), mixing.top_k, self.trust_remote_code)
        return VLLMEngine(llm, weights_fingerprint(base), mixing, self.stop_ids, self.generation_batch_size)

    def _targets(self, first_generation: int = 0) -> MixedTargets:
        corpus = self.trainer.datamodule  # type: ignore[attr-defined]
        return MixedTargets(corpus.split(corpus.train_split), self.encoder, self.target_settings, first_generation)

    @contextmanager
    def _target_folder(self) -> Iterator[Path]:
        if self.trainer.fast_dev_run:  # type: ignore[attr-defined]
            with tempfile.TemporaryDirectory() as folder:  # it is to leave nothing behind
                yield Path(self.trainer.strategy.broadcast(folder))
        else:
            yield run_folder(self.trainer) / "targets"

    @override
    def training_items(self, examples: Sequence[Example]) -> list[TrainItem]:
        # Lightning counts from zero until the fit loop of a resumed run has begun.
        epoch = max(self.trainer.current_epoch, self._resumed_epoch)
        refresh = epoch // self.refresh_every_n_epochs if self.refresh_every_n_epochs else 0
        is_refreshed = self._refresh is not None and refresh != self._refresh
        if refresh != self._refresh:
            self.build_targets(refresh)
        items = self.items_of_records(examples)
        if is_refreshed:
            self.describe_items(items)
        return items

    def items_of_records(self, examples: Sequence[Example]) -> list[TrainItem]:
        """What the targets that were built give to train on, rejected ones according to `on_reject`."""
        by_id = {example.id: example for example in examples}
        items = []
        for record in self.records:
            example = by_id[record["id"]]
            if record["mix_meta"]["correct"] or self.on_reject == "keep":
                item = self.supervised_item(example, record["token_ids"])
                items.append(replace(item, base_nlls=[-value for value in record["naive_log_probs"]]))
            elif self.on_reject != "drop":
                text = example.target if self.on_reject == "gold" else example.fact
                items.append(self.supervised_item(example, self.encoder.target(text)))
        return items
