"""What a full-vocabulary divergence costs: whole logits, checkpointed chunks, and gradients computed in the forward pass.

    python scripts/bench/divergence.py    # about five minutes

Reverse KL from hidden states, forward and backward, one thread, float32; every pass in a process of its own, whose
memory counts from before the inputs are made. The last line of the output is JSON.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import torch
from memory import AllocationWatch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from mixsd_lightning.losses.chunked import Head, summed_token_loss
from mixsd_lightning.losses.divergence import DivergenceSettings, TeacherDivergence

VOCABULARY, HIDDEN = 49_152, 576
CHUNK = 256


def reverse_kl(hidden_NH: Tensor, weight_VH: Tensor, teacher_NH: Tensor) -> Tensor:
    """As one writes it down, summed."""
    log_p_NV = (hidden_NH @ weight_VH.T).log_softmax(-1)
    with torch.no_grad():
        log_q_NV = (teacher_NH @ weight_VH.T).log_softmax(-1)
    return (log_p_NV.exp() * (log_p_NV - log_q_NV)).sum()


def full(hidden_NH: Tensor, weight_VH: Tensor, teacher_NH: Tensor) -> Tensor:
    """All logits at once."""
    return reverse_kl(hidden_NH, weight_VH, teacher_NH)


def checkpointed(hidden_NH: Tensor, weight_VH: Tensor, teacher_NH: Tensor) -> Tensor:
    """A chunk's logits at a time, computed again in the backward pass."""
    total = hidden_NH.new_zeros(())
    for start in range(0, len(hidden_NH), CHUNK):
        rows = slice(start, start + CHUNK)
        total = total + checkpoint(reverse_kl, hidden_NH[rows], weight_VH, teacher_NH[rows], use_reentrant=False)
    return total


def ours(hidden_NH: Tensor, weight_VH: Tensor, teacher_NH: Tensor) -> Tensor:
    """`summed_token_loss`."""
    divergence = TeacherDivergence(teacher_NH, Head(weight_VH.detach()), DivergenceSettings("reverse_kl"))
    return summed_token_loss(hidden_NH, Head(weight_VH), divergence)[0]


MODES: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {"full": full, "checkpointed": checkpointed, "ours": ours}


def make_inputs(num_tokens: int, vocabulary: int = VOCABULARY) -> tuple[Tensor, Tensor, Tensor]:
    """Hidden states, head and the teacher's states; the first two want gradients."""
    generator = torch.Generator().manual_seed(0)
    hidden_NH, teacher_NH = (torch.randn(num_tokens, HIDDEN, generator=generator) for _ in range(2))
    weight_VH = 0.05 * torch.randn(vocabulary, HIDDEN, generator=generator)
    return hidden_NH.requires_grad_(), weight_VH.requires_grad_(), teacher_NH


def measure(mode: str, num_tokens: int) -> None:
    """One pass of one mode: what :func:`measure_apart` runs."""
    torch.set_num_threads(1)
    MODES[mode](*make_inputs(8, 64)).backward()  # whatever a first pass sets up
    with AllocationWatch() as watch:
        inputs = make_inputs(num_tokens)
        start = time.perf_counter()
        MODES[mode](*inputs).backward()
        seconds = time.perf_counter() - start
    print(json.dumps({"seconds": seconds, "mib": watch.megabytes}))


def measure_apart(mode: str, num_tokens: int) -> dict[str, float]:
    """Seconds and peak MiB of a pass."""
    command = [sys.executable, __file__, "--only", mode, "--tokens", str(num_tokens)]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return dict(json.loads(output.splitlines()[-1]))


def largest_difference(num_tokens: int) -> float:
    """Largest difference between the gradients of `full` and `ours`, as a share of the largest gradient."""
    gradients = []
    for mode in (full, ours):
        hidden_NH, weight_VH, teacher_NH = make_inputs(num_tokens)
        gradients.append(torch.autograd.grad(mode(hidden_NH, weight_VH, teacher_NH), [hidden_NH, weight_VH]))
    return max(float((one - other).abs().max() / one.abs().max()) for one, other in zip(*gradients, strict=True))


def main(num_tokens: int, repeats: int) -> None:
    """The table, and the JSON line."""
    runs = {mode: [] for mode in MODES}  # type: dict[str, list[dict[str, float]]]
    for _ in range(repeats):
        for mode, of in runs.items():
            of.append(measure_apart(mode, num_tokens))
    seconds = {mode: statistics.median(run["seconds"] for run in of) for mode, of in runs.items()}
    mib = {mode: statistics.median(run["mib"] for run in of) for mode, of in runs.items()}
    table = Table(title=f"Reverse KL of {num_tokens} tokens, {VOCABULARY} words, {HIDDEN} hidden, one thread")
    for heading in ("mode", "seconds", "of full", "peak MiB", "of full"):
        table.add_column(heading, justify="left" if heading == "mode" else "right")
    for mode in MODES:
        shares = seconds[mode] / seconds["full"], mib[mode] / mib["full"]
        table.add_row(mode, f"{seconds[mode]:.2f}", f"{shares[0]:.2f}", f"{mib[mode]:.0f}", f"{shares[1]:.2f}")
    Console().print(table)
    result = {
        "time_vs_full": round(seconds["ours"] / seconds["full"], 3),
        "memory_vs_full": round(mib["ours"] / mib["full"], 3),
        "largest_gradient_difference": largest_difference(min(num_tokens, 512)),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--only", choices=MODES, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.only:
        measure(arguments.only, arguments.tokens)
    else:
        main(arguments.tokens, arguments.repeats)
