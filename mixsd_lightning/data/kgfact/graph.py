"""The knowledge graph behind KGFact: invented entities of 14 domains and relations between them.

A relation leads from a domain to a later one in a fixed order, so the graph has no cycles. Entities and relations are listed
in ``entities.yaml`` and ``relations.yaml``; every sentence is derived from a relation's three phrases.
"""

import random
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

import yaml


@dataclass(frozen=True)
class Entity:
    """An invented entity; its domain is also the label that sentences use for its type."""

    domain: str
    name: str

    @property
    def mention(self) -> str:
        """How a sentence refers to it: persons by name, all others with their type."""
        return self.name if self.domain == "person" else f"the {self.domain} {self.name}"


@dataclass(frozen=True)
class Relation:
    """A relation between two domains, as a verb phrase in three forms; ``_`` marks the object's place if not the end."""

    source: str
    target: str
    base: str
    """Bare infinitive (``choose _ as its home``), or ``-`` where ``past`` begins with "was"."""
    past: str
    """Simple past (``chose _ as its home``)."""
    inverse: str
    """The same said of the object, with ``{e1}`` for the subject (``serves as the home of {e1}``)."""

    def statement(self, e1: str, e2: str) -> str:
        """Sentence that states the fact; ``e1`` and ``e2`` are mentions."""
        return sentence(f"{e1} {self._with_object(e2)}.")

    def question(self, e1: str) -> str:
        """Question for the object."""
        if self.base == "-":
            return f"Which {self.target} was {e1} {_without_gap(self.past).removeprefix('was ')}?"
        return f"Which {self.target} did {e1} {_without_gap(self.base)}?"

    def relative(self, e1: str) -> str:
        """Noun phrase that denotes the object."""
        return f"the {self.target} that {e1} {_without_gap(self.past)}"

    def paraphrases(self, e1: str) -> tuple[str, str, str, str]:
        """Four other ways to ask for the object; the first two also use the relation's converse wording."""
        inverse = self.inverse.format(e1=e1)
        return (
            f"Which {self.target} {inverse}?",
            f"What is the name of the {self.target} that {inverse}?",
            f"Name {self.relative(e1)}.",
            sentence(f"{e1} {self._with_object(f'a certain {self.target}')}. What is that {self.target} called?"),
        )

    def _with_object(self, mention: str) -> str:
        return self.past.replace("_", mention) if "_" in self.past else f"{self.past} {mention}"


@dataclass(frozen=True)
class Edge:
    """One atomic fact."""

    source: Entity
    relation: Relation
    target: Entity

    @property
    def statement(self) -> str:
        """The fact as a sentence."""
        return self.relation.statement(self.source.mention, self.target.mention)


@cache
def entity_names() -> dict[str, tuple[str, ...]]:
    """Domain -> its 50 invented names; the domains are in graph order."""
    listed = yaml.safe_load((files(__package__) / "entities.yaml").read_text(encoding="utf-8"))
    return {domain: tuple(names) for domain, names in listed.items()}


@cache
def relations() -> dict[tuple[str, str], tuple[Relation, ...]]:
    """(source domain, target domain) -> its 10 relations, for all 91 forward pairs."""
    listed = yaml.safe_load((files(__package__) / "relations.yaml").read_text(encoding="utf-8"))
    table = {}
    for pair, lines in listed.items():
        source, target = pair.split(" > ")
        table[source, target] = tuple(
            Relation(source, target, *(phrase.strip() for phrase in line.split("|"))) for line in lines
        )
    return table


def build_edges(num_domains: int, entity_range: range, seed: int) -> list[Edge]:
    """Draw the facts: one edge from every entity to each later domain.

    Within the graph (source, relation) determines the target and (relation, target) the source, so no question has two
    answers. The number of edges is ``len(entity_range) * num_domains * (num_domains - 1) / 2``.

    Args:
        num_domains: Take the first so many domains.
        entity_range: Which entities of each domain to use.
        seed: The same seed gives the same facts on every machine.
    """
    rng = random.Random(seed)
    entities = {
        domain: [Entity(domain, names[index]) for index in entity_range]
        for domain, names in list(entity_names().items())[:num_domains]
    }
    domains = list(entities)
    pairs = [(first, second) for index, first in enumerate(domains) for second in domains[index + 1 :]]
    rng.shuffle(pairs)
    edges = []
    for pair in pairs:
        taken: set[tuple[Relation, Entity]] = set()
        for source in rng.sample(entities[pair[0]], len(entity_range)):
            relation = rng.choice(relations()[pair])
            # Some target is always free: fewer sources came before than there are targets.
            target = rng.choice([entity for entity in entities[pair[1]] if (relation, entity) not in taken])
            taken.add((relation, target))
            edges.append(Edge(source, relation, target))
    return edges


def two_hop_paths(edges: list[Edge]) -> list[tuple[Edge, Edge]]:
    """Every pair of edges in which the second starts where the first ends, in the order of ``edges``."""
    outgoing: dict[Entity, list[Edge]] = {}
    for edge in edges:
        outgoing.setdefault(edge.source, []).append(edge)
    return [(first, second) for first in edges for second in outgoing.get(first.target, [])]


def sentence(text: str) -> str:
    """The text with its first letter in upper case."""
    return text[0].upper() + text[1:]


def _without_gap(phrase: str) -> str:
    return " ".join(phrase.replace("_", " ").split())
