"""MBPP: short programs from a description, scored by running them."""

import ast
from collections.abc import Sequence
from typing import Any

from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from typing_extensions import override

from mixsd_lightning.context import user_turn
from mixsd_lightning.data.slices import SlicedCorpus
from mixsd_lightning.errors import require
from mixsd_lightning.evaluation.programs import statements
from mixsd_lightning.evaluation.sandbox import isolation
from mixsd_lightning.example import Example
from mixsd_lightning.records import DataSet, Row

_TASK_IDS = {"train": range(601, 975), "validation": range(511, 601), "test": range(11, 511)}
"""Split -> the tasks that the authors put there. The first ten are meant for few-shot prompts and not used."""
_MOST_TASKS = max(tasks.stop for tasks in _TASK_IDS.values())


class MBPP(SlicedCorpus):
    """974 programming tasks (Austin et al., arXiv 2108.07732): 374 to `train` on, 90 for `validation`, 500 as `test`.

    File `mbpp/mbpp.jsonl`, Hub `google-research-datasets/mbpp` (the full set). An answer is right if its code passes all asserts of
    its task in the sandbox; the prompt shows some of them, and the signature of the function that they call. Tasks whose reference
    code does not define that function are left out, since nobody could know its name.
    """

    available_splits = ("train", "validation", "test")

    def __init__(self, data_dir: str | None = None, num_shown_tests: int = 1, **options: Any) -> None:
        """
        Args:
            data_dir: Folder with the data set's file; by default it comes from the Hugging Face Hub.
            num_shown_tests: Asserts in the prompt. Those that are not shown tell a solution from one that is made to fit.
            options: Those of `SlicedCorpus`.
        """
        super().__init__(data_dir, **options)
        require("data.num_shown_tests", num_shown_tests, num_shown_tests >= 0, "at least 0")
        self.num_shown_tests = num_shown_tests

    @override
    def prepare_data(self) -> None:
        isolation()  # better now than after a long validation whose programs cannot be run
        super().prepare_data()

    @override
    def build_splits(self, names: Sequence[str]) -> dict[str, list[Example]]:
        return {name: self._examples(name) for name in names}

    def _examples(self, split: str) -> list[Example]:
        data = DataSet("mbpp/mbpp.jsonl", "google-research-datasets/mbpp", "full", split, option="--data")
        rows = [row for row in data.rows(self.data_dir) if row.index("task_id", _MOST_TASKS) in _TASK_IDS[split]]
        tested = {number: function for number, row in enumerate(rows) if (function := tested_function(row))}
        if len(tested) < len(rows):
            first = next(row for number, row in enumerate(rows) if number not in tested)
            rank_zero_warn(
                f"{len(rows) - len(tested)} of {len(rows)} tasks are left out, because their reference code does not define the "
                f"function that their tests call; the first: {first.where}"
            )
        return [self._example(split, rows[number], tested[number]) for number in self.slice_of(split, sorted(tested))]

    def _example(self, split: str, row: Row, function: ast.FunctionDef) -> Example:
        task, setup, tests = row.text("text").strip(), _setup(row), _tests(row)
        signature = f"{function.name}({ast.unparse(function.args)})"
        parts = [task, f"The function is `{signature}`."]
        if shown := tests[: self.num_shown_tests]:
            asserts = "\n".join(filter(None, [setup, *shown]))
            parts.append(f"It must pass {'this test' if len(shown) == 1 else 'these tests'}:\n```python\n{asserts}\n```")
        target = f"```python\n{_code(row)}\n```"
        return Example(
            id=f"{split}-{row.fields['task_id']}",
            question=task,
            prompt=user_turn("\n\n".join(parts), "code"),
            answer="\n".join(filter(None, [setup, *tests])),
            target=target,
            fact=f'The function `{signature}` for the task "{task}" is this:\n{target}',
            answer_format="code",
            subject=function.name,
        )


def tested_function(row: Row) -> ast.FunctionDef | None:
    """The function of the reference code that the first test calls; ``None`` where there is none.

    It need not be the first one, nor need the test call nothing else: the outermost call of a function that the code defines counts.
    """
    defined = {node.name: node for node in statements(_code(row)) if isinstance(node, ast.FunctionDef)}
    # Breadth first, so that in `assert f(Node(g(1))) == 2` the first is f.
    for node in ast.walk(ast.Module(statements(_tests(row)[0]), [])):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in defined:
            return defined[node.func.id]
    return None


def _code(row: Row) -> str:
    return _unix(row.text("code"))


def _setup(row: Row) -> str:
    return _unix(row.text("test_setup_code", may_be_empty=True))


def _tests(row: Row) -> list[str]:
    tests = row.fields.get("test_list")
    if not isinstance(tests, list) or not tests or not all(isinstance(test, str) and test.strip() for test in tests):
        raise row.wrong("has no list of tests in the field 'test_list'")
    return [_unix(test) for test in tests]


def _unix(code: str) -> str:
    """Code with one kind of line end; its tabs stay, since mixed with spaces they mean what Python takes them for."""
    return code.replace("\r\n", "\n").replace("\r", "\n").strip()
