"""What an accepted mixed target costs, against the published algorithm, a careful loop, and plain decoding.

    python scripts/bench/targets.py    # three quarters of an hour on two cores

SmolLM2-135M and KGFact-Small, mixing rate 0.3, temperature 0, at most 30 attempts of 48 tokens, 32 at once, float32. The
last line of the output is JSON.

* ``resend``: the published cost model: each token is a forward over the whole prompt and prefix of the picked context, and
  a rejected attempt starts from nothing. It would take an hour, so every n-th of its forwards is timed, in full batches.
* ``paired``: `generate` with a logits processor on naive and expert rows side by side; a rejected attempt starts anew.
* ``plain``: greedy `generate` under the expert prompt, as many tokens as the targets have; no mixing, no retries.
* ``ours``: `MixingEngine`.
"""

import argparse
import json
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from memory import peak_megabytes
from rich.console import Console
from rich.table import Table
from transformers import LogitsProcessor

from mixsd_lightning.builtin_model import BUILTIN_MODEL
from mixsd_lightning.context import ChatEncoder, expert_context, naive_context
from mixsd_lightning.data import KGFact
from mixsd_lightning.decoding.engine import MixingEngine
from mixsd_lightning.decoding.mixing import (
    EXPERT,
    MixedCompletion,
    MixingResult,
    MixingSettings,
    MixingTask,
    draws,
    is_looping,
)
from mixsd_lightning.example import Example
from mixsd_lightning.models import load_student, load_tokenizer, stop_token_ids
from mixsd_lightning.targets import is_accepted

BATCH_SIZE = 32
MAX_ATTEMPTS = 30
SETTINGS = MixingSettings(mixing_rate=0.3, temperature=0.0, max_new_tokens=48)


class Workload:
    """The facts, the model, and when a completion counts."""

    def __init__(self, examples: Sequence[Example]) -> None:
        self.model = load_student(BUILTIN_MODEL).eval()
        self.encoder = ChatEncoder(load_tokenizer(BUILTIN_MODEL))
        self.stop_ids = stop_token_ids(self.model, self.encoder.end_of_turn_id)
        self.examples = {example.id: example for example in examples}
        self.tasks = [
            MixingTask(id, 0, self.encoder.prompt(naive_context(example)), self.encoder.prompt(expert_context(example)))
            for id, example in self.examples.items()
        ]

    def accept(self, task: MixingTask, completion: MixedCompletion) -> bool:
        text = self.encoder.decode(completion.token_ids)
        return is_accepted(self.examples[task.example_id], text, completion.finish_reason)


@dataclass
class Run:
    """One pass over all facts."""

    seconds: float
    evaluated_tokens: int = 0
    results: dict[str, MixingResult] = field(default_factory=dict)
    attempts: list[tuple[MixingTask, int, MixedCompletion]] = field(default_factory=list)

    @property
    def accepted(self) -> int:
        return sum(result.accepted for result in self.results.values())


def ours(workload: Workload, settings: MixingSettings = SETTINGS) -> Run:
    """`MixingEngine`."""
    engine = MixingEngine(workload.model, settings, workload.stop_ids, BATCH_SIZE)
    start = time.perf_counter()
    results = {result.task.example_id: result for result in engine.generate(workload.tasks, workload.accept, MAX_ATTEMPTS)}
    return Run(time.perf_counter() - start, engine.statistics.evaluated_tokens, results)


class PickedContext(LogitsProcessor):
    """Makes both rows of a pair take the most probable token of the context that the coin picks."""

    def __init__(self, contexts_BT: torch.Tensor, prompt_length: int) -> None:
        self._contexts_BT = contexts_BT
        self._prompt_length = prompt_length

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        num_pairs = len(self._contexts_BT)
        picked_B = self._contexts_BT[:, input_ids.shape[1] - self._prompt_length]
        tokens_B = scores.view(2, num_pairs, -1)[picked_B, torch.arange(num_pairs)].argmax(-1)
        forced = torch.full_like(scores, -torch.inf)
        forced[torch.arange(2 * num_pairs), tokens_B.repeat(2)] = 0.0
        return forced


def paired(workload: Workload) -> Run:
    """`generate` on naive and expert rows side by side."""
    run = Run(0.0)
    start = time.perf_counter()
    waiting = [(task, 1) for task in workload.tasks]
    while waiting:
        wave, waiting = waiting[:BATCH_SIZE], waiting[BATCH_SIZE:]
        contexts_BT = torch.stack([torch.from_numpy(draws(task, attempt, SETTINGS)[0]) for task, attempt in wave])
        prompts = [task.naive_prompt for task, _ in wave] + [task.expert_prompt for task, _ in wave]
        tokens_NT = generate(workload, prompts, SETTINGS.max_new_tokens, contexts_BT)[: len(wave)]
        run.evaluated_tokens += sum(map(len, prompts)) + 2 * tokens_NT.numel()
        again = []
        for (task, attempt), contexts_T, tokens_T in zip(wave, contexts_BT, tokens_NT.tolist(), strict=True):
            completion = cut(tokens_T, contexts_T.tolist(), workload.stop_ids)
            run.attempts.append((task, attempt, completion))
            accepted = workload.accept(task, completion)
            if accepted or attempt == MAX_ATTEMPTS:
                run.results[task.example_id] = MixingResult(task, attempt, completion, accepted)
            else:
                again.append((task, attempt + 1))
        waiting = again + waiting
    run.seconds = time.perf_counter() - start
    return run


def cut(tokens: list[int], contexts: list[int], stop_ids: frozenset[int]) -> MixedCompletion:
    """What the process would have written: nothing after a stop token or a loop."""
    completion = MixedCompletion(finish_reason="max_new_tokens")
    for token, context in zip(tokens, contexts, strict=False):
        completion.token_ids.append(token)
        completion.from_expert.append(context == EXPERT)
        if token in stop_ids or is_looping(completion.token_ids):
            completion.finish_reason = "stop" if token in stop_ids else "repetition"
            break
    return completion


def generate(
    workload: Workload, prompts: list, num_tokens: int, contexts_BT: torch.Tensor | None = None, exactly: bool = False
) -> torch.Tensor:
    """Greedy `generate` of left-padded prompts; the new tokens."""
    longest = max(map(len, prompts))
    input_ids = torch.tensor([[0] * (longest - len(prompt)) + list(prompt) for prompt in prompts])
    lengths = torch.tensor(list(map(len, prompts)))
    processors = [] if contexts_BT is None else [PickedContext(contexts_BT, longest)]
    output = workload.model.generate(
        input_ids,
        attention_mask=(torch.arange(longest) >= longest - lengths[:, None]).long(),
        logits_processor=processors,
        do_sample=False,
        min_new_tokens=num_tokens if exactly else None,
        max_new_tokens=num_tokens,
        eos_token_id=sorted(workload.stop_ids),
        pad_token_id=0,
    )
    return output[:, longest:]


def plain(workload: Workload, num_tokens: int) -> Run:
    """Greedy `generate` under the expert prompt, ``num_tokens`` for each fact."""
    start = time.perf_counter()
    prompts = [task.expert_prompt for task in workload.tasks]
    for first in range(0, len(prompts), BATCH_SIZE):
        generate(workload, prompts[first : first + BATCH_SIZE], num_tokens, exactly=True)
    return Run(time.perf_counter() - start, sum(map(len, prompts)) + num_tokens * len(prompts))


@torch.no_grad()
def resend(workload: Workload, attempts: list[tuple[MixingTask, int, MixedCompletion]], every: int) -> Run:
    """Every n-th forward of the published loop, in full batches; seconds are scaled up to all of them."""
    sequences = []
    for task, _, completion in attempts:
        for position, is_expert in enumerate(completion.from_expert):
            prompt = task.expert_prompt if is_expert else task.naive_prompt
            sequences.append([*prompt, *completion.token_ids[:position]])
    batches = [sequences[first : first + BATCH_SIZE] for first in range(0, len(sequences), BATCH_SIZE)]
    timed = batches[::every]
    start = time.perf_counter()
    for batch in timed:
        longest = max(map(len, batch))
        input_ids = torch.tensor([[0] * (longest - len(ids)) + ids for ids in batch])
        lengths = torch.tensor(list(map(len, batch)))
        mask = (torch.arange(longest) >= longest - lengths[:, None]).long()
        workload.model(input_ids=input_ids, attention_mask=mask, use_cache=False, logits_to_keep=1).logits.argmax(-1)
    seconds = (time.perf_counter() - start) * len(batches) / len(timed)
    return Run(seconds, sum(map(len, sequences)))


def compare(num_facts: int | None, repeats: int, resend_every: int) -> None:
    """The table, and the JSON line."""
    console = Console()
    workload = Workload(KGFact(preset="KGFact-Small").split("train")[:num_facts])
    runs: dict[str, list[Run]] = {"resend": [], "paired": [], "plain": [], "ours": []}
    for repeat in range(repeats):
        mine, peer = ours(workload), paired(workload)
        if (got := {id: result[1:] for id, result in mine.results.items()}) != (
            expected := {id: result[1:] for id, result in peer.results.items()}
        ):
            differing = [id for id in expected if got.get(id) != expected[id]]
            sys.exit(f"ours and paired differ for {', '.join(differing)}")
        lengths = [len(result.completion.token_ids) for result in peer.results.values() if result.accepted]
        runs["ours"].append(mine)
        runs["paired"].append(peer)
        runs["plain"].append(plain(workload, round(statistics.mean(lengths))))
        runs["resend"].append(resend(workload, peer.attempts, resend_every))
        console.print(
            f"pass {repeat + 1} of {repeats}: " + ", ".join(f"{name} {of[-1].seconds:.0f} s" for name, of in runs.items())
        )
    accepted, attempts = runs["ours"][0].accepted, sum(result.attempt for result in runs["ours"][0].results.values())
    seconds = {name: statistics.median(run.seconds for run in of) for name, of in runs.items()}
    per_token = {name: seconds[name] / of[0].evaluated_tokens for name, of in runs.items()}
    memory = {name: peak_of(name) for name in ("paired", "plain", "ours")}
    table = Table(title=f"{len(workload.tasks)} facts, {accepted} accepted in {attempts} attempts, {machine()}")
    for heading in ("mode", "s per accepted target", "of ours", "evaluated tokens per target", "ms per token", "peak MB"):
        table.add_column(heading, justify="left" if heading == "mode" else "right")
    for name, of in runs.items():
        table.add_row(
            name,
            f"{seconds[name] / accepted:.2f}",
            f"{seconds[name] / seconds['ours']:.2f}",
            f"{of[0].evaluated_tokens / accepted:.0f}",
            f"{1000 * per_token[name]:.2f}",
            f"{memory[name]:.0f}" if name in memory else "",
        )
    console.print(table)
    print(
        json.dumps(
            {
                "vs_resend": round(seconds["resend"] / seconds["ours"], 2),
                "vs_paired": round(seconds["paired"] / seconds["ours"], 2),
                "token_cost_vs_plain": round(per_token["ours"] / per_token["plain"], 2),
                "memory_vs_plain": round(memory["ours"] / memory["plain"], 2),
                "accepted": accepted,
                "attempts": attempts,
            }
        )
    )


def peak_of(mode: str) -> float:
    """Peak resident megabytes of a mode on one batch of facts, in a process of its own."""
    command = [sys.executable, __file__, "--only", mode, "--facts", str(BATCH_SIZE)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])


def measure(mode: str, num_facts: int | None) -> None:
    """Print the peak memory of one mode: what :func:`peak_of` runs."""
    workload = Workload(KGFact(preset="KGFact-Small").split("train")[:num_facts])
    modes: dict[str, Callable[[], Run]] = {
        "ours": lambda: ours(workload),
        "paired": lambda: paired(workload),
        "plain": lambda: plain(workload, SETTINGS.max_new_tokens),
    }
    modes[mode]()
    print(peak_megabytes())


def machine() -> str:
    """The processor, and how much of it is used."""
    name = platform.processor() or platform.machine()
    if (details := Path("/proc/cpuinfo")).exists():
        models = [line.split(":")[1].strip() for line in details.read_text().splitlines() if line.startswith("model name")]
        name = models[0] if models else name
    return f"{name}, {torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--facts", type=int, help="take only the first n facts")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--resend-every", type=int, default=40, help="time every n-th forward of `resend`")
    parser.add_argument("--only", choices=("ours", "paired", "plain"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.only:
        measure(arguments.only, arguments.facts)
    else:
        compare(arguments.facts, arguments.repeats, arguments.resend_every)
