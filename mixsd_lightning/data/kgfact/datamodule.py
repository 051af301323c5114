"""KGFact as a DataModule: splits and their wording."""

import random
from collections.abc import Callable, Sequence

from typing_extensions import override

from mixsd_lightning.context import INSTRUCTIONS, user_turn
from mixsd_lightning.data.base import CorpusDataModule
from mixsd_lightning.data.kgfact.graph import Edge, build_edges, entity_names, sentence, two_hop_paths
from mixsd_lightning.errors import UserError, require
from mixsd_lightning.example import Example

PRESETS = {"KGFact-Small": (5, 10), "KGFact-Large": (7, 25)}
"""Preset -> (number of domains, entities per domain): 100 and 525 facts."""

NUM_CONTEXT_LINES = 50


class KGFact(CorpusDataModule):
    """Facts about invented entities, written as a small knowledge graph (MixSD, arXiv 2605.16865).

    Splits: `train` (every fact once; asked again it is the memorization test), `paraphrase` (the same facts asked in other
    words), `two_hop` (all chains of two facts), `retrieval` (facts about other entities, with the answer among 50 background
    lines: a skill that training should keep).
    """

    available_splits = ("train", "paraphrase", "two_hop", "retrieval")

    def __init__(
        self,
        preset: str = "KGFact-Small",
        num_domains: int | None = None,
        num_entities: int | None = None,
        answer_format: str = "sentence",
        num_paraphrases: int = 1,
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
            batch_size: Examples in a training batch, per device.
            eval_batch_size: Questions that are answered at once during validation.
            eval_splits: Splits that are answered at each validation.
            max_eval_examples: Ask at most this many questions of each split (a fixed random choice); all by default.
            seed: Decides the facts, the wording of paraphrases and the order of training examples.
        """
        super().__init__(batch_size, eval_batch_size, eval_splits, max_eval_examples, seed)
        if preset not in PRESETS:
            raise UserError(f"--data.preset: there is no '{preset}'; choose from {', '.join(PRESETS)}.")
        self.num_domains = PRESETS[preset][0] if num_domains is None else num_domains
        self.num_entities = PRESETS[preset][1] if num_entities is None else num_entities
        self.answer_format = answer_format
        self.num_paraphrases = num_paraphrases
        most_domains, most_entities = len(entity_names()), min(map(len, entity_names().values()))
        require("data.num_domains", num_domains, 2 <= self.num_domains <= most_domains, f"2 to {most_domains}")
        require("data.num_entities", num_entities, 1 <= self.num_entities <= most_entities, f"1 to {most_entities}")
        if answer_format not in INSTRUCTIONS:
            raise UserError(f"--data.answer_format: '{answer_format}' is none of {', '.join(INSTRUCTIONS)}.")
        require("data.num_paraphrases", num_paraphrases, 1 <= num_paraphrases <= 4, "1 to 4")
        if "retrieval" in self.eval_splits and self.num_entities == most_entities:
            raise UserError(
                f"--data.eval_splits: 'retrieval' needs entities outside the training facts; use fewer than {most_entities} "
                "--data.num_entities, or leave the split out."
            )

    @override
    def build_splits(self, names: Sequence[str]) -> dict[str, list[Example]]:
        makers: dict[str, Callable[[list[Edge]], list[Example]]] = {
            "train": self._train,
            "paraphrase": self._paraphrase,
            "two_hop": self._two_hop,
            "retrieval": self._retrieval,
        }
        edges = build_edges(self.num_domains, range(self.num_entities), self.seed)
        return {name: makers[name](edges) for name in names}

    def _train(self, edges: list[Edge]) -> list[Example]:
        return [self._atomic(f"train-{index}", edge, _question(edge)) for index, edge in enumerate(edges)]

    def _paraphrase(self, edges: list[Edge]) -> list[Example]:
        rng = random.Random(f"{self.seed}|paraphrase")
        examples = []
        for index, edge in enumerate(edges):
            wordings = edge.relation.paraphrases(edge.source.mention)
            for number, question in enumerate(rng.sample(wordings, self.num_paraphrases)):
                examples.append(self._atomic(f"paraphrase-{index}-{number}", edge, question))
        return examples

    def _two_hop(self, edges: list[Edge]) -> list[Example]:
        examples = []
        for index, (first, second) in enumerate(two_hop_paths(edges)):
            question = second.relation.question(first.relation.relative(first.source.mention))
            if self.answer_format == "boxed":
                conclusion = f"So the answer is {second.target.name}."
                target = f"1. {first.statement}\n2. {second.statement}\n{conclusion}\n\n\\boxed{{{second.target.name}}}"
            else:
                target = second.relation.statement(
                    sentence(first.relation.relative(first.source.mention)), second.target.mention
                )
            examples.append(
                Example(
                    id=f"two_hop-{index}",
                    question=question,
                    prompt=user_turn(question, self.answer_format),
                    answer=second.target.name,
                    target=target,
                    fact=f"{first.statement} {second.statement}",
                    answer_format=self.answer_format,
                    subject=first.source.name,
                )
            )
        return examples

    def _retrieval(self, edges: list[Edge]) -> list[Example]:
        # Background comes from all domains, so that there are 50 different lines even where the corpus itself is tiny.
        last = min(2 * self.num_entities, min(map(len, entity_names().values())))
        others = build_edges(len(entity_names()), range(self.num_entities, last), self.seed + 1000)
        asked_domains = list(entity_names())[: self.num_domains]
        examples: list[Example] = []
        for edge in others:
            if edge.target.domain not in asked_domains:  # sources come before targets in the order of domains
                continue
            rng = random.Random(f"{self.seed}|retrieval|{edge.statement}")
            distractors = [other for other in others if other is not edge]
            rng.shuffle(distractors)
            # Facts about the same two entities first: they are the hard ones.
            distractors.sort(key=lambda other: not {edge.source, edge.target} & {other.source, other.target})
            lines = [edge.statement, *(other.statement for other in distractors[: NUM_CONTEXT_LINES - 1])]
            rng.shuffle(lines)
            background = "Background:\n" + "\n".join(f"- {line}" for line in lines)
            examples.append(self._atomic(f"retrieval-{len(examples)}", edge, _question(edge), background))
        return examples

    def _atomic(self, example_id: str, edge: Edge, question: str, background: str = "") -> Example:
        prompt = user_turn(question, self.answer_format)
        boxed = f"\n\n\\boxed{{{edge.target.name}}}" if self.answer_format == "boxed" else ""
        return Example(
            id=example_id,
            question=question,
            prompt=f"{background}\n\n{prompt}" if background else prompt,
            answer=edge.target.name,
            target=edge.statement + boxed,
            fact=edge.statement,
            answer_format=self.answer_format,
            subject=edge.source.name,
        )


def _question(edge: Edge) -> str:
    return edge.relation.question(edge.source.mention)
