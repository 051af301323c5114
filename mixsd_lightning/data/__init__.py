"""Corpora: one DataModule each, all of them usable by every method."""

from mixsd_lightning.data.base import CorpusDataModule
from mixsd_lightning.data.kgfact import KGFact

__all__ = ["CorpusDataModule", "KGFact"]
