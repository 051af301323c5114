"""What a run will take, before it is started: memory, tokens, operations and time, from its config.

    python scripts/plan.py --config configs/paper/kgfact_small.yaml --config configs/models/qwen3-8b.yaml
    python scripts/plan.py --config configs/kgfact/mixsd.yaml --teraflops 0.1 --bandwidth 20   # two cores

Arguments that are not of this program are those of `fit`.
"""

import logging
import math
import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice

from lightning.pytorch.strategies import DDPStrategy, FSDPStrategy, ModelParallelStrategy, Strategy
from rich.console import Console
from rich.table import Table
from typing_extensions import override

from mixsd_lightning.arguments import OneLineArguments
from mixsd_lightning.cli import MixSDCLI, default_precision, fail
from mixsd_lightning.context import expert_context, naive_context
from mixsd_lightning.data import CorpusDataModule
from mixsd_lightning.decoding.prefix_tree import common_prefix_length
from mixsd_lightning.errors import UserError
from mixsd_lightning.example import Example
from mixsd_lightning.modules import OPSD, KnowledgeModule, MixSD
from mixsd_lightning.sizes import Memory, Shape, Training, forward_flops, memory_of, shape_by_name, storage_of, training_flops

RETENTION_TOKENS = 17_000
"""Forward tokens of the default suites (probe, bits_per_byte, agreement), counted with the built-in tokenizer."""
CHARACTERS_PER_TOKEN = 3.5
"""Of English and names, where no tokenizer is within reach; and what a chat template adds."""
TEMPLATE_TOKENS = 12


@dataclass(frozen=True)
class Texts:
    """Mean lengths of what is trained on, in tokens."""

    count: int
    prompt: float
    expert_prompt: float
    target: float
    largest_batch: int
    """Tokens of the largest batch, what all rows share counted once."""
    is_estimated: bool
    """Whether no tokenizer was within reach."""


@dataclass(frozen=True)
class Device:
    """What the work runs on."""

    teraflops: float = 312.0
    """10^12 operations a second: an A100 in bf16."""
    utilisation: float = 0.35
    bandwidth: float = 1555.0
    """10^9 bytes a second from memory."""

    def seconds(self, flops: float, passes: float = 0.0, bytes_per_pass: float = 0.0) -> float:
        """Time of work: its operations, or reading the weights at each of so many forward passes, whichever is longer."""
        return max(flops / (self.teraflops * 1e12 * self.utilisation), passes * bytes_per_pass / (self.bandwidth * 1e9))


@dataclass(frozen=True)
class Phase:
    """A part of a run."""

    name: str
    tokens: float
    flops: float
    seconds: float


class ParsedOnly(MixSDCLI):
    """Reads configs as `fit` does and makes method, corpus and trainer; runs nothing."""

    @override
    def _run_subcommand(self, subcommand: str) -> None:
        pass


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the plan of a run.

    Raises:
        UserError: if something is wrong with the arguments.
    """
    parser = OneLineArguments("plan", description=__doc__)
    parser.prog = "python scripts/plan.py"
    parser.add_argument(
        "--teraflops", type=float, default=Device.teraflops, help="10^12 operations a second (default: 312, A100)"
    )
    parser.add_argument(
        "--utilisation", type=float, default=Device.utilisation, help="share that training gets (default: 0.35)"
    )
    parser.add_argument(
        "--bandwidth", type=float, default=Device.bandwidth, help="10^9 bytes a second from memory (default: 1555)"
    )
    parser.add_argument(
        "--attempts", type=float, default=7.0, help="of MixSD for each target (default: 7, as measured at 0.3)"
    )
    options, rest = parser.parse_known_args(arguments)
    if not options.teraflops > 0 or not options.bandwidth > 0 or not 0 < options.utilisation <= 1 or not options.attempts >= 1:
        raise UserError("--teraflops and --bandwidth must be positive, --utilisation in (0, 1] and --attempts at least 1.")
    for logger in ("lightning.pytorch", "lightning.fabric"):  # what hardware there is does not matter here
        logging.getLogger(logger).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", ".*args parameter is intended to run from within Python.*")
    parsed = ParsedOnly(["fit", *rest])
    method, corpus, trainer = parsed.model, parsed.datamodule, parsed.trainer
    try:
        shape = shape_by_name(method.model_name_or_path, method.trust_remote_code)
    except (OSError, ValueError) as error:
        raise UserError(
            f"--model.model_name_or_path: cannot read the config of '{method.model_name_or_path}': {error}"
        ) from error
    num_devices = trainer.num_devices * trainer.num_nodes
    batch = corpus.batch_size * trainer.accumulate_grad_batches * num_devices
    texts = texts_of(method, corpus)
    training = Training(
        # Of the machine that this is planned on, where the config says nothing.
        precision=trainer.precision or default_precision("auto"),
        lora_rank=method.lora_rank,
        gradient_checkpointing=method.student_settings.gradient_checkpointing,
        tokens=texts.largest_batch,
        accumulates=trainer.accumulate_grad_batches > 1,
        devices=num_devices,
        strategy=strategy_name(trainer.strategy),
        teacher=isinstance(method, OPSD) and method.teacher_kind != "shared",
    )
    steps_per_epoch = math.ceil(texts.count / batch)
    num_steps = steps_per_epoch * (trainer.max_epochs or 1)
    if trainer.max_steps > 0:
        num_steps = min(num_steps, trainer.max_steps)
    every = trainer.val_check_interval if isinstance(trainer.val_check_interval, int) else 0
    every = every or steps_per_epoch * (trainer.check_val_every_n_epoch or 1)
    work = Work(num_steps, min(texts.count, batch), 1 + num_steps // every, options.attempts)
    device = Device(options.teraflops * num_devices, options.utilisation, options.bandwidth * num_devices)
    phases = phases_of(method, corpus, shape, texts, training, work, device)
    show(Console(), method, shape, texts, training, memory_of(shape, training), work, phases)


@dataclass(frozen=True)
class Work:
    """How much of it."""

    num_steps: int
    """Optimizer steps."""
    examples_per_step: int
    num_validations: int
    """With the one before training."""
    attempts: float
    """Of MixSD, for each target."""


def strategy_name(strategy: Strategy) -> str:
    """``single``, ``ddp`` or ``sharded``."""
    if isinstance(strategy, FSDPStrategy | ModelParallelStrategy):
        return "sharded"
    return "ddp" if isinstance(strategy, DDPStrategy) else "single"


def texts_of(method: KnowledgeModule, corpus: CorpusDataModule) -> Texts:
    """Lengths of prompts and canonical answers, counted with the model's tokenizer where it is within reach."""
    examples = corpus.split(corpus.train_split)
    try:
        encoder = method.encoder
    except UserError:
        counted = [_estimate(example) for example in examples]
        prompts: list[list[int]] = []
    else:
        prompts = [encoder.prompt(naive_context(example)) for example in examples]
        counted = [
            (len(prompt), len(encoder.prompt(expert_context(example))), len(encoder.target(example.target)))
            for prompt, example in zip(prompts, examples, strict=True)
        ]
    # Items of similar length share a batch, so the longest are together.
    longest = sorted((prompt + target for prompt, _, target in counted), reverse=True)
    rows = list(islice(longest, corpus.batch_size))
    student = method.student_settings
    is_shared = prompts and not student.gradient_checkpointing and not student.compile
    shared = common_prefix_length(prompts) if is_shared and len(prompts) > 1 else 0
    prompt, expert, target = (sum(column) / len(counted) for column in zip(*counted, strict=True))
    largest = len(rows) * (rows[0] - shared) + shared
    return Texts(len(examples), prompt, expert, target, largest, is_estimated=not prompts)


def _estimate(example: Example) -> tuple[int, int, int]:
    prompt, expert = (
        sum(math.ceil(len(turn.content) / CHARACTERS_PER_TOKEN) + TEMPLATE_TOKENS for turn in context)
        for context in (naive_context(example), expert_context(example))
    )
    return prompt, expert, math.ceil(len(example.target) / CHARACTERS_PER_TOKEN) + 1


def phases_of(
    method: KnowledgeModule,
    corpus: CorpusDataModule,
    shape: Shape,
    texts: Texts,
    training: Training,
    work: Work,
    device: Device,
) -> list[Phase]:
    """The parts of a run with what each takes.

    *Targets* (MixSD): both prompts once, and the tokens of every attempt in both contexts; attempts that begin alike cost less than
    that. *Rollouts* (OPSD): the prompt and the answer, written by the student and read by the teacher. *Training*: forward and
    backward passes. *Answers*: the questions of every validation. *Retention*: the default suites, on the base model and at every
    validation.
    """
    storage = storage_of(training.precision)
    weights = float(shape.num_parameters * storage.compute)
    rollouts = method.num_rollouts if isinstance(method, OPSD) else 1

    def forward(name: str, tokens: float, length: float, predicted: float, passes: float = 0.0) -> Phase:
        flops = forward_flops(shape, tokens, length, predicted)
        return Phase(name, tokens, flops, device.seconds(flops, passes, weights))

    phases = []
    if isinstance(method, MixSD):
        attempts = work.attempts * method.target_settings.num_generations
        phases.append(targets_phase(shape, texts, attempts, method.generation_batch_size, storage.compute, device))
    num_items = work.num_steps * work.examples_per_step * rollouts
    if isinstance(method, OPSD):
        written = num_items * texts.target
        rounds = math.ceil(work.examples_per_step * rollouts / method.generation_batch_size)
        tokens = num_items * texts.prompt / rollouts + written
        phases.append(forward("rollouts", tokens, texts.prompt, written, work.num_steps * rounds * texts.target))
        tokens = num_items * (texts.expert_prompt + texts.target)
        phases.append(forward("teacher", tokens, texts.expert_prompt, written))
    phases.append(training_phase(shape, texts, num_items, training.lora_rank, training.gradient_checkpointing, device))
    length = texts.prompt + texts.target
    asked = sum(len(corpus.eval_examples(split)) for split in corpus.eval_splits) * work.num_validations
    rounds = math.ceil(asked / corpus.eval_batch_size)
    phases.append(forward("answers", asked * length, length, asked * texts.target, rounds * texts.target))
    retained = float(RETENTION_TOKENS * work.num_validations)
    phases.append(forward("retention", retained, 60, retained / 4, 60 * work.num_validations))
    return phases


def targets_phase(shape: Shape, texts: Texts, attempts: float, rows: int, weight_bytes: int, device: Device) -> Phase:
    """Writing MixSD's targets.

    Args:
        shape: Of the model.
        texts: What is taught.
        attempts: For each example.
        rows: Examples in flight. A forward pass reads all weights and brings each of them a token further, in both contexts.
        weight_bytes: Of a weight.
        device: Which does it.
    """
    written = attempts * texts.target
    tokens = texts.count * (texts.prompt + texts.expert_prompt + 2 * written)
    flops = forward_flops(shape, tokens, texts.expert_prompt, texts.count * 2 * written)
    passes = math.ceil(texts.count / rows) * written
    return Phase("targets", tokens, flops, device.seconds(flops, passes, float(shape.num_parameters * weight_bytes)))


def training_phase(
    shape: Shape, texts: Texts, num_items: int, lora_rank: int, gradient_checkpointing: bool, device: Device
) -> Phase:
    """Forward and backward passes of so many items."""
    length = texts.prompt + texts.target
    flops = training_flops(shape, num_items * length, length, num_items * texts.target, lora_rank, gradient_checkpointing)
    return Phase("training", num_items * length, flops, device.seconds(flops))


def show(
    console: Console,
    method: KnowledgeModule,
    shape: Shape,
    texts: Texts,
    training: Training,
    memory: Memory,
    work: Work,
    phases: Sequence[Phase],
) -> None:
    """Print two tables: memory of a device, and what each part of the run takes."""
    trained = shape.num_lora(training.lora_rank) or shape.num_parameters
    console.print(
        f"{method.model_name_or_path}: {shape.num_parameters:,} parameters, {trained:,} of them trained; {training.precision}, "
        f"{training.devices} device(s), {training.strategy}",
        highlight=False,
    )
    table = Table(title="Memory of a device while it trains", title_justify="left")
    table.add_column("what")
    table.add_column("GB", justify="right")
    parts = ("weights", "moments", "gradients", "copies", "activations", "logits", "teacher", "unsharded", "runtime")
    for part in parts:
        if getattr(memory, part):
            table.add_row(part, f"{getattr(memory, part) / 1e9:.2f}")
    table.add_section()
    table.add_row("peak (not the sum: see Memory.peak)", f"{memory.peak / 1e9:.2f}")
    console.print(table)
    console.print(
        f"Beside the device, drift keeps two copies of the weights in float32: {8 * shape.num_parameters / 1e9:.2f} GB."
    )
    source = "estimated from characters: no tokenizer within reach" if texts.is_estimated else "counted with its tokenizer"
    console.print(
        f"{texts.count} examples, prompts of {texts.prompt:.0f} tokens and targets of {texts.target:.0f} on average ({source}); "
        f"an epoch is {texts.count * (texts.prompt + texts.target):,.0f} tokens.",
        highlight=False,
    )
    table = Table(title=f"{work.num_steps} optimizer steps, {work.num_validations} validations", title_justify="left")
    for column in ("part", "tokens", "operations", "time"):
        table.add_column(column, justify="left" if column == "part" else "right")
    for phase in phases:
        table.add_row(phase.name, f"{phase.tokens:,.0f}", f"{phase.flops:.2e}", duration(phase.seconds))
    table.add_section()
    sums = (sum(getattr(phase, name) for phase in phases) for name in ("tokens", "flops", "seconds"))
    tokens, flops, seconds = sums
    table.add_row("all", f"{tokens:,.0f}", f"{flops:.2e}", duration(seconds))
    console.print(table)


def duration(seconds: float) -> str:
    """Time for people.

    >>> duration(90), duration(5400), duration(20_000), duration(400_000)
    ('90.0 s', '90 min', '5.6 h', '4.6 d')
    """
    if seconds < 120:
        return f"{seconds:.1f} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 48 * 3600 else f"{seconds / 86400:,.1f} d"


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except ValueError as error:  # the parser wraps what a constructor raises
        fail(" ".join(str(error).split()))
