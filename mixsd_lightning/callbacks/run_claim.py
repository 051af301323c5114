"""A fit has its folder for itself, and leaves word there whether it has ended."""

from pathlib import Path
from typing import Any

from filelock import FileLock
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.cli import SaveConfigCallback
from typing_extensions import override

from mixsd_lightning.atomic_file import write_atomically
from mixsd_lightning.callbacks.metrics_file import METRICS_FILE
from mixsd_lightning.errors import UserError
from mixsd_lightning.ranks import gathered
from mixsd_lightning.run_folder import UNFINISHED, claim, is_of_run, run_folder


class RunClaim(SaveConfigCallback):
    """Writes ``config.yaml`` and, in a fit, holds the folder against other processes and marks it as unfinished until the end."""

    def __init__(self, *args: Any, text: str, **options: Any) -> None:
        """
        Args:
            args: What the command line gives.
            text: The config as it is to be written: as the user gave it, whatever this run goes on with.
            options: What the command line gives.
        """
        super().__init__(*args, **options)
        self._text = text
        self._lock: FileLock | None = None
        self._folder = Path()

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._folder = folder = run_folder(trainer)  # asks all ranks
        problem = ""
        if trainer.is_global_zero and stage == "fit" and self._lock is None:
            try:
                was_unfinished = (folder / UNFINISHED).exists()
                self._lock = claim(folder)
                if was_unfinished and not is_of_run(self.config.get("ckpt_path"), folder):
                    (folder / METRICS_FILE).unlink(missing_ok=True)  # it begins again
            except UserError as error:
                problem = str(error)
        if stage == "fit" and len(set(gathered(self.config.get("ckpt_path")))) > 1:
            problem = f"The ranks disagree about what {folder} goes on from. Start all of them again."
        if problem := trainer.strategy.broadcast(problem):
            raise UserError(problem)
        super().setup(trainer, pl_module, stage)

    @override
    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        write_atomically(self._folder / self.config_filename, self._text.encode())

    @override
    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._lock is not None:
            (self._folder / UNFINISHED).unlink(missing_ok=True)
            self._lock.release()

    @override
    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        if self._lock is not None:
            self._lock.release()
