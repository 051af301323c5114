"""KGFunc as a DataModule: which numbers are asked, and how."""

import random
from collections.abc import Callable, Sequence

from typing_extensions import override

from mixsd_lightning.context import user_turn
from mixsd_lightning.data.base import CorpusDataModule
from mixsd_lightning.data.kgfunc.operations import EASY, TAUGHT, Operation
from mixsd_lightning.errors import UserError, require
from mixsd_lightning.example import Example

PRESETS: dict[str, dict[str, int | str]] = {
    "KGFunc": {"operations": "BCDEFGH", "num_digits": 5, "num_shots": 10, "items_per_operation": 6250},
    "KGFunc-Easy": {"operations": "FH", "num_digits": 2, "num_shots": 4, "items_per_operation": 70},
}
"""Preset -> its settings. `KGFunc` is the paper's, with 43 750 items; `KGFunc-Easy` is within reach of a 135M model."""

_INTRODUCTION = (
    "Each function below turns a whole number into another by a rule of its own. Infer the rules from the examples."
)


class KGFunc(CorpusDataModule):
    """Functions on the digits of a number, taught by worked solutions (MixSD, arXiv 2605.16865).

    Splits: `train` (asked again it is the memorization test), `unseen_inputs` (the same functions of other numbers),
    `same_op_chain` and `mixed_op_chain` (a function of a function's result, of the same function or of another), and
    `unseen_operations` (20 easy functions that are never taught: what is lost there was forgotten).
    """

    available_splits = ("train", "unseen_inputs", "same_op_chain", "mixed_op_chain", "unseen_operations")
    default_expert_context = "reference_solution"

    def __init__(
        self,
        preset: str = "KGFunc",
        operations: str | None = None,
        num_digits: int | None = None,
        num_shots: int | None = None,
        items_per_operation: int | None = None,
        num_test_inputs: int = 25,
        num_chains: int = 200,
        expert_context: str | None = None,
        batch_size: int = 16,
        eval_batch_size: int = 64,
        eval_splits: Sequence[str] = ("train", "unseen_inputs"),
        max_eval_examples: int | None = 200,
        seed: int = 42,
    ) -> None:
        """
        Args:
            preset: `KGFunc` (the paper's) or `KGFunc-Easy`.
            operations: Letters of the functions that are taught, out of BCDEFGH; by default what the preset says.
            num_digits: Longest number, in digits, 1 to 9; by default what the preset says.
            num_shots: Solved examples of each function in a prompt; by default what the preset says.
            items_per_operation: Training items of each function; by default what the preset says.
            num_test_inputs: Numbers that are asked of each function in `unseen_inputs` and `unseen_operations`.
            num_chains: Chains of each function in `same_op_chain`, and of all in `mixed_op_chain`.
            expert_context: How the expert is shown the solution; by default as a reference solution.
            batch_size: Examples in a training batch, per device.
            eval_batch_size: Questions that are answered at once during validation.
            eval_splits: Splits that are answered at each validation.
            max_eval_examples: Ask at most this many questions of each split (a fixed random choice); null asks all.
            seed: Decides the numbers and the order of training examples.
        """
        super().__init__(batch_size, eval_batch_size, eval_splits, max_eval_examples, seed, expert_context)
        if preset not in PRESETS:
            raise UserError(f"--data.preset: there is no '{preset}'; choose from {', '.join(PRESETS)}.")
        settings = PRESETS[preset]
        letters = str(settings["operations"]) if operations is None else operations
        by_key = {operation.key: operation for operation in TAUGHT}
        is_known = 0 < len(letters) == len(set(letters)) and set(letters) <= by_key.keys()
        require("data.operations", letters, is_known, f"different letters out of {''.join(by_key)}")
        self.operations = [by_key[letter] for letter in sorted(letters)]
        self.num_digits = int(settings["num_digits"]) if num_digits is None else num_digits
        self.num_shots = int(settings["num_shots"]) if num_shots is None else num_shots
        self.items_per_operation = int(settings["items_per_operation"]) if items_per_operation is None else items_per_operation
        self.num_test_inputs = num_test_inputs
        self.num_chains = num_chains
        require("data.num_digits", num_digits, 1 <= self.num_digits <= 9, "1 to 9")
        for flag, value in (
            ("num_shots", self.num_shots),
            ("items_per_operation", self.items_per_operation),
            ("num_test_inputs", num_test_inputs),
            ("num_chains", num_chains),
        ):
            require(f"data.{flag}", value, value >= 1, "at least 1")
        needed = self.num_shots + self.items_per_operation + num_test_inputs
        if needed >= 10**self.num_digits:
            raise UserError(
                f"--data.items_per_operation: {needed} different numbers are needed for examples, training and tests, and "
                f"there are {10**self.num_digits} of up to {self.num_digits} digits. Lower it or raise --data.num_digits."
            )
        self._shots, self._test_inputs, self._train_inputs, self._spare = self._divide_numbers()

    @override
    def build_splits(self, names: Sequence[str]) -> dict[str, list[Example]]:
        makers: dict[str, Callable[[], list[Example]]] = {
            "train": lambda: self._atomic("train", self.operations, self._train_inputs),
            "unseen_inputs": lambda: self._atomic("unseen_inputs", self.operations, self._test_inputs),
            "same_op_chain": lambda: self._chains("same_op_chain", is_mixed=False),
            "mixed_op_chain": lambda: self._chains("mixed_op_chain", is_mixed=True),
            "unseen_operations": lambda: self._atomic("unseen_operations", EASY, self._test_inputs),
        }
        return {name: makers[name]() for name in names}

    def _divide_numbers(self) -> tuple[list[int], list[int], list[int], list[int]]:
        """Numbers for solved examples (as many of each length), tests, training, and the beginnings of chains."""
        rng = random.Random(f"{self.seed}|numbers")
        size = 10**self.num_digits
        shots: list[int] = []
        for index in range(self.num_shots):
            length = 1 + index % self.num_digits
            lowest = 10 ** (length - 1) if length > 1 else 0
            free = 10**length - lowest - sum(lowest <= shot < 10**length for shot in shots)
            if free == 0:  # the short numbers are used up
                lowest, length = 0, self.num_digits
            number = rng.randrange(lowest, 10**length)
            while number in shots:
                number = rng.randrange(lowest, 10**length)
            shots.append(number)
        num_spare = min(self.num_chains, size - self.num_shots - self.items_per_operation - self.num_test_inputs)
        count = self.num_test_inputs + self.items_per_operation + num_spare
        drawn = [number for number in rng.sample(range(size), count + self.num_shots) if number not in shots][:count]
        first_train, first_spare = self.num_test_inputs, self.num_test_inputs + self.items_per_operation
        return sorted(shots), drawn[:first_train], drawn[first_train:first_spare], drawn[first_spare:]

    def _atomic(self, split: str, operations: Sequence[Operation], numbers: Sequence[int]) -> list[Example]:
        return [self._example(f"{split}-{op.key}-{number}", op, number) for op in operations for number in numbers]

    def _example(self, example_id: str, operation: Operation, number: int) -> Example:
        result = str(operation.apply(number))
        statement = f"{operation.key}({number}) = {result}"
        solution = operation.solution(number) if operation.steps else f"{statement}."
        return self._make(example_id, [operation], f"What is {operation.key}({number})?", result, solution, operation.key)

    def _chains(self, split: str, is_mixed: bool) -> list[Example]:
        rng = random.Random(f"{self.seed}|{split}")
        if is_mixed:
            if len(self.operations) < 2:
                raise UserError("--data.eval_splits: 'mixed_op_chain' needs two --data.operations.")
            pairs = [tuple(rng.sample(self.operations, 2)) for _ in range(self.num_chains)]
        else:
            pairs = [(operation, operation) for operation in self.operations for _ in range(self.num_chains)]
        examples = []
        for index, (first, second) in enumerate(pairs):
            start = self._spare[index % len(self._spare)]
            between = first.apply(start)
            wanted = rng.randrange(10**self.num_digits)
            offset = wanted - between
            shift = f" {'+' if offset > 0 else '-'} {abs(offset)}" if offset else ""
            question = f"What is {second.key}({first.key}({start}){shift})?"
            steps = [first.solution(start), *([f"{between}{shift} = {wanted}"] if shift else []), second.solution(wanted)]
            result, key = str(second.apply(wanted)), f"{first.key}{second.key}"
            examples.append(self._make(f"{split}-{index}", self.operations, question, result, "\n".join(steps), key))
        return examples

    def _make(
        self, example_id: str, shown: Sequence[Operation], question: str, result: str, solution: str, subject: str
    ) -> Example:
        blocks = ["\n".join(f"{op.key}({number}) = {op.apply(number)}" for number in self._shots) for op in shown]
        asked = "\n\n".join([_INTRODUCTION, *blocks, question])
        return Example(
            id=example_id,
            question=question,
            prompt=user_turn(asked, "boxed"),
            answer=result,
            target=f"{solution}\n\n\\boxed{{{result}}}",
            fact=f"The answer to '{question}' is {result}.",
            answer_format="boxed",
            subject=subject,
        )
