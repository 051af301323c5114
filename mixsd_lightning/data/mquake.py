"""MQuAKE: counterfactual facts, and questions that need several of them."""

import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from typing_extensions import override

from mixsd_lightning.context import user_turn, with_background
from mixsd_lightning.data.base import CorpusDataModule
from mixsd_lightning.data.wording import gap_question, statement
from mixsd_lightning.errors import UserError, require
from mixsd_lightning.example import Example
from mixsd_lightning.records import DataSet, Row, read_rows

_PUBLISHED = "https://raw.githubusercontent.com/princeton-nlp/MQuAKE/main/datasets/MQuAKE-CF-3k-v2.json"
_DATA = DataSet("mquake/*.json", _PUBLISHED, option="--data")
_CHAINS = {"two_hop": 2, "three_hop": 3, "four_hop": 4}
_NUM_CONTEXT_LINES = 50


@dataclass(frozen=True)
class Fact:
    """One hop of a chain, as it is after the edits."""

    question: str
    cloze: str
    answer: str
    subject: str

    @property
    def statement(self) -> str:
        """The fact as a sentence."""
        return statement(self.cloze, self.answer)


@dataclass(frozen=True)
class Case:
    """Facts that follow one from another, and questions about the last that name only the first's subject."""

    facts: tuple[Fact, ...]
    questions: tuple[str, ...]
    answer: str
    relation: str
    """Relation of the first edit."""


class MQuAKE(CorpusDataModule):
    """Counterfactual facts about real things (Zhong et al., arXiv 2305.14795), taught as facts, with questions over chains of them.

    Splits: `train` (every hop of the chosen cases; asked again it is the memorization test), `paraphrase` (the same facts as
    sentences to complete), `two_hop`, `three_hop` and `four_hop` (all questions about chains of that length), and `retrieval`
    (facts of cases that share none with the chosen ones, the answer among at most 50 background lines). Answers are compared
    with the main name alone, not with its aliases.
    """

    available_splits = ("train", "paraphrase", "retrieval", *_CHAINS)

    def __init__(
        self,
        file: str | None = None,
        data_dir: str | None = None,
        max_facts: int | None = 100,
        answer_format: str = "short",
        expert_context: str | None = None,
        batch_size: int = 16,
        eval_batch_size: int = 64,
        eval_splits: Sequence[str] = ("train", "paraphrase"),
        max_eval_examples: int | None = 200,
        seed: int = 42,
    ) -> None:
        """
        Args:
            file: Cases in MQuAKE-CF's form, a JSON list.
            data_dir: Folder that has `mquake/*.json`, if there is no `file`; without both, MQuAKE-CF-3k-v2 is fetched (extra
                `hub`).
            max_facts: Teach at most so many facts, of cases with as many different first relations as possible; null takes all.
            answer_format: `short`, or `boxed`, the paper's (for models from about 1B).
            expert_context: How the expert is shown the fact; by default what suits the answer format.
            batch_size: Examples in a training batch, per device.
            eval_batch_size: Questions that are answered at once during validation.
            eval_splits: Splits that are answered at each validation.
            max_eval_examples: Ask at most this many questions of each split (a fixed random choice); null asks all.
            seed: Decides the choice of cases and the order of training examples.
        """
        super().__init__(batch_size, eval_batch_size, eval_splits, max_eval_examples, seed, expert_context)
        require("data.max_facts", max_facts, max_facts is None or max_facts >= 1, "at least 1, or null for all")
        if answer_format not in ("short", "boxed"):
            raise UserError(f"--data.answer_format: '{answer_format}' is none of short, boxed.")
        if max_facts is None and "retrieval" in self.eval_splits:
            raise UserError(
                "--data.eval_splits: retrieval needs facts that are not taught; set --data.max_facts, or leave it out."
            )
        self.file = file
        self.data_dir = data_dir
        self.max_facts = max_facts
        self.answer_format = answer_format

    @override
    def build_splits(self, names: Sequence[str]) -> dict[str, list[Example]]:
        rows = read_rows(Path(self.file).expanduser(), "--data.file") if self.file else _DATA.rows(self.data_dir)
        cases = _without_contradictions([_case(row) for row in rows])
        chosen = _choose(cases, self.max_facts, random.Random(f"{self.seed}|mquake"))
        if not chosen and cases:
            least = min(len(_facts([case])) for case in cases)
            raise UserError(f"--data.max_facts: no case has so few as {self.max_facts} facts; set at least {least}.")
        facts = _facts(chosen)
        makers: dict[str, Callable[[], list[Example]]] = {
            "train": lambda: [self._atomic("train", number, fact, fact.question) for number, fact in enumerate(facts)],
            "paraphrase": lambda: [
                self._atomic("paraphrase", number, fact, gap_question(fact.cloze)) for number, fact in enumerate(facts)
            ],
            "retrieval": lambda: self._retrieval(cases, facts),
        }
        return {name: makers[name]() if name in makers else self._chains(name, chosen) for name in names}

    def _retrieval(self, cases: Sequence[Case], taught: Sequence[Fact]) -> list[Example]:
        rng = random.Random(f"{self.seed}|mquake|retrieval")
        clozes = {fact.cloze for fact in taught}
        untouched = [case for case in cases if not any(fact.cloze in clozes for fact in case.facts)]
        facts = _facts(_choose(untouched, self.max_facts, rng))
        examples = []
        for number, fact in enumerate(facts):
            others = [other.statement for other in facts if other is not fact]
            lines = [fact.statement, *rng.sample(others, min(len(others), _NUM_CONTEXT_LINES - 1))]
            rng.shuffle(lines)
            examples.append(self._atomic("retrieval", number, fact, fact.question, lines))
        return examples

    def _chains(self, split: str, cases: Sequence[Case]) -> list[Example]:
        asked = {question: case for case in cases if len(case.facts) == _CHAINS[split] for question in case.questions}
        return [self._chain(f"{split}-{number}", question, case) for number, (question, case) in enumerate(asked.items())]

    def _chain(self, example_id: str, question: str, case: Case) -> Example:
        steps = "\n".join(f"{number}. {fact.statement}" for number, fact in enumerate(case.facts, start=1))
        return Example(
            id=example_id,
            question=question,
            prompt=user_turn(question, self.answer_format),
            answer=case.answer,
            target=f"{steps}\n\n\\boxed{{{case.answer}}}" if self.answer_format == "boxed" else case.answer,
            fact=" ".join(fact.statement for fact in case.facts),
            answer_format=self.answer_format,
            subject=case.facts[0].subject,
        )

    def _atomic(self, split: str, number: int, fact: Fact, question: str, background: Sequence[str] = ()) -> Example:
        boxed = f"{fact.statement}\n\n\\boxed{{{fact.answer}}}"
        return Example(
            id=f"{split}-{number}",
            question=question,
            prompt=with_background(background, user_turn(question, self.answer_format)),
            answer=fact.answer,
            target=boxed if self.answer_format == "boxed" else fact.answer,
            fact=fact.statement,
            answer_format=self.answer_format,
            subject=fact.subject,
        )


def _case(row: Row) -> Case:
    """A record of MQuAKE-CF."""
    try:
        edits, hops = row.fields["requested_rewrite"], row.fields["new_single_hops"]
        triples = row.fields["orig"]["new_triples_labeled"]
        facts = tuple(
            Fact(_text(hop["question"]), _text(hop["cloze"]), _text(hop["answer"]), _text(triple[0]))
            for hop, triple in zip(_list(hops), _list(triples), strict=True)
        )
        questions = tuple(_text(question) for question in _list(row.fields["questions"]))
        return Case(facts, questions, _text(row.fields["new_answer"]), _text(edits[0]["relation_id"]))
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        raise row.wrong(f"is no case of MQuAKE-CF ({type(error).__name__}: {error})") from error


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{value!r} is no text")
    return value.strip()


def _list(value: Any) -> list:
    if not isinstance(value, list) or not value:
        raise ValueError(f"{value!r} is no list with anything in it")
    return value


def _without_contradictions(cases: Iterable[Case]) -> list[Case]:
    """The cases without those that say of a thing what an earlier one, or they themselves, said otherwise."""
    known: dict[str, Fact] = {}
    kept, rejected = [], []
    for case in cases:
        said: dict[str, Fact] = {}
        pairs = [(fact, known.get(fact.cloze) or said.setdefault(fact.cloze, fact)) for fact in case.facts]
        contradiction = next(((fact, other) for fact, other in pairs if fact.answer != other.answer), None)
        if contradiction is None:
            known.update(said)
            kept.append(case)
        else:
            rejected.append(contradiction)
    if rejected:
        fact, other = rejected[0]
        rank_zero_warn(
            f"{len(rejected)} of {len(kept) + len(rejected)} cases are left out, because they contradict others; the first: "
            f"'{fact.statement}' against '{other.statement}'"
        )
    return kept


def _choose(cases: Sequence[Case], max_facts: int | None, rng: random.Random) -> list[Case]:
    """Cases of at most ``max_facts`` different facts: in turn one for each first relation, the one that adds the fewest facts."""
    if max_facts is None:
        return list(cases)
    groups: dict[str, list[Case]] = {}
    for case in cases:
        groups.setdefault(case.relation, []).append(case)
    queues = rng.sample(list(groups.values()), len(groups))
    chosen: list[Case] = []
    taken: set[str] = set()
    size = -1
    while size < len(chosen):  # until nothing fits any more
        size = len(chosen)
        for queue in filter(None, queues):
            needed = [{fact.cloze for fact in case.facts} - taken for case in queue]
            index = min(range(len(queue)), key=lambda number: len(needed[number]))
            if len(taken) + len(needed[index]) <= max_facts:
                chosen.append(queue.pop(index))
                taken |= needed[index]
    return chosen


def _facts(cases: Iterable[Case]) -> list[Fact]:
    """The different facts of the cases, in order."""
    facts: dict[str, Fact] = {}
    for case in cases:
        for fact in case.facts:
            facts.setdefault(fact.cloze, fact)
    return list(facts.values())
