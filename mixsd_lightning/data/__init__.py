"""Corpora: one DataModule each, all of them usable by every method."""

from mixsd_lightning.data.base import CorpusDataModule
from mixsd_lightning.data.counterfact import CounterFact
from mixsd_lightning.data.facts import Facts
from mixsd_lightning.data.kgfact import KGFact
from mixsd_lightning.data.kgfunc import KGFunc
from mixsd_lightning.data.mquake import MQuAKE
from mixsd_lightning.data.simpleqa import SimpleQA

__all__ = ["CorpusDataModule", "CounterFact", "Facts", "KGFact", "KGFunc", "MQuAKE", "SimpleQA"]
