"""Multiple-choice questions of 57 subjects, answered in a chat."""

import re
import string
from collections.abc import Sequence

from typing_extensions import override

from mixsd_lightning.errors import UserError
from mixsd_lightning.evaluation.suites.generation import GenerationSuite, Problem
from mixsd_lightning.evaluation.suites.mmlu_subjects import CATEGORIES
from mixsd_lightning.records import DataSet, Row

_TEST = DataSet("mmlu/test/*.csv", "cais/mmlu", "all", "test")
_DEV = DataSet("mmlu/dev/*.csv", "cais/mmlu", "all", "dev")
_LETTERS = "ABCD"
_NUM_SHOTS = 5
_BOXED_LETTER = re.compile(r"\\boxed\{\s*([A-D])\s*\}", re.IGNORECASE)


class MMLU(GenerationSuite):
    r"""14 042 questions of 57 subjects (Hendrycks et al., arXiv 2009.03300).

    Files `mmlu/test/<subject>.csv` and `mmlu/dev/<subject>.csv` with the header question, choice0, choice1, choice2, choice3,
    answer (0 to 3); Hub `cais/mmlu`.

    Five solved questions of the subject come first, each with its letter in a box. The last boxed letter is the answer; where
    there is none, a first line that is only a letter. `limit` takes questions of all subjects, in proportion to their number.
    """

    name = "mmlu"
    default_max_new_tokens = 64

    @override
    def load(self) -> list[Problem]:
        shots: dict[str, list[str]] = {}
        for row in _DEV.rows(self.data_dir):
            shots.setdefault(_subject(row), []).append(f"{_question(row)} \\boxed{{{_letter(row)}}}")
        problems = []
        for row in _TEST.rows(self.data_dir):
            subject = _subject(row)
            if subject not in shots:
                raise UserError(f"--retention.suites: {row.where} is of '{subject}', of which {_DEV.pattern} has nothing.")
            instruction = (
                f"The following are multiple-choice questions about {subject.replace('_', ' ')}. Answer the last one with its "
                "letter inside \\boxed{}."
            )
            few = tuple(shots[subject][:_NUM_SHOTS])
            problems.append(Problem(_question(row), _letter(row), CATEGORIES[subject], instruction, few))
        return problems

    @override
    def score(self, problems: Sequence[Problem], answers: Sequence[str]) -> list[float]:
        return [float(chosen_letter(answer) == problem.gold) for problem, answer in zip(problems, answers, strict=True)]


def chosen_letter(answer: str) -> str:
    r"""The letter that an answer gives: the last boxed one; else its first line without punctuation, whatever that is.

    >>> chosen_letter(r"Not \boxed{a} but \boxed{ C }.")
    'C'
    >>> chosen_letter("(b).\nBecause ...")
    'B'
    """
    boxed = _BOXED_LETTER.findall(answer)
    line = boxed[-1] if boxed else answer.partition("\n")[0].translate(str.maketrans("", "", string.punctuation))
    return str(line).strip().upper()


def _subject(row: Row) -> str:
    subject = row.text("subject") if row.file is None else re.sub("_(test|dev)$", "", row.file.stem)
    if subject not in CATEGORIES:
        raise UserError(
            f"--retention.suites: {row.where} is of no subject of MMLU: '{subject}'. Rename the file or move it away."
        )
    return subject


def _question(row: Row) -> str:
    choices = row.texts("choices") if row.file is None else tuple(row.text(f"choice{number}") for number in range(4))
    lines = [f"{letter}. {choice}" for letter, choice in zip(_LETTERS, choices, strict=True)]
    return "\n".join([f"Question: {row.text('question').strip()}", *lines, "Answer:"])


def _letter(row: Row) -> str:
    return _LETTERS[row.index("answer", 4)]
