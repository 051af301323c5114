"""Suites whose examples come from a data set, loaded when they are first needed."""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import asdict
from functools import cached_property
from typing import Any, Generic, TypeVar

from typing_extensions import override

from mixsd_lightning.disk_cache import digest
from mixsd_lightning.errors import require
from mixsd_lightning.evaluation.suites.base import Suite
from mixsd_lightning.records import evenly_spaced

Example = TypeVar("Example")
"""A dataclass of JSON values."""


class DataSuite(Suite, Generic[Example]):
    """A suite that asks all examples of a data set, or some at even distances."""

    revision = 1
    """Of the protocol: how examples are put to the model and scored. What another revision measured is not comparable."""

    def __init__(self, limit: int, batch_size: int, every_n_validations: int) -> None:
        super().__init__(every_n_validations)
        require(f"retention.suites: {self.name}.limit", limit, limit >= 0, "at least 1, or 0 for all examples")
        require(f"retention.suites: {self.name}.batch_size", batch_size, batch_size >= 1, "at least 1")
        self.limit = limit
        self.batch_size = batch_size

    @abstractmethod
    def load(self) -> Sequence[Example]:
        """All examples of the data set, in a fixed order."""

    @cached_property
    def examples(self) -> Sequence[Example]:
        """Those that are asked."""
        return evenly_spaced(self.load(), self.limit)

    @override
    def setup(self) -> None:
        _ = self.examples

    @property
    @override
    def settings(self) -> dict[str, Any]:
        examples = [asdict(example) for example in self.examples]  # type: ignore[call-overload]
        return {"revision": self.revision, "examples": digest(examples)}
