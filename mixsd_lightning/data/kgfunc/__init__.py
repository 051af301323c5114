"""KGFunc: functions on the digits of a number, to be inferred from examples (MixSD, arXiv 2605.16865)."""

from mixsd_lightning.data.kgfunc.datamodule import KGFunc

__all__ = ["KGFunc"]
