"""Methods of teaching a model new knowledge: one LightningModule each."""

from mixsd_lightning.modules.base import KnowledgeModule
from mixsd_lightning.modules.mixsd import MixSD
from mixsd_lightning.modules.opsd import OPSD
from mixsd_lightning.modules.sft import SFT
from mixsd_lightning.modules.unisd import UniSD

__all__ = ["OPSD", "SFT", "KnowledgeModule", "MixSD", "UniSD"]
