"""Held-out suites: each measures one thing that training should leave as it was."""

from mixsd_lightning.evaluation.suites.agreement import Agreement
from mixsd_lightning.evaluation.suites.base import Score, Suite
from mixsd_lightning.evaluation.suites.bits_per_byte import BitsPerByte
from mixsd_lightning.evaluation.suites.cross_likelihood import CrossLikelihood
from mixsd_lightning.evaluation.suites.gpqa import GPQA
from mixsd_lightning.evaluation.suites.hellaswag import HellaSwag
from mixsd_lightning.evaluation.suites.humaneval import HumanEval
from mixsd_lightning.evaluation.suites.lambada import Lambada
from mixsd_lightning.evaluation.suites.lm_eval_harness import LMEvaluationHarness
from mixsd_lightning.evaluation.suites.mathematics import AIME2024, GSM8K, MATH500
from mixsd_lightning.evaluation.suites.mmlu import MMLU
from mixsd_lightning.evaluation.suites.multiple_choice import MultipleChoice
from mixsd_lightning.evaluation.suites.probe import EverydayProbe

SUITES: dict[str, type[Suite]] = {
    suite.name: suite
    for suite in (
        EverydayProbe,
        BitsPerByte,
        Agreement,
        CrossLikelihood,
        GSM8K,
        MATH500,
        AIME2024,
        HumanEval,
        MMLU,
        GPQA,
        HellaSwag,
        Lambada,
    )
}
"""Name -> suite that needs no settings. :class:`MultipleChoice` and :class:`LMEvaluationHarness` need some."""

__all__ = [
    "AIME2024",
    "GPQA",
    "GSM8K",
    "MATH500",
    "MMLU",
    "SUITES",
    "Agreement",
    "BitsPerByte",
    "CrossLikelihood",
    "EverydayProbe",
    "HellaSwag",
    "HumanEval",
    "LMEvaluationHarness",
    "Lambada",
    "MultipleChoice",
    "Score",
    "Suite",
]
