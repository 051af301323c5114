"""Teach a language model new knowledge without making it forget what it knew."""

from mixsd_lightning.callbacks import (
    Checkpoints,
    CollapseAlert,
    Completions,
    Dashboard,
    ErrorModes,
    FisherDrift,
    MetricsFile,
    Resources,
    Retention,
)
from mixsd_lightning.data import (
    MBPP,
    CorpusDataModule,
    CosE,
    CounterFact,
    Facts,
    KGFact,
    KGFunc,
    MQuAKE,
    ScienceQA,
    SimpleQA,
    ToolAlpaca,
)
from mixsd_lightning.example import Example
from mixsd_lightning.export import export_student
from mixsd_lightning.modules import OPSD, SFT, KnowledgeModule, MixSD, UniSD

__all__ = [
    "MBPP",
    "OPSD",
    "SFT",
    "Checkpoints",
    "CollapseAlert",
    "Completions",
    "CorpusDataModule",
    "CosE",
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
    "Resources",
    "Retention",
    "ScienceQA",
    "SimpleQA",
    "ToolAlpaca",
    "UniSD",
    "export_student",
]
__version__ = "0.1.0"
