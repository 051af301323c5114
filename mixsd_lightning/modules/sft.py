"""Supervised fine-tuning, the baseline: the student learns the canonical answer turns."""

from collections.abc import Sequence

from typing_extensions import override

from mixsd_lightning.data.batches import TrainItem
from mixsd_lightning.example import Example
from mixsd_lightning.modules.supervised import SupervisedModule


class SFT(SupervisedModule):
    """Supervised fine-tuning on the canonical answers of a corpus.

    The loss is the NLL of the answer turn, its end-of-turn token included, and of nothing else. It memorizes well and
    forgets much, because its targets are improbable under the model (`targets/nll_base` says how improbable).
    """

    @override
    def training_items(self, examples: Sequence[Example]) -> list[TrainItem]:
        return [self.supervised_item(example, self.encoder.target(example.target)) for example in examples]
