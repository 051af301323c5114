"""What any corpus must keep to."""

import hashlib
from collections.abc import Iterable

from mixsd_lightning import CorpusDataModule
from mixsd_lightning.evaluation.scoring import is_exact_match
from mixsd_lightning.example import Example


def all_examples(corpus: CorpusDataModule) -> list[Example]:
    """The examples of all splits, some of which may be empty."""
    return [example for examples in corpus.build_splits(corpus.available_splits).values() for example in examples]


def wrong_targets(examples: Iterable[Example]) -> list[Example]:
    """Examples whose own target is not scored as right."""
    return [e for e in examples if not is_exact_match(e.target, e.answer, e.question, e.answer_format)]


def digest(corpus: CorpusDataModule) -> str:
    """Of all examples."""
    return hashlib.sha256(repr(all_examples(corpus)).encode()).hexdigest()
