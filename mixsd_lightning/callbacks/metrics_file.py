"""``metrics.jsonl``: one line per validation, readable by anything."""

import json
import math
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, Trainer
from typing_extensions import override

from mixsd_lightning.atomic_file import write_atomically
from mixsd_lightning.errors import UserError, printable
from mixsd_lightning.modules.base import KnowledgeModule
from mixsd_lightning.run_folder import is_of_run, run_folder
from mixsd_lightning.untrusted import parse_json

METRICS_FILE = "metrics.jsonl"
PREFIXES = ("memorization/", "retention/", "drift/", "targets/", "errors/", "train/", "resources/")


class MetricsFile(Callback):
    """Appends the metrics of each validation to ``metrics.jsonl`` in the run folder, under their TensorBoard tags.

    Lightning's sanity check, when it runs over all the data (`num_sanity_val_steps: -1`), is the validation before training:
    it is written, and sent to the loggers, as step 0. A checkpoint holds the lines up to it; a run that goes on in its folder begins
    with them, whatever its predecessor has written after it.
    """

    def __init__(self) -> None:
        self._lines: list[str] = []
        """Of this fit."""
        self._earlier: list[str] = []
        """Of the fit that a checkpoint is of."""

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: KnowledgeModule) -> None:  # type: ignore[override]
        self._lines = []

    @override
    def on_train_start(self, trainer: Trainer, pl_module: KnowledgeModule) -> None:  # type: ignore[override]
        folder = run_folder(trainer)  # asks all ranks
        if is_of_run(trainer.ckpt_path, folder):
            self._lines, self._earlier = self._earlier, []
            if trainer.is_global_zero:
                write_atomically(folder / METRICS_FILE, "".join(self._lines).encode())

    @override
    def state_dict(self) -> dict[str, Any]:
        return {"lines": list(self._lines)}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._earlier = list(state_dict["lines"])

    @override
    def on_validation_end(self, trainer: Trainer, pl_module: KnowledgeModule) -> None:  # type: ignore[override]
        metrics = {tag: float(value) for tag, value in trainer.callback_metrics.items() if tag.startswith(PREFIXES)}
        if trainer.sanity_checking:
            is_whole = trainer.num_sanity_val_steps == float("inf")
            if not is_whole or pl_module.completed_steps:
                return
            for logger in trainer.loggers:
                logger.log_metrics(metrics, step=0)
        folder = run_folder(trainer)  # asks all ranks
        if trainer.is_global_zero and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            folder.mkdir(parents=True, exist_ok=True)  # without a logger, nobody else has made it
            line = json.dumps({"step": pl_module.completed_steps, "epoch": trainer.current_epoch, **metrics}) + "\n"
            with (folder / METRICS_FILE).open("a", encoding="utf-8") as file:
                file.write(line)
            self._lines.append(line)

    @override
    def on_test_end(self, trainer: Trainer, pl_module: KnowledgeModule) -> None:  # type: ignore[override]
        self.on_validation_end(trainer, pl_module)


def read_metrics(path: Path) -> tuple[list[dict[str, float]], bool]:
    """The lines of a ``metrics.jsonl``, and whether its last one is cut and left out.

    That is what a killed run leaves, or one that is writing at this moment.

    Raises:
        UserError: if the file cannot be read, or another line is no validation.
    """
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is no text ({error.reason} at byte {error.start}); leave this run out.") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.") from None
    found = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            found.append(_checked(parse_json(line)))
        except ValueError as error:
            if number == len(lines):
                return found, True
            reason = error.msg if isinstance(error, json.JSONDecodeError) else str(error)
            raise UserError(f"{path}, line {number}: {reason}. Mend the line or delete it.") from None
    return found, False


def _checked(line: Any) -> dict[str, float]:
    """A line as numbers by tag.

    Raises:
        ValueError: if it is something else.
    """
    for tag, value in line.items() if isinstance(line, dict) else ():
        if not _is_number(value):
            raise ValueError(f"'{printable(tag)}' is not a number")
    if not isinstance(line, dict) or "step" not in line or not math.isfinite(line["step"]):
        raise ValueError("this is no validation with its step")
    return {printable(tag): float(value) for tag, value in line.items()}


def _is_number(value: Any) -> bool:
    # An integer may be larger than any float.
    return isinstance(value, float) or (type(value) is int and value.bit_length() < 1024)
