"""Mathematics word problems with a boxed final answer."""

from collections.abc import Sequence
from typing import Any, ClassVar

from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from typing_extensions import override

from mixsd_lightning.evaluation.math_answers import MathVerifier, math_verify_version
from mixsd_lightning.evaluation.scoring import extract_boxed
from mixsd_lightning.evaluation.suites.base import AnswerForm
from mixsd_lightning.evaluation.suites.generation import GenerationSuite, Problem
from mixsd_lightning.records import DataSet, Row

_INSTRUCTION = "Solve the problem below. Reason step by step, and finish with the final answer inside \\boxed{}."


class MathSuite(GenerationSuite):
    r"""Zero-shot problems. An answer is right if its last complete ``\boxed{...}`` has the same value as the gold answer."""

    answer_form: AnswerForm = "boxed"
    data: ClassVar[DataSet]

    @override
    def load(self) -> list[Problem]:
        return [self._problem(row) for row in self.data.rows(self.data_dir)]

    @property
    @override
    def settings(self) -> dict[str, Any]:
        return {**super().settings, "math_verify": math_verify_version()}

    @override
    def setup(self) -> None:
        super().setup()
        math_verify_version()  # better now than after an hour of generating what cannot be scored

    @override
    def score(self, problems: Sequence[Problem], answers: Sequence[str]) -> list[float]:
        boxed = [extract_boxed(answer) for answer in answers]
        with MathVerifier() as verifier:
            right = [
                box is not None and verifier.is_same(box, problem.gold) for box, problem in zip(boxed, problems, strict=True)
            ]
        if verifier.num_undecided:
            rank_zero_warn(
                f"{self.name}: math-verify could not compare {verifier.num_undecided} of {len(answers)} answers, which count "
                "as wrong because their text is not that of the gold answer."
            )
        return list(map(float, right))

    def _problem(self, row: Row) -> Problem:
        return Problem(row.text("problem"), row.text("answer").strip(), instruction=_INSTRUCTION)


class GSM8K(MathSuite):
    """1319 grade-school word problems (Cobbe et al., arXiv 2110.14168); file `gsm8k/test.jsonl`, Hub `openai/gsm8k`."""

    name = "gsm8k"
    data = DataSet("gsm8k/test.jsonl", "openai/gsm8k", "main")
    default_max_new_tokens = 512

    @override
    def _problem(self, row: Row) -> Problem:
        _, marker, gold = row.text("answer").rpartition("####")
        if not marker or not gold.strip():
            raise row.wrong("has no number after '####' in the field 'answer'")
        # In LaTeX, 1,600 may be a pair.
        return Problem(row.text("question"), gold.strip().replace(",", ""), instruction=_INSTRUCTION)


class MATH500(MathSuite):
    """500 competition problems of MATH (Hendrycks et al., arXiv 2103.03874; chosen by Lightman et al., arXiv 2305.20050).

    File `math500/test.jsonl`, Hub `HuggingFaceH4/MATH-500`.
    """

    name = "math500"
    data = DataSet("math500/test.jsonl", "HuggingFaceH4/MATH-500")
    default_max_new_tokens = 1024


class AIME2024(MathSuite):
    """The 30 problems of the AIME 2024; file `aime2024/test.jsonl`, Hub `HuggingFaceH4/aime_2024`.

    Of 30 greedy answers the share that is right says little. MixSD (arXiv 2605.16865) reports avg@16: set `num_samples` to 16
    and `temperature` to 1.
    """

    name = "aime2024"
    data = DataSet("aime2024/test.jsonl", "HuggingFaceH4/aime_2024", hub_split="train")
    default_max_new_tokens = 2048
