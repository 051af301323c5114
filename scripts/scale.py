"""What teaching 10⁴ to 10⁷ facts to large models takes: tokens, operations, memory and time, from formulas alone.

    python scripts/scale.py                                # prints Markdown
    python scripts/scale.py --attempts 3.4 --epochs 10     # as with protect_answer; fewer epochs

Facts are as long as KGFact's. Targets are written once (two contexts, `--attempts` each), then MixSD trains on all of them for
`--epochs`. A plan of one run, from its config, is `scripts/plan.py`.
"""

import argparse
from collections.abc import Iterable, Mapping, Sequence

from plan import Device, Phase, Texts, duration, targets_phase, training_phase
from transformers import LlamaConfig

from mixsd_lightning.sizes import Shape, Training, memory_of, shape_by_name, shape_of

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
PROMPT, EXPERT_PROMPT, TARGET = 52, 69, 18
"""Mean tokens over KGFact-Small with the built-in model's tokenizer."""
BATCH_SIZE = 16
"""Facts that a device trains at once."""


def phases_of(shape: Shape, num_facts: int, attempts: float, epochs: int, rows: int, device: Device) -> tuple[Phase, Phase]:
    """Writing the targets of so many facts, and training on them with gradient checkpointing.

    Args:
        shape: Of the model.
        num_facts: What is taught.
        attempts: For each target.
        epochs: Of training.
        rows: Facts that a device has in flight while targets are written.
        device: All devices together: nothing is lost between them, as facts are shared out and gradients are few.
    """
    texts = Texts(num_facts, PROMPT, EXPERT_PROMPT, TARGET, BATCH_SIZE * (PROMPT + TARGET), is_estimated=True)
    targets = targets_phase(shape, texts, attempts, rows, BF16, device)
    return targets, training_phase(shape, texts, epochs * num_facts, 0, True, device)


def peak_memory(shape: Shape, devices: int, lora_rank: int = 0) -> int:
    """Bytes of a device while it trains 16 facts: states in bf16, shared out among all devices (FSDP2)."""
    training = Training(
        precision="bf16-true",
        lora_rank=lora_rank,
        gradient_checkpointing=True,
        tokens=BATCH_SIZE * (PROMPT + TARGET),
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


def print_times(rows: Iterable[tuple[str, int, Sequence[tuple[Phase, Phase]]]], devices: Sequence[int]) -> None:
    """A row for each model and number of facts: tokens, operations, and the time of both parts on so many devices."""
    _print_row(
        "model", "facts", "tokens written", "trained", "operations", *(f"{number}: targets | training" for number in devices)
    )
    _print_row(*["---"] * (5 + 2 * len(devices)))
    for name, num_facts, found in rows:
        targets, training = found[0]
        counts = (num_facts, targets.tokens, training.tokens, targets.flops + training.flops)
        written = (f"{count:.1e}".replace("e+0", "e").replace("e+", "e") for count in counts)
        _print_row(name, *written, *(duration(phase.seconds) for phases in found for phase in phases))


def _print_row(*cells: str) -> None:
    print(f"| {' | '.join(cells)} |")


def main(arguments: Sequence[str] | None = None) -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--facts", type=float, nargs="+", default=[1e4, 1e5, 1e6, 1e7])
    parser.add_argument("--devices", type=int, nargs="+", default=[1, 8, 64])
    parser.add_argument("--attempts", type=float, default=7.0, help="of each target (default: 7, measured at 0.3)")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--rows", type=int, default=256, help="facts that a device has in flight while targets are written")
    parser.add_argument("--teraflops", type=float, default=Device.teraflops, help="of a device (default: 312, A100 in bf16)")
    parser.add_argument(
        "--utilisation", type=float, default=Device.utilisation, help="share of it that is reached (default: 0.35)"
    )
    parser.add_argument("--bandwidth", type=float, default=Device.bandwidth, help="GB a second (default: 1555, A100)")
    parser.add_argument("--memory", type=float, default=80.0, help="GB of a device (default: 80)")
    options = parser.parse_args(arguments)
    shapes = {name: shape_by_name(f"Qwen/Qwen3-{name}") for name in ("1.7B", "8B")} | {"70B": shape_of(LLAMA_70B)}
    print_memory(shapes, options.devices, options.memory)
    print()
    together = [
        Device(options.teraflops * number, options.utilisation, options.bandwidth * number) for number in options.devices
    ]
    rows = (
        (
            name,
            int(count),
            [phases_of(shape, int(count), options.attempts, options.epochs, options.rows, device) for device in together],
        )
        for name, shape in shapes.items()
        for count in options.facts
    )
    print_times(rows, options.devices)


if __name__ == "__main__":
    main()
