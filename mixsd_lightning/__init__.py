"""Teach a language model new knowledge without making it forget what it knew."""

from mixsd_lightning.callbacks import CollapseAlert, Completions, Dashboard, ErrorModes, FisherDrift, MetricsFile, Retention
from mixsd_lightning.data import CorpusDataModule, CounterFact, Facts, KGFact, KGFunc, MQuAKE, SimpleQA
from mixsd_lightning.example import Example
from mixsd_lightning.export import export_student
from mixsd_lightning.modules import OPSD, SFT, KnowledgeModule, MixSD

__all__ = [
    "OPSD",
    "SFT",
    "CollapseAlert",
    "Completions",
    "CorpusDataModule",
    "CounterFact",
    "Dashboard",
    "ErrorModes",
    "Example",
    "Facts",
    "FisherDrift",
    "KGFact",
    "KGFunc",
    "KnowledgeModule",
    "MQuAKE",
    "MetricsFile",
    "MixSD",
    "Retention",
    "SimpleQA",
    "export_student",
]
__version__ = "0.1.0"
