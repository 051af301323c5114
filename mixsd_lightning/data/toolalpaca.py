"""ToolAlpaca: instructions that take calls of an API's functions."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from typing_extensions import override

from mixsd_lightning.context import user_turn
from mixsd_lightning.data.slices import SlicedCorpus
from mixsd_lightning.evaluation.tool_calls import Call, write_calls
from mixsd_lightning.example import Example
from mixsd_lightning.records import DataSet, Row
from mixsd_lightning.untrusted import parse_json

_DATA = {
    "train": DataSet("toolalpaca/eval_simulated.json", "Ahren09/ToolAlpaca", None, "train", "--data"),
    "test": DataSet("toolalpaca/eval_real.json", "Ahren09/ToolAlpaca", None, "test", "--data"),
}
_SCHEMAS = "components"
"""Key among the functions that describes what they return, and is none of them."""
_CREDENTIALS = frozenset({"api_key", "access_key", "appid"})
"""Arguments of real APIs whose gold value is a key of the authors', which no prompt shows."""


@dataclass(frozen=True)
class Task:
    """An instruction and the calls that carry it out."""

    number: str
    api: str
    instruction: str
    functions: Mapping[str, str]
    """Name -> description, parameters and output; empty where the data set words the prompt."""
    prompt: str
    """As the data set words it, else empty."""
    calls: tuple[Call, ...]


class ToolAlpaca(SlicedCorpus):
    """Instructions about APIs with the calls that carry them out (Tang et al., arXiv 2306.05301), answered in one turn.

    Folder: `toolalpaca/eval_simulated.json` (100 instructions to 10 simulated APIs) as `train` and `toolalpaca/eval_real.json` (114
    to 11 real ones) as `test`, so nothing that is tested has been taught. These are the sets that the authors evaluate on, the only
    ones with checked calls; their training set is another. Hub: `Ahren09/ToolAlpaca`, about 4000 and 68 instructions, with its own
    prompts. Nothing is called: an answer is compared with the gold calls.

    Instructions whose gold calls nobody could write are left out, with a warning: those with a gap that an earlier call would fill
    (`${animeId from searchAnime}`), and those that call a function the API does not have. Keys to the real APIs, which are in the
    gold calls and in no prompt, are taken out of them.
    """

    available_splits = ("train", "test")

    def __init__(self, data_dir: str | None = None, eval_splits: Sequence[str] = ("train", "test"), **options: Any) -> None:
        """
        Args:
            data_dir: Folder with the data set's file; by default it comes from the Hugging Face Hub.
            eval_splits: Splits that are answered at each validation.
            options: Those of `SlicedCorpus`.
        """
        super().__init__(data_dir, eval_splits=eval_splits, **options)

    @override
    def build_splits(self, names: Sequence[str]) -> dict[str, list[Example]]:
        return {name: self._examples(name) for name in names}

    def _examples(self, split: str) -> list[Example]:
        rows = _DATA[split].rows(self.data_dir)
        if rows[0].file is None:
            tasks = [_from_hub(number, row) for number, row in enumerate(rows)]
        else:
            tasks = [task for number, row in enumerate(rows) for task in _of_api(number, row)]
        possible = [task for task in tasks if _is_possible(task)]
        if len(possible) < len(tasks):
            first = next(task for task in tasks if not _is_possible(task))
            rank_zero_warn(
                f"{len(tasks) - len(possible)} of {len(tasks)} instructions of {split} are left out, because their gold calls have "
                f"gaps or functions that do not exist; the first: '{first.instruction[:80]}'"
            )
        return [_example(split, task) for task in self.slice_of(split, possible)]


def _of_api(number: int, row: Row) -> Iterator[Task]:
    """The instructions of a record in ToolAlpaca's own form, which is about one API."""
    api, functions = row.text("Name"), row.fields.get("Function_Description")
    instructions, answers = row.fields.get("Instructions"), row.fields.get("Golden_Answers")
    if not isinstance(functions, dict) or not all(isinstance(text, str) for text in functions.values()):
        raise row.wrong("has no JSON object of texts in the field 'Function_Description'")
    if not isinstance(instructions, list) or not isinstance(answers, list) or len(instructions) != len(answers):
        raise row.wrong("has no lists of the same length in the fields 'Instructions' and 'Golden_Answers'")
    functions = {name: text for name, text in functions.items() if name != _SCHEMAS}
    for index, (instruction, answer) in enumerate(zip(instructions, answers, strict=True)):
        if not isinstance(instruction, str) or not instruction.strip():
            raise row.wrong(f"has no text as instruction {index}")
        calls = tuple(map(_without_credentials, _calls(row, answer)))
        yield Task(f"{number}-{index}", api, instruction.strip(), functions, "", calls)


def _from_hub(number: int, row: Row) -> Task:
    """A record of `Ahren09/ToolAlpaca`."""
    instruction, prompt = row.text("instruction").strip(), row.text("prompt").strip()
    return Task(
        str(number), str(row.fields.get("name") or ""), instruction, {}, prompt, _calls(row, row.fields.get("golden_answer"))
    )


def _calls(row: Row, answer: Any) -> tuple[Call, ...]:
    if not isinstance(answer, list) or not all(
        isinstance(call, dict) and isinstance(call.get("Action"), str) for call in answer
    ):
        raise row.wrong("has a gold answer that is no list of calls, each with an 'Action' and an 'Action_Input'")
    return tuple(Call(call["Action"].strip(), _arguments(call.get("Action_Input"))) for call in answer)


def _arguments(given: Any) -> dict[str, Any] | None:
    """The arguments of a gold call, which the data set writes as JSON in a text; ``None`` where that is no JSON."""
    try:
        arguments = parse_json(given) if isinstance(given, str) else given
        json.dumps(arguments, ensure_ascii=False).encode()  # as the target has it: half of a pair of surrogates has no code
    except ValueError:
        return None
    return arguments if isinstance(arguments, dict) else None


def _without_credentials(call: Call) -> Call:
    if call.arguments is None:
        return call
    return Call(call.name, {name: value for name, value in call.arguments.items() if name not in _CREDENTIALS})


def _is_possible(task: Task) -> bool:
    """Whether the gold calls can be known from the prompt."""
    return bool(task.calls) and all(
        call.arguments is not None and not _has_gap(call.arguments) and (call.name in task.functions or not task.functions)
        for call in task.calls
    )


def _has_gap(value: Any) -> bool:
    """Whether a text stands for what is to be filled in: ``{start date}``, ``${id from search}``."""
    if isinstance(value, str):
        return "${" in value or (value.startswith("{") and value.endswith("}"))
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return any(map(_has_gap, inner))


def _example(split: str, task: Task) -> Example:
    return Example(
        id=f"{split}-{task.number}",
        question=task.instruction,
        prompt=task.prompt or user_turn(_described(task), "tool_calls"),
        answer=json.dumps([{"Action": call.name, "Action_Input": call.arguments} for call in task.calls], ensure_ascii=False),
        target=write_calls(task.calls),
        fact=f'The request "{task.instruction}" takes: {", then ".join(map(_spelled, task.calls))}.',
        answer_format="tool_calls",
        subject=task.api,
    )


def _described(task: Task) -> str:
    functions = "\n\n".join(f"{name}: {text.strip()}" for name, text in task.functions.items())
    return f"You can call these functions of the API {task.api}:\n\n{functions}\n\nThe user's request: {task.instruction}"


def _spelled(call: Call) -> str:
    return f"{call.name} with {json.dumps(call.arguments, ensure_ascii=False)}"
