"""Corpora: one DataModule each, all of them usable by every method."""

from mixsd_lightning.data.base import CorpusDataModule
from mixsd_lightning.data.cos_e import CosE
from mixsd_lightning.data.counterfact import CounterFact
from mixsd_lightning.data.facts import Facts
from mixsd_lightning.data.kgfact import KGFact
from mixsd_lightning.data.kgfunc import KGFunc
from mixsd_lightning.data.mbpp import MBPP
from mixsd_lightning.data.mquake import MQuAKE
from mixsd_lightning.data.scienceqa import ScienceQA
from mixsd_lightning.data.simpleqa import SimpleQA
from mixsd_lightning.data.toolalpaca import ToolAlpaca

__all__ = [
    "MBPP",
    "CorpusDataModule",
    "CosE",
    "CounterFact",
    "Facts",
    "KGFact",
    "KGFunc",
    "MQuAKE",
    "ScienceQA",
    "SimpleQA",
    "ToolAlpaca",
]
