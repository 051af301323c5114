"""What a run uses: time, tokens, memory and, where the machine tells, energy."""

import sys
import time
from contextlib import suppress
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer
from typing_extensions import override

from mixsd_lightning.callbacks.energy import EnergyMeter
from mixsd_lightning.modules.base import KnowledgeModule
from mixsd_lightning.ranks import gathered, rank_and_count


class Resources(Callback):
    """Logs, at each validation, what the fit has used so far, over all ranks and all its resumptions.

    Tags: `resources/fit_seconds` (of the clock, validation included), `resources/train_seconds` (of training steps alone),
    `resources/trained_tokens` (that had a loss), `resources/generated_tokens` (of rollouts), `resources/tokens_per_second` (trained
    tokens per second of training steps), `resources/peak_memory_mb` (of the largest rank: the process and, in
    `resources/peak_gpu_memory_mb`, its GPU) and `resources/energy_joules` (:class:`~mixsd_lightning.callbacks.energy.EnergyMeter`: whole
    packages and cards, whoever uses them). Nothing is estimated: what the machine does not measure is not there.
    """

    def __init__(self) -> None:
        self._spent: dict[str, float] = {}
        """Before this process began, or the meters were read last."""
        self._meter: EnergyMeter | None = None
        self._last_seen = 0.0
        self._step_began = 0.0

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: KnowledgeModule) -> None:  # type: ignore[override]
        self._meter = EnergyMeter()
        self._last_seen = time.monotonic()
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()

    @override
    def on_train_batch_start(
        self,
        trainer: Trainer,
        pl_module: KnowledgeModule,  # type: ignore[override]
        batch: Any,
        batch_idx: int,
    ) -> None:
        self._step_began = time.monotonic()

    @override
    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: KnowledgeModule,  # type: ignore[override]
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        self._add("train_seconds", time.monotonic() - self._step_began)
        for name, count in pl_module.token_counts.items():
            self._add(name, count)
        pl_module.token_counts.clear()
        self._read_energy(trainer)

    @override
    def on_validation_epoch_end(self, trainer: Trainer, pl_module: KnowledgeModule) -> None:  # type: ignore[override]
        if self._meter is None:  # a validation of its own
            return
        self._read_energy(trainer)
        self._read_clock()
        self._largest("peak_memory_mb", peak_memory_mb())
        if torch.cuda.is_available():
            self._largest("peak_gpu_memory_mb", torch.cuda.max_memory_allocated() / 1e6)
        for name, value in self._spent.items():
            how = "sum" if _is_summed(name) else "max"
            pl_module.log(f"resources/{name}", value, sync_dist=True, reduce_fx=how)
        if self._spent.get("train_seconds"):
            rate = self._spent.get("trained_tokens", 0.0) / self._spent["train_seconds"]
            pl_module.log("resources/tokens_per_second", rate, sync_dist=True, reduce_fx="sum")

    @override
    def state_dict(self) -> dict[str, Any]:
        if self._meter is not None:
            self._read_clock()
        return {"spent": gathered(dict(self._spent))}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        # Whatever the number of ranks is now, together they have spent what they had.
        parts, (_, count) = state_dict["spent"], rank_and_count()
        names = {name for part in parts for name in part}
        found = {name: [part.get(name, 0.0) for part in parts] for name in names}
        self._spent = {name: sum(those) / count if _is_summed(name) else max(those) for name, those in found.items()}

    def _add(self, name: str, value: float) -> None:
        self._spent[name] = self._spent.get(name, 0.0) + value

    def _read_clock(self) -> None:
        now = time.monotonic()
        self._add("fit_seconds", now - self._last_seen)
        self._last_seen = now

    def _read_energy(self, trainer: Trainer) -> None:
        assert self._meter is not None
        joules = self._meter.read()
        if joules is not None:  # the machine's, so that one rank of a machine counts it
            self._add("energy_joules", joules if trainer.local_rank == 0 else 0.0)

    def _largest(self, name: str, value: float | None) -> None:
        if value is not None:
            self._spent[name] = max(self._spent.get(name, 0.0), value)


def _is_summed(name: str) -> bool:
    """Whether what all ranks have used is the sum, or the largest."""
    return name.endswith(("tokens", "joules"))


def peak_memory_mb() -> float | None:
    """Largest memory that this process has had, in 10^6 bytes; ``None`` on Windows."""
    with suppress(ImportError):
        import resource

        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6
    return None
