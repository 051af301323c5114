"""Programming problems, scored by running the programs that a model writes."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from typing_extensions import override

from mixsd_lightning.evaluation.programs import extract_code
from mixsd_lightning.evaluation.sandbox import isolation, run_python
from mixsd_lightning.evaluation.suites.base import AnswerForm
from mixsd_lightning.evaluation.suites.generation import GenerationSuite, Problem
from mixsd_lightning.records import DataSet

_DATA = DataSet("humaneval/HumanEval.jsonl*", "openai/openai_humaneval")
_INSTRUCTION = (
    "Complete the Python function below. Answer with the whole function in one fenced block of Python code, and nothing else."
)
# Most of a short program's time goes to the start of its process, so two at once use two cores.
_PROGRAMS_AT_ONCE = 2


class HumanEval(GenerationSuite):
    """164 functions to complete (Chen et al., arXiv 2107.03374).

    File `humaneval/HumanEval.jsonl.gz`, Hub `openai/openai_humaneval`. An answer is right if its code passes the
    problem's tests in the sandbox. With `num_samples` above 1 the score is the unbiased estimate of pass@1.
    """

    name = "humaneval"
    answer_form: AnswerForm = "code"
    default_max_new_tokens = 512

    @override
    def load(self) -> list[Problem]:
        problems = []
        for row in _DATA.rows(self.data_dir):
            prompt = row.text("prompt")
            gold = {"prompt": prompt, "test": row.text("test"), "entry_point": row.text("entry_point")}
            problems.append(Problem(f"```python\n{prompt}```", gold, instruction=_INSTRUCTION))
        return problems

    @override
    def setup(self) -> None:
        super().setup()
        isolation()  # better now than after an hour of generating what cannot be run

    @override
    def score(self, problems: Sequence[Problem], answers: Sequence[str]) -> list[float]:
        programs = [program(problem, answer) for problem, answer in zip(problems, answers, strict=True)]
        with ThreadPoolExecutor(_PROGRAMS_AT_ONCE) as pool:
            return [float(outcome.passed) for outcome in pool.map(run_python, programs)]


def program(problem: Problem, answer: str) -> str:
    """The program that tests an answer.

    The problem's own text comes first, for its imports and for answers that are only the function's body; a function that is
    written out again replaces it.
    """
    gold = problem.gold
    return f"{gold['prompt']}{extract_code(answer)}\n{gold['test']}\ncheck({gold['entry_point']})\n"
