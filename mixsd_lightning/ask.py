"""Ask a trained model and its base model the same questions, side by side."""

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text
from transformers import PreTrainedModel

from mixsd_lightning.arguments import OneLineArguments
from mixsd_lightning.context import ChatEncoder, Message
from mixsd_lightning.decoding.generation import Sampling, roll_out
from mixsd_lightning.disk_cache import cache_dir
from mixsd_lightning.errors import UserError, printable, require
from mixsd_lightning.export import SETTINGS_FILE
from mixsd_lightning.models import load_student, load_tokenizer, stop_token_ids, window_of, without_lora
from mixsd_lightning.trained import Settings, read_settings, read_trained, rebuild_corpus
from mixsd_lightning.verdict import Asked, TaughtCorpus

NARROW = 80
"""Columns of a terminal below which the answers stand one under the other."""
_HELP = """Type a question and press Enter: the base model and the trained one answer it. Each question stands alone.
A question of the corpus is asked as it was taught, with how to answer; anything else as you type it.
Arrow keys bring earlier questions back. Ctrl-C stops an answer. Ctrl-D ends."""


def main(arguments: Sequence[str]) -> None:
    """``python -m mixsd_lightning ask RUN_OR_CHECKPOINT_OR_HF_FOLDER ["prompt" ...]``.

    Raises:
        UserError: if something is wrong with the arguments or what they name.
    """
    parser = OneLineArguments("ask", description=__doc__)
    where = "a run folder, a checkpoint, or a Hugging Face folder"
    parser.add_argument("trained", metavar="RUN_OR_CHECKPOINT_OR_HF_FOLDER", help=where)
    parser.add_argument("prompts", metavar="prompt", nargs="*", help="what to ask; without any, questions are read one by one")
    parser.add_argument("--max_new_tokens", type=int, default=128, help="longest answer, in tokens (default: 128)")
    parser.add_argument("--temperature", type=float, default=0.0, help="of the answers; 0 is greedy (default: 0)")
    parser.add_argument(
        "--base", metavar="MODEL", help="the model to compare with; by default the one that training began with"
    )
    parser.add_argument(
        "--corpus", metavar="CLASS_PATH", help="a corpus of your own that was taught; it is imported, as no file may ask for"
    )
    parser.add_argument("--trust_remote_code", action="store_true", help="allow code that comes with a model to run")
    options = parser.parse_args(arguments)
    require("max_new_tokens", options.max_new_tokens, options.max_new_tokens >= 1, "at least 1")
    require("temperature", options.temperature, options.temperature >= 0, "at least 0")
    pair, settings = load_pair(options.trained, options.base, options.trust_remote_code)
    corpus, note = None, "the settings of its training are not known here"
    if settings is not None:
        try:
            corpus = TaughtCorpus(rebuild_corpus(settings, options.corpus))
        except UserError as error:
            note = printable(str(error))
    console = Console()
    if corpus is None:
        console.print(Text(f"Answers are not marked: {note}"))
    sampling = Sampling(options.temperature)
    for prompt in options.prompts:
        answer_side_by_side(console, pair, corpus, prompt, sampling, options.max_new_tokens)
    for prompt in () if options.prompts else typed_questions():
        try:
            answer_side_by_side(console, pair, corpus, prompt, sampling, options.max_new_tokens)
        except UserError as error:  # too long; the next may be shorter
            print(f"error: {error}", file=sys.stderr)
        except KeyboardInterrupt:
            print()


@dataclass
class Speaker:
    """A model that answers."""

    name: str
    model: PreTrainedModel
    encoder: ChatEncoder
    is_adapter_off: bool = False
    """Whether it is a trained model with its LoRA adapter switched off: the base model, without a second copy of it."""

    def answer(self, prompt: str, sampling: Sampling, max_new_tokens: int, show: Callable[[str], None]) -> str:
        """Answer a user turn; what is there of the answer is shown after every token.

        Raises:
            UserError: if prompt and answer are longer than the model's window.
        """
        ids = self.encoder.prompt([Message("user", prompt)])
        window = window_of(self.model.config)
        if len(ids) + max_new_tokens > window:
            raise UserError(
                f"The prompt has {len(ids)} tokens and --max_new_tokens is {max_new_tokens}, but the window of the {self.name} "
                f"model is {window}. Shorten one of them."
            )
        written: list[int] = []

        def add(rows: Sequence[int], tokens: Sequence[int]) -> None:
            written.extend(tokens)
            show(self._text(written))

        stop_ids = stop_token_ids(self.model, self.encoder.end_of_turn_id)
        with without_lora(self.model) if self.is_adapter_off else nullcontext():
            roll_out(
                self.model,
                [ids],
                [prompt],
                sampling,
                num_rollouts=1,
                max_new_tokens=max_new_tokens,
                stop_ids=stop_ids,
                on_tokens=add,
            )
        return self._text(written)

    def _text(self, ids: Sequence[int]) -> str:
        # What a terminal would take for a command is left out.
        return "".join(letter for letter in self.encoder.decode(ids) if letter.isprintable() or letter in "\n\t")


def load_pair(
    path: str, base: str | None = None, trust_remote_code: bool = False
) -> tuple[tuple[Speaker, Speaker], Settings | None]:
    """The base model and the trained one, and the settings of the training where they are known.

    Args:
        path: A run folder, a checkpoint, or a Hugging Face folder.
        base: The model to compare with, where it is not the one that training began with.
        trust_remote_code: Allow code that comes with a model to run.

    Raises:
        UserError: if one of them cannot be loaded, or nothing says what the base model is.
    """
    settings: Settings | None = None
    origin = None
    if any(Path(path, name).is_file() for name in ("config.json", "adapter_config.json")):
        student = load_student(path, trust_remote_code)
        if Path(path, SETTINGS_FILE).is_file():
            settings = read_settings(Path(path, SETTINGS_FILE))
            origin = settings["model"]["init_args"].get("model_name_or_path")
        tokenizer_source = path
    else:
        trained = read_trained(path)
        settings, student = trained.settings, trained.student(trust_remote_code)
        origin = tokenizer_source = trained.model_options["model_name_or_path"]
    if base is None and origin is None:
        raise UserError(f"Nothing in '{path}' says what its base model is; name one to compare with: --base MODEL.")
    device, dtype = ("cuda", torch.bfloat16) if torch.cuda.is_available() else ("cpu", torch.float32)

    def speaker(name: str, model: PreTrainedModel, tokenizer_source: str, is_adapter_off: bool = False) -> Speaker:
        model.to(device=device, dtype=dtype)  # type: ignore[call-arg]
        return Speaker(name, model.eval(), ChatEncoder(load_tokenizer(tokenizer_source, trust_remote_code)), is_adapter_off)

    learnt = speaker("trained", student, tokenizer_source)
    if base is None and getattr(student, "peft_config", None):
        return (Speaker("base", learnt.model, learnt.encoder, is_adapter_off=True), learnt), settings
    source = base or str(origin)
    try:
        return (speaker("base", load_student(source, trust_remote_code), source), learnt), settings
    except UserError as error:
        raise UserError(str(error).replace("--model.model_name_or_path", "--base")) from error


def typed_questions() -> Iterator[str]:
    """Questions as they are typed, until Ctrl-D; from a pipe, its lines."""
    if not sys.stdin.isatty():
        yield from (line.strip() for line in sys.stdin if line.strip())
        return
    print("/help says what can be typed; Ctrl-D ends.")
    with _history(cache_dir() / "ask_history"):
        while True:
            try:
                question = input("? ").strip()
            except KeyboardInterrupt:  # gives up what is being typed
                print()
                continue
            except EOFError:
                print()
                return
            if question.startswith("/"):
                print(_HELP)
            elif question:
                yield question


@contextmanager
def _history(file: Path) -> Iterator[None]:
    """Arrow keys and Ctrl-R bring back what was typed, also in earlier sessions; where there is no readline, nothing."""
    try:
        import readline  # changes `input` as soon as it is imported
    except ImportError:
        yield
        return
    with suppress(OSError):
        readline.read_history_file(file)
    try:
        yield
    finally:
        with suppress(OSError):
            file.parent.mkdir(parents=True, exist_ok=True)
            readline.write_history_file(file)


def answer_side_by_side(
    console: Console,
    pair: tuple[Speaker, Speaker],
    corpus: TaughtCorpus | None,
    text: str,
    sampling: Sampling,
    max_new_tokens: int,
) -> None:
    """Have both models answer one question, the base model first, and say what their answers are worth.

    On a terminal the answers grow in two columns, or one under the other where it is narrow; elsewhere they are plain text.

    Args:
        console: Where to write.
        pair: The base model and the trained one.
        corpus: What was taught, if it is known.
        text: The question.
        sampling: How tokens are picked.
        max_new_tokens: Longest answer, in tokens.

    Raises:
        UserError: if the question is too long for a model.
    """
    text = text.encode(errors="replace").decode()  # a terminal may send bytes that are no text
    asked = corpus.find(text) if corpus else Asked(text, text)
    console.print(Text(f"? {text}", style="bold"), soft_wrap=True)
    answers, verdicts = ["", ""], ["", ""]
    with Live(console=console, auto_refresh=False) if console.is_terminal else nullcontext() as live:
        for index, speaker in enumerate(pair):

            def show(answer: str, index: int = index) -> None:
                answers[index] = answer
                if live is not None:
                    live.update(_two_columns(pair, answers, verdicts, console.width), refresh=True)

            answer = speaker.answer(asked.prompt, sampling, max_new_tokens, show)
            verdicts[index] = printable(corpus.judge(asked, answer)) if corpus else ""
            show(answer)
    if live is None:
        for speaker, answer, verdict in zip(pair, answers, verdicts, strict=True):
            console.print(Text(f"{speaker.name}: {answer}" + (f"\n  {verdict}" if verdict else "")), soft_wrap=True)


def _two_columns(pair: Sequence[Speaker], answers: Sequence[str], verdicts: Sequence[str], width: int) -> Table | Group:
    panels = []
    for speaker, answer, verdict in zip(pair, answers, verdicts, strict=True):
        style = "green" if verdict.startswith("right") else "red" if verdict.startswith("wrong") else "yellow"
        panels.append(Panel(Group(Text(answer), Text(verdict, style)), title=speaker.name))
    if width < NARROW:
        return Group(*panels)
    columns = Table.grid(expand=True)
    for _ in panels:
        columns.add_column(ratio=1)
    columns.add_row(*panels)
    return columns
