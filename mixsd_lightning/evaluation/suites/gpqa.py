"""Graduate-level multiple-choice questions of biology, physics and chemistry."""

from collections.abc import Sequence
from typing import Literal

from typing_extensions import override

from mixsd_lightning.context import user_turn
from mixsd_lightning.evaluation.choices import extract_choice
from mixsd_lightning.evaluation.suites.generation import GenerationSuite, Problem
from mixsd_lightning.lettered import LetteredQuestion, options_of
from mixsd_lightning.records import DataSet, Row

_RIGHT = "Correct Answer"
_WRONG = tuple(f"Incorrect Answer {number}" for number in (1, 2, 3))
_SEED = 42
"""Of the order of options, which the data set does not give."""


class GPQA(GenerationSuite):
    """Questions that experts answer and search engines do not (Rein et al., arXiv 2311.12022), by domain.

    Hub `Idavidrein/gpqa`, after its terms are accepted there; or the authors' files `gpqa/gpqa_main.csv` and so on, with the columns
    Question, Correct Answer, Incorrect Answer 1 to 3 and High-level domain. They ask not to publish the questions as plain text, so
    keep completions to yourself. The main set has 448 questions, the diamond set 198 and the extended set 546.

    Asked as the corpora of multiple-choice questions ask, and read by the same extractor, with options in an order of their own.
    """

    name = "gpqa"
    default_max_new_tokens = 512

    def __init__(
        self,
        data_dir: str | None = None,
        subset: Literal["gpqa_main", "gpqa_diamond", "gpqa_extended"] = "gpqa_main",
        limit: int = 0,
        max_new_tokens: int | None = None,
        num_samples: int = 1,
        temperature: float = 0.0,
        batch_size: int = 32,
        every_n_validations: int = 0,
    ) -> None:
        """
        Args:
            data_dir: Folder with the data set's files; by default it comes from the Hugging Face Hub.
            subset: Which questions: `gpqa_main`, `gpqa_diamond` (the most reliable) or `gpqa_extended` (all).
            limit: Ask so many questions, at even distances in the data set; 0 asks all.
            max_new_tokens: Longest answer, in tokens; by default what suits the suite.
            num_samples: Answers to each question, whose scores are averaged.
            temperature: Of sampling; 0 takes the most probable token.
            batch_size: Answers in progress at once.
            every_n_validations: Measure at every n-th validation and at the last; 0 is at the last alone.

        Raises:
            UserError: if a number is out of range, or several samples are asked for that could not differ.
        """
        super().__init__(data_dir, limit, max_new_tokens, num_samples, temperature, batch_size, every_n_validations)
        self.subset = subset

    @override
    def load(self) -> list[Problem]:
        data = DataSet(f"gpqa/{self.subset}.csv", "Idavidrein/gpqa", self.subset, "train")
        return [_problem(row) for row in data.rows(self.data_dir)]

    @override
    def score(self, problems: Sequence[Problem], answers: Sequence[str]) -> list[float]:
        return [float(extract_choice(answer) == problem.gold) for problem, answer in zip(problems, answers, strict=True)]


def _problem(row: Row) -> Problem:
    right = row.text(_RIGHT)
    options, gold = options_of(row, [right, *map(row.text, _WRONG)], right)
    question = LetteredQuestion(row.text("Question").strip(), options, gold)
    lines, letter = question.shuffled(_SEED)
    return Problem(user_turn(f"{question.stem}\n\n{lines}", "choice"), letter, row.text("High-level domain").strip())
