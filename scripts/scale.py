"""What teaching 10⁴ to 10⁷ facts to large models takes: tokens, operations, memory and time, from formulas alone.

    python scripts/scale.py                                # prints Markdown
    python scripts/scale.py --attempts 3.4 --epochs 10     # as with protect_answer; fewer epochs

Facts are as long as KGFact's. Targets are written once (two contexts, `--attempts` each), then MixSD trains on all of them for
`--epochs`. A plan of one run, from its config, is `scripts/plan.py`.
"""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from plan import Device, duration
from transformers import LlamaConfig

from mixsd_lightning.sizes import Shape, Training, forward_flops, memory_of, shape_by_name, shape_of, training_flops

LLAMA_70B = LlamaConfig(
    vocab_size=128256,
    hidden_size=8192,
    intermediate_size=28672,
    num_hidden_layers=80,
    num_attention_heads=64,
    num_key_value_heads=8,
    head_dim=128,
)
"""Llama-3.1-70B, as the config.json on the Hub has it."""
BF16 = 2
"""Bytes of a weight while targets are written."""
LORA_RANK = 64


@dataclass(frozen=True)
class Facts:
    """What is taught. Lengths are means over KGFact-Small with the built-in model's tokenizer."""

    count: int
    prompt: int = 52
    expert_prompt: int = 69
    target: int = 18
    attempts: float = 7.0
    """For each target."""
    epochs: int = 10

    @property
    def written_tokens(self) -> float:
        """Forward tokens of writing all targets: both prompts, and every attempt in both contexts."""
        return self.count * (self.prompt + self.expert_prompt + 2 * self.attempts * self.target)

    @property
    def trained_tokens(self) -> float:
        """Of all epochs."""
        return float(self.epochs * self.count * (self.prompt + self.target))


@dataclass(frozen=True)
class Estimate:
    """What teaching some facts to a model takes, on any number of equal devices."""

    shape: Shape
    facts: Facts

    @property
    def writing_flops(self) -> float:
        """Of all targets; the head is asked for every token that is attempted, in both contexts."""
        attempted = 2 * self.facts.count * self.facts.attempts * self.facts.target
        return forward_flops(self.shape, self.facts.written_tokens, self.facts.expert_prompt, attempted)

    @property
    def training_flops(self) -> float:
        """Of all epochs, with every activation computed twice (gradient checkpointing)."""
        length = self.facts.prompt + self.facts.target
        predicted = self.facts.epochs * self.facts.count * self.facts.target
        return training_flops(self.shape, self.facts.trained_tokens, length, predicted, gradient_checkpointing=True)

    def seconds(self, device: Device, rows: int) -> tuple[float, float]:
        """Time of writing targets and of training.

        Args:
            device: All devices together: nothing is lost between them, as facts are shared out and gradients are few.
            rows: Facts that a device has in flight while targets are written. A forward pass reads all weights and brings each of
                them a token further, in both contexts.
        """
        passes = self.facts.count / rows * self.facts.attempts * self.facts.target
        writing = device.seconds(self.writing_flops, passes, self.shape.num_parameters * BF16)
        return writing, device.seconds(self.training_flops)


def peak_memory(shape: Shape, devices: int, lora_rank: int = 0) -> int:
    """Bytes of a device while it trains 16 facts: states in bf16, shared out among all devices (FSDP2)."""
    training = Training(
        precision="bf16-true",
        lora_rank=lora_rank,
        gradient_checkpointing=True,
        tokens=16 * (Facts.prompt + Facts.target),
        devices=devices,
        strategy="sharded" if devices > 1 else "single",
    )
    return memory_of(shape, training).peak


def print_memory(shapes: Mapping[str, Shape], devices: Sequence[int], capacity: float) -> None:
    """A row for each model: the GB that a device holds, for all weights and for an adapter."""

    def cell(shape: Shape, number: int, rank: int) -> str:
        peak = peak_memory(shape, number, rank) / 1e9
        return f"{peak:.0f}" + (" (too much)" if peak > capacity else "")

    _print_row("GB of a device", *(f"{number}: all weights | LoRA" for number in devices))
    _print_row(*["---"] * (1 + 2 * len(devices)))
    for name, shape in shapes.items():
        _print_row(name, *(cell(shape, number, rank) for number in devices for rank in (0, LORA_RANK)))


def print_times(estimates: Mapping[str, Sequence[Estimate]], devices: Sequence[int], one: Device, rows: int) -> None:
    """A row for each model and number of facts: tokens, operations, and the time of both parts on so many devices."""
    _print_row(
        "model", "facts", "tokens written", "trained", "operations", *(f"{number}: targets | training" for number in devices)
    )
    _print_row(*["---"] * (5 + 2 * len(devices)))
    for name, several in estimates.items():
        for each in several:
            flops = each.writing_flops + each.training_flops
            counts = (each.facts.count, each.facts.written_tokens, each.facts.trained_tokens, flops)
            together = (Device(one.teraflops * number, one.utilisation, one.bandwidth * number) for number in devices)
            times = (duration(seconds) for device in together for seconds in each.seconds(device, rows))
            _print_row(name, *(f"{count:.1e}".replace("e+0", "e").replace("e+", "e") for count in counts), *times)


def _print_row(*cells: str) -> None:
    print(f"| {' | '.join(cells)} |")


def main(arguments: Sequence[str] | None = None) -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--facts", type=float, nargs="+", default=[1e4, 1e5, 1e6, 1e7])
    parser.add_argument("--devices", type=int, nargs="+", default=[1, 8, 64])
    parser.add_argument("--attempts", type=float, default=Facts.attempts, help="of each target (default: 7, measured at 0.3)")
    parser.add_argument("--epochs", type=int, default=Facts.epochs)
    parser.add_argument("--rows", type=int, default=256, help="facts that a device has in flight while targets are written")
    parser.add_argument("--teraflops", type=float, default=Device.teraflops, help="of a device (default: 312, A100 in bf16)")
    parser.add_argument(
        "--utilisation", type=float, default=Device.utilisation, help="share of it that is reached (default: 0.35)"
    )
    parser.add_argument("--bandwidth", type=float, default=Device.bandwidth, help="GB a second (default: 1555, A100)")
    parser.add_argument("--memory", type=float, default=80.0, help="GB of a device (default: 80)")
    options = parser.parse_args(arguments)
    shapes = {name: shape_by_name(f"Qwen/Qwen3-{name}") for name in ("1.7B", "8B")} | {"70B": shape_of(LLAMA_70B)}
    jobs = [Facts(int(count), attempts=options.attempts, epochs=options.epochs) for count in options.facts]
    print_memory(shapes, options.devices, options.memory)
    print()
    device = Device(options.teraflops, options.utilisation, options.bandwidth)
    estimates = {name: [Estimate(shape, facts) for facts in jobs] for name, shape in shapes.items()}
    print_times(estimates, options.devices, device, options.rows)


if __name__ == "__main__":
    main()
