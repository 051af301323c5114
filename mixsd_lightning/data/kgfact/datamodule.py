"""KGFact as a DataModule: splits and their wording."""

import random
from collections.abc import Callable, Sequence
from dataclasses import replace

from typing_extensions import override

from mixsd_lightning.context import NAMING_FORMATS
from mixsd_lightning.data.base import CorpusDataModule
from mixsd_lightning.data.kgfact.graph import Edge, build_edges, entity_names, two_hop_paths
from mixsd_lightning.data.kgfact.questions import Chain, ask, statements
from mixsd_lightning.errors import UserError, require
from mixsd_lightning.example import Example

PRESETS = {"KGFact-Small": (5, 10), "KGFact-Large": (7, 25)}
"""Preset -> (number of domains, entities per domain): 100 and 525 facts."""

NUM_CONTEXT_LINES = 50
"""Background lines of `retrieval`, for each fact that an answer needs."""
NUM_SHOTS = 5
_PARTS = {"two_hop_train": (0.0, 0.8), "two_hop_val": (0.8, 0.9), "two_hop_test": (0.9, 1.0)}
"""Split -> its part of all chains in random order."""


class KGFact(CorpusDataModule):
    """Facts about invented entities, written as a small knowledge graph (MixSD, arXiv 2605.16865).

    Splits: `train` (every fact once; asked again it is the memorization test), `paraphrase` (the same facts asked in other
    words), `two_hop` (all chains of two facts), `two_hop_train`, `two_hop_val` and `two_hop_test` (80, 10 and 10 % of them),
    `two_hop_5shot` (`two_hop_test` after five solved chains of `two_hop_train`), `retrieval` (facts about other entities, with
    the answer among 50 background lines: a skill that training should keep), `two_hop_retrieval` (chains of such facts, among
    at most 100 lines).
    """

    available_splits = ("train", "paraphrase", "two_hop", *_PARTS, "two_hop_5shot", "retrieval", "two_hop_retrieval")

    def __init__(
        self,
        preset: str = "KGFact-Small",
        num_domains: int | None = None,
        num_entities: int | None = None,
        answer_format: str = "sentence",
        num_paraphrases: int = 1,
        train_split: str = "train",
        expert_context: str | None = None,
        batch_size: int = 16,
        eval_batch_size: int = 64,
        eval_splits: Sequence[str] = ("train", "paraphrase"),
        max_eval_examples: int | None = None,
        seed: int = 42,
    ) -> None:
        """
        Args:
            preset: `KGFact-Small` (5 domains of 10 entities, 100 facts) or `KGFact-Large` (7 of 25, 525 facts).
            num_domains: Use the first so many of the 14 domains; by default what the preset says.
            num_entities: Entities per domain, at most 50; by default what the preset says.
            answer_format: `sentence` asks for one short sentence; `boxed` is the paper's (reason, then a boxed answer), which
                models under about 1B hardly hold.
            num_paraphrases: Wordings of each fact in the `paraphrase` split, 1 to 4.
            train_split: What is taught: `train`, the facts, or `two_hop_train`, chains of them.
            expert_context: How the expert is shown the fact: by default `fact_first` for `sentence` and `knowledge_base`, the
                paper's, for `boxed`.
            batch_size: Examples in a training batch, per device.
            eval_batch_size: Questions that are answered at once during validation.
            eval_splits: Splits that are answered at each validation.
            max_eval_examples: Ask at most this many questions of each split (a fixed random choice); all by default.
            seed: Decides the facts, the wording of paraphrases and the order of training examples.
        """
        super().__init__(batch_size, eval_batch_size, eval_splits, max_eval_examples, seed, expert_context)
        if preset not in PRESETS:
            raise UserError(f"--data.preset: there is no '{preset}'; choose from {', '.join(PRESETS)}.")
        self.num_domains = PRESETS[preset][0] if num_domains is None else num_domains
        self.num_entities = PRESETS[preset][1] if num_entities is None else num_entities
        self.answer_format = answer_format
        self.train_split = train_split
        self.num_paraphrases = num_paraphrases
        most_domains, most_entities = len(entity_names()), min(map(len, entity_names().values()))
        require("data.num_domains", num_domains, 2 <= self.num_domains <= most_domains, f"2 to {most_domains}")
        require("data.num_entities", num_entities, 1 <= self.num_entities <= most_entities, f"1 to {most_entities}")
        if answer_format not in NAMING_FORMATS:
            raise UserError(f"--data.answer_format: '{answer_format}' is none of {', '.join(NAMING_FORMATS)}.")
        if train_split not in ("train", "two_hop_train"):
            raise UserError(f"--data.train_split: '{train_split}' is none of train, two_hop_train.")
        require("data.num_paraphrases", num_paraphrases, 1 <= num_paraphrases <= 4, "1 to 4")
        if {"retrieval", "two_hop_retrieval"} & set(self.eval_splits) and self.num_entities == most_entities:
            raise UserError(
                f"--data.eval_splits: retrieval needs entities outside the training facts; use fewer than {most_entities} "
                "--data.num_entities, or leave it out."
            )

    @override
    def build_splits(self, names: Sequence[str]) -> dict[str, list[Example]]:
        makers: dict[str, Callable[[str, list[Edge]], list[Example]]] = {
            "train": lambda name, edges: self._ask_all(name, [(edge,) for edge in edges]),
            "paraphrase": self._paraphrase,
            "two_hop": lambda name, edges: self._ask_all(name, two_hop_paths(edges)),
            "two_hop_5shot": self._after_shots,
            "retrieval": self._retrieval,
            "two_hop_retrieval": self._retrieval,
        }
        edges = build_edges(self.num_domains, range(self.num_entities), self.seed)
        return {name: makers.get(name, self._part)(name, edges) for name in names}

    def _ask_all(self, split: str, chains: Sequence[Chain]) -> list[Example]:
        return [ask(f"{split}-{index}", chain, self.answer_format) for index, chain in enumerate(chains)]

    def _paraphrase(self, split: str, edges: list[Edge]) -> list[Example]:
        rng = random.Random(f"{self.seed}|paraphrase")
        examples = []
        for index, edge in enumerate(edges):
            wordings = edge.relation.paraphrases(edge.source.mention)
            for number, question in enumerate(rng.sample(wordings, self.num_paraphrases)):
                examples.append(ask(f"{split}-{index}-{number}", (edge,), self.answer_format, question))
        return examples

    def _part(self, split: str, edges: list[Edge]) -> list[Example]:
        chains = two_hop_paths(edges)
        random.Random(f"{self.seed}|two_hop").shuffle(chains)
        first, last = (round(len(chains) * end) for end in _PARTS[split])
        return self._ask_all(split, chains[first:last])

    def _after_shots(self, split: str, edges: list[Edge]) -> list[Example]:
        solved = self._part("two_hop_train", edges)
        examples = []
        for index, example in enumerate(self._part("two_hop_test", edges)):
            shots = random.Random(f"{self.seed}|{split}|{index}").sample(solved, min(NUM_SHOTS, len(solved)))
            blocks = [f"Question: {shot.question}\nAnswer: {shot.target}" for shot in shots]
            prompt = "\n\n".join([*blocks, f"Question: {example.prompt}"])
            examples.append(replace(example, id=f"{split}-{index}", prompt=prompt))
        return examples

    def _retrieval(self, split: str, edges: list[Edge]) -> list[Example]:
        # Background comes from all domains, so that there are 50 different lines even where the corpus itself is tiny.
        last = min(2 * self.num_entities, min(map(len, entity_names().values())))
        others = build_edges(len(entity_names()), range(self.num_entities, last), self.seed + 1000)
        asked_domains = list(entity_names())[: self.num_domains]
        # Sources come before targets in the order of domains.
        asked = [edge for edge in others if edge.target.domain in asked_domains]
        chains: Sequence[Chain] = [(edge,) for edge in asked] if split == "retrieval" else two_hop_paths(asked)
        return [
            ask(f"{split}-{index}", chain, self.answer_format, background=self._background(chain, others))
            for index, chain in enumerate(chains)
        ]

    def _background(self, chain: Chain, others: Sequence[Edge]) -> list[str]:
        rng = random.Random(f"{self.seed}|retrieval|{' '.join(statements(chain))}")
        distractors = [other for other in others if all(other is not edge for edge in chain)]
        rng.shuffle(distractors)
        # Facts about the same entities first: they are the hard ones.
        entities = {entity for edge in chain for entity in (edge.source, edge.target)}
        distractors.sort(key=lambda other: entities.isdisjoint((other.source, other.target)))
        lines = [*statements(chain), *(other.statement for other in distractors)][: NUM_CONTEXT_LINES * len(chain)]
        rng.shuffle(lines)
        return lines
