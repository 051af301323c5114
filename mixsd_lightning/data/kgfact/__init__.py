"""KGFact: atomic facts about invented entities, and the questions that test whether they were learnt."""

from mixsd_lightning.data.kgfact.datamodule import KGFact

__all__ = ["KGFact"]
