"""What all corpora of published records share that runs use a part of."""

import random
from collections.abc import Sequence
from typing import Any, TypeVar

from mixsd_lightning.data.base import CorpusDataModule
from mixsd_lightning.errors import require

Record = TypeVar("Record")


class SlicedCorpus(CorpusDataModule):
    """Base of the corpora of published records, of which a run takes all or a fixed random choice."""

    def __init__(
        self,
        data_dir: str | None = None,
        max_examples: int | None = None,
        eval_splits: Sequence[str] = ("train", "validation"),
        max_eval_examples: int | None = 200,
        **options: Any,
    ) -> None:
        """
        Args:
            data_dir: Folder with the data set's file; by default it comes from the Hugging Face Hub.
            max_examples: Use at most this many examples of each split (a fixed random choice); null uses all.
            eval_splits: Splits that are answered at each validation.
            max_eval_examples: Ask at most this many examples of each split (a fixed random choice); null asks all.
            options: Those of `CorpusDataModule`.
        """
        super().__init__(eval_splits=eval_splits, max_eval_examples=max_eval_examples, **options)
        require("data.max_examples", max_examples, max_examples is None or max_examples >= 1, "at least 1, or null for all")
        self.data_dir = data_dir
        self.max_examples = max_examples

    def slice_of(self, split: str, records: Sequence[Record]) -> list[Record]:
        """The part of a split's records that is used, in their order. A larger ``max_examples`` takes the same ones and more."""
        shuffled = random.Random(f"{self.seed}|{split}|{type(self).__name__}").sample(range(len(records)), len(records))
        return [records[number] for number in sorted(shuffled[: self.max_examples])]
