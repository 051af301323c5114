"""The command line: ``python -m mixsd_lightning fit --config configs/quickstart.yaml`` and LightningCLI overrides."""

import difflib
import errno
import importlib
import inspect
import re
import sys
import warnings
from pathlib import Path
from typing import Any, NoReturn

import torch
import yaml
from jsonargparse import Namespace
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from typing_extensions import override

from mixsd_lightning.callbacks import (
    Checkpoints,
    CollapseAlert,
    Completions,
    Dashboard,
    ErrorModes,
    FisherDrift,
    MetricsFile,
    Resources,
    Retention,
)
from mixsd_lightning.callbacks.metrics_file import METRICS_FILE
from mixsd_lightning.callbacks.run_claim import RunClaim
from mixsd_lightning.data import CorpusDataModule
from mixsd_lightning.errors import UserError, printable
from mixsd_lightning.evaluation.suites import SUITES
from mixsd_lightning.modules import KnowledgeModule
from mixsd_lightning.modules.strategies import check_strategy, end_other_ranks
from mixsd_lightning.ranks import is_first_failure, rank_and_count
from mixsd_lightning.resume import check_unused, named_run, unfinished_run
from mixsd_lightning.run_folder import logged_folders, logger_options, run_folder
from mixsd_lightning.summary import print_summary

LOGGER_DEFAULT = {
    "class_path": "lightning.pytorch.loggers.TensorBoardLogger",
    "init_args": {"save_dir": "runs", "name": "default", "default_hp_metric": False},
}

_OF_THE_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, errno.ENOTDIR}
"""What the system says where nothing can be written, and the user has to see to it."""

SUBCOMMANDS = {
    "report": "mixsd_lightning.report",
    "export": "mixsd_lightning.export",
    "ask": "mixsd_lightning.ask",
}
"""What follows training: name -> module, whose ``main`` gets the rest of the arguments. Lightning's parser does not see them."""

EPILOG = (
    "After training: 'report RUNS...' compares runs, 'export RUN OUTPUT' writes a Hugging Face folder, 'ask RUN' talks to a "
    "trained model. Each has its own --help."
)


class OneLineParser(LightningArgumentParser):
    """Says what is wrong with the arguments in one line instead of a page, and takes no abbreviations for options."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.allow_abbrev = False

    @override
    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        fail(explain(message))


class MixSDCLI(LightningCLI):
    """LightningCLI with the retention and drift callbacks always on, each under a key of its own."""

    def __init__(self, args: ArgsType = None) -> None:
        super().__init__(
            KnowledgeModule,
            CorpusDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            parser_class=OneLineParser,
            parser_kwargs={"epilog": EPILOG},
            seed_everything_default=42,
            save_config_callback=RunClaim,
            save_config_kwargs={"save_to_log_dir": False},
            trainer_defaults={
                "logger": LOGGER_DEFAULT,
                # The validation before the first step is whole: it is what every later one is compared with.
                "num_sanity_val_steps": -1,
                "log_every_n_steps": 1,
                "gradient_clip_val": 1.0,
            },
            args=args,
        )

    @override
    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument(
            "--resume",
            type=bool | str,  # YAML reads `off` as a truth value
            default="auto",
            help="What fit does about a run that was killed: 'auto' goes on with the newest one of the same configuration, 'off' "
            "begins another, and a run folder or one of its checkpoints says which to go on with.",
        )
        # Keys of their own, because two config files replace each other's list of callbacks. The metrics file comes last, so
        # that it writes what the others have logged.
        parser.add_lightning_class_args(Checkpoints, "checkpoint")
        parser.add_lightning_class_args(FisherDrift, "drift")
        parser.add_lightning_class_args(Retention, "retention")
        parser.add_lightning_class_args(ErrorModes, "errors")
        parser.add_lightning_class_args(Completions, "completions")
        parser.add_lightning_class_args(CollapseAlert, "collapse")
        parser.add_lightning_class_args(Resources, "resources")
        parser.add_lightning_class_args(Dashboard, "dashboard")
        parser.add_lightning_class_args(MetricsFile, "metrics_file")

    @override
    def _parse_ckpt_path(self) -> None:
        # Lightning 2.6 lets the hyper-parameters of a checkpoint override the config file and the command line (and even
        # the class of the model) without a word. Here what the user says wins; a run's config.yaml repeats its settings.
        pass

    @override
    def before_instantiate_classes(self) -> None:
        config = self.config[self.config.subcommand]
        check_strategy(config.trainer.strategy)
        if config.trainer.precision is None:
            config.trainer.precision = default_precision(config.trainer.accelerator)
        checkpoint = config.get("ckpt_path")
        if checkpoint and checkpoint not in ("best", "last", "hpc", "registry") and not Path(checkpoint).exists():
            raise UserError(f"--ckpt_path: there is no file or folder '{checkpoint}'; give a checkpoint of an earlier run.")
        text = self._parser(self.config.subcommand).dump(config, skip_none=False)
        self.save_config_kwargs["text"] = text
        if self.config.subcommand == "fit" and not config.trainer.fast_dev_run:
            self._go_on(config, yaml.safe_load(text))

    def _go_on(self, config: Namespace, as_written: dict[str, Any]) -> None:
        """Have the run go on with an earlier one, if there is one to go on with."""
        trainer, is_first_rank = config.trainer, rank_zero_only.rank == 0  # type: ignore[attr-defined]
        options = logger_options(trainer.logger)
        folders = logged_folders(trainer.logger, trainer.default_root_dir)
        is_fixed = bool(folders) and (not options or options[0].get("version") is not None)
        found = None
        if config.resume in (True, "auto"):
            found = unfinished_run(folders, as_written, is_fixed, is_first_rank)
        elif config.resume not in (False, "off"):
            found = named_run(Path(config.resume), as_written, is_first_rank)
        elif is_fixed:
            check_unused(folders[0])
        if found is None:
            return
        if found.checkpoint is not None:
            config.ckpt_path = str(found.checkpoint)
        if not options:
            trainer.default_root_dir = str(found.folder)
        for logger in trainer.logger if isinstance(trainer.logger, list) else [trainer.logger]:
            for its_options in logger_options(logger):
                its_options.update(Namespace(save_dir=str(found.folder.parent), name="", version=found.folder.name))
                if logger["class_path"].endswith("TensorBoardLogger"):
                    # What was logged behind the checkpoint will be logged again.
                    logger["dict_kwargs"] = {"purge_step": found.step + 1 if found.step else 0}

    @override
    def _instantiate_trainer(self, config: dict[str, Any], callbacks: list[Callback]) -> Trainer:
        if config.get("enable_checkpointing") is False:  # Lightning would refuse
            callbacks = [callback for callback in callbacks if not isinstance(callback, Checkpoints)]
        return super()._instantiate_trainer(config, callbacks)

    @override
    def _run_subcommand(self, subcommand: str) -> None:
        try:
            super()._run_subcommand(subcommand)
        except BaseException:
            end_other_ranks(self.trainer)
            raise

    def before_fit(self) -> None:
        """Read what suites need before Lightning makes a run folder, which it does before any callback is asked."""
        for callback in self.trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, Retention):
                callback.read_data()

    before_validate = before_test = before_fit

    def after_fit(self) -> None:
        """Print what was learnt and what it cost."""
        folder = run_folder(self.trainer)  # asks all ranks
        if self.trainer.is_global_zero and (folder / METRICS_FILE).is_file():
            print_summary(folder)


def default_precision(accelerator: str) -> str:
    """``bf16-mixed`` where the hardware multiplies bf16 natively, else ``32-true`` (emulated bf16 is many times slower)."""
    if accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available():
        return "bf16-mixed" if torch.cuda.is_bf16_supported(including_emulation=False) else "32-true"
    if accelerator in ("auto", "cpu") and not torch.backends.mps.is_available():
        capabilities = torch.cpu.get_capabilities()
        native = any(capabilities.get(name) for name in ("avx512_bf16", "amx_bf16"))
        return "bf16-mixed" if native else "32-true"
    return "32-true"


def main(args: ArgsType = None) -> None:
    """Run the command line; mistakes of the user end in one line on stderr and exit status 2."""
    warnings.filterwarnings("ignore", ".*does not have many workers.*")  # batches are small and need no workers
    warnings.filterwarnings("ignore", ".*It is recommended to use `self.log.*sync_dist.*")  # what we log is of all ranks
    warnings.filterwarnings("ignore", ".*your dataloader is not resumable.*")  # it is: its batches know how many were served
    warnings.filterwarnings("ignore", ".*LeafSpec.*")  # Lightning 2.6 with torch 2.13
    words = sys.argv[1:] if args is None else args
    try:
        if isinstance(words, list) and words and words[0] in SUBCOMMANDS:
            importlib.import_module(SUBCOMMANDS[words[0]]).main(words[1:])
        else:
            MixSDCLI(args)
    except OSError as error:
        if error.errno not in _OF_THE_DISK:
            raise
        what = error.filename or "A file"
        fail(f"{what}: {error.strerror}. Make room or make it writable, and give the same command again: it goes on.")
    except ValueError as error:
        # The parser wraps what a constructor raises in an error of its own.
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, UserError):
            cause = cause.__cause__ or cause.__context__
        if cause is not None:
            fail(str(cause))
        # Where a value may be of several types, the parser keeps no more than the text of what each of them raised.
        if said := re.search(r"^\s*- (--.+)$", str(error), re.MULTILINE):
            fail(said.group(1))
        raise
    except RuntimeError:
        # When a rank ends, the connections of the others break. That says nothing which it has not said.
        if rank_and_count()[1] > 1 and not is_first_failure():
            raise SystemExit(2) from None
        raise


def fail(message: str) -> NoReturn:
    """Print one line on stderr, if no other rank has, and exit with status 2."""
    if is_first_failure():
        print(f"error: {printable(message)}", file=sys.stderr, flush=True)  # it may name what a file holds
    raise SystemExit(2)


def explain(message: str) -> str:
    """A parser's error message as one line that says what to do."""
    line = re.sub(r"\s+", " ", message).strip()
    if unknown := re.search(r"argument subcommand: invalid choice: '(.*?)' \(choose from (.+?)\)", line):
        choices = [*re.findall(r"[a-z]+", unknown.group(2)), *SUBCOMMANDS]
        return f"there is no subcommand '{unknown.group(1)}'; choose from {', '.join(choices)}."
    not_usable = r'Parser key "(model|data)":.*(?:dot import path string: |is abstract.*Given value: )(\S+)'
    if unknown := re.search(not_usable, line):
        key, name = unknown.groups()
        classes = _subclasses(KnowledgeModule if key == "model" else CorpusDataModule)
        kind = "method" if key == "model" else "corpus"
        return f"--{key}: there is no {kind} '{name}'; choose from {', '.join(sorted(classes))}."
    if unknown := re.search(r"(?:[Oo]ption '|unrecognized arguments: --)([\w.]+)", line):
        near = difflib.get_close_matches(unknown.group(1).rpartition(".")[2], _options(), n=1)
        hint = f" Did you mean {_options()[near[0]]}?" if near else ""
        return f"there is no option '{unknown.group(1)}' here.{hint} --print_config shows every key."
    if wrong := re.search(r'Parser key "([\w.]+)": (.+)', line):
        name, problem = wrong.groups()
        return f"{_options().get(name, name)}: {problem.rstrip('.')}. --print_config shows every key with its default."
    return f"{line.rstrip('.')}. --help shows what is accepted."


def _options() -> dict[str, str]:
    """Name of an option -> its flag, for all methods, corpora, the trainer and suites (whose settings may share a name)."""
    owners: list[tuple[str, type]] = [("--trainer", Trainer)]
    owners += [("--data", corpus) for corpus in _subclasses(CorpusDataModule).values()]
    owners += [("--model", method) for method in _subclasses(KnowledgeModule).values()]
    owners += [("init_args", suite) for suite in SUITES.values()]
    return {option: f"{flag}.{option}" for flag, owner in owners for option in inspect.signature(owner).parameters}


def _subclasses(base: type) -> dict[str, type]:
    """Name -> class, for all subclasses of ``base`` that have been imported and can be used as they are."""
    found: dict[str, type] = {}
    subclass: type
    for subclass in base.__subclasses__():
        if not inspect.isabstract(subclass):
            found[subclass.__name__] = subclass
        found.update(_subclasses(subclass))
    return found
