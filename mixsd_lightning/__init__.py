"""Teach a language model new knowledge without making it forget what it knew."""

from mixsd_lightning.callbacks import Completions, FisherDrift, MetricsFile, Retention
from mixsd_lightning.data import CorpusDataModule, KGFact
from mixsd_lightning.example import Example
from mixsd_lightning.modules import SFT, KnowledgeModule, MixSD

__all__ = [
    "SFT",
    "Completions",
    "CorpusDataModule",
    "Example",
    "FisherDrift",
    "KGFact",
    "KnowledgeModule",
    "MetricsFile",
    "MixSD",
    "Retention",
]
__version__ = "0.1.0"
