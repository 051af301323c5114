"""Corpora: one DataModule each, all of them usable by every method."""

from mixsd_lightning.data.base import CorpusDataModule, Example
from mixsd_lightning.data.kgfact import KGFact

__all__ = ["CorpusDataModule", "Example", "KGFact"]
