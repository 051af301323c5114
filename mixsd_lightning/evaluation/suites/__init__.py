"""Held-out suites: each measures one thing that training should leave as it was, in seconds and without a network."""

from mixsd_lightning.evaluation.suites.agreement import Agreement
from mixsd_lightning.evaluation.suites.base import Score, Suite
from mixsd_lightning.evaluation.suites.bits_per_byte import BitsPerByte
from mixsd_lightning.evaluation.suites.probe import EverydayProbe

SUITES: dict[str, type[Suite]] = {suite.name: suite for suite in (EverydayProbe, BitsPerByte, Agreement)}
"""Name -> suite."""

__all__ = ["SUITES", "Agreement", "BitsPerByte", "EverydayProbe", "Score", "Suite"]
