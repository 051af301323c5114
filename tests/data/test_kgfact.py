"""KGFact's promises: counts, uniqueness, wording, disjoint skills, and the same examples everywhere."""

import re
from collections import Counter
from collections.abc import Sequence
from functools import cache
from types import SimpleNamespace
from typing import Any

import pytest
from corpus_checks import wrong_targets
from lightning.pytorch import Trainer

from mixsd_lightning.context import INSTRUCTIONS, NAMING_FORMATS, ChatEncoder
from mixsd_lightning.data.kgfact import KGFact
from mixsd_lightning.data.kgfact.graph import Edge, build_edges, entity_names, relations, two_hop_paths
from mixsd_lightning.errors import UserError
from mixsd_lightning.example import Example

SHAPES = {"small": (5, 10, 42), "large": (7, 25, 42), "all domains": (14, 3, 0), "smallest": (2, 1, 1), "fullest": (3, 50, 2)}
RELATIONS = [relation for group in relations().values() for relation in group]
ALL_SPLITS = KGFact.available_splits
PARTS = ("two_hop_train", "two_hop_val", "two_hop_test")
NUM_LINES = {"retrieval": 50, "two_hop_retrieval": 100}


@cache
def corpus(**options: Any) -> KGFact:
    return KGFact(**options)


@pytest.fixture(params=SHAPES)
def edges(request: pytest.FixtureRequest) -> list[Edge]:
    """The facts of a corpus."""
    num_domains, num_entities, seed = SHAPES[request.param]
    return build_edges(num_domains, range(num_entities), seed)


def context_lines(example: Example) -> list[str]:
    return [line.removeprefix("- ") for line in example.prompt.splitlines() if line.startswith("- ")]


def gold_lines(example: Example) -> set[str]:
    """The statements of the fact or facts that the answer needs."""
    return {f"{statement}." for statement in example.fact.removesuffix(".").split(". ")}


def is_well_formed(text: str) -> bool:
    """Starts in upper case, has single spaces, ends as a sentence and shows nothing of how it was made."""
    return bool(re.fullmatch(r"[A-Z](?:[^\s_{}|]| (?! ))*[.?]", text))


@pytest.mark.parametrize(("preset", "num_facts", "num_chains"), [("KGFact-Small", 100, 100), ("KGFact-Large", 525, 875)])
def test_presets_have_the_papers_numbers_of_facts_and_chains(preset: str, num_facts: int, num_chains: int) -> None:
    assert len(corpus(preset=preset).split("train")) == num_facts
    assert len(corpus(preset=preset).split("two_hop")) == num_chains


def test_there_are_14_domains_of_50_entities() -> None:
    assert [len(names) for names in entity_names().values()] == [50] * 14


def test_there_are_10_relations_for_every_ordered_pair_of_domains() -> None:
    domains = list(entity_names())
    pairs = {(first, second) for index, first in enumerate(domains) for second in domains[index + 1 :]}
    assert set(relations()) == pairs
    assert {len(group) for group in relations().values()} == {10}


def test_all_910_relations_are_worded_differently() -> None:
    assert len({relation.past for relation in RELATIONS}) == len(RELATIONS) == 910


def test_no_entity_name_contains_another() -> None:
    names = [name.casefold() for group in entity_names().values() for name in group]
    everything = "\n".join(names)
    assert [name for name in names if everything.count(name) != 1] == []


def test_every_entity_has_one_edge_to_each_later_domain(edges: list[Edge]) -> None:
    counted = Counter((edge.source, edge.target.domain) for edge in edges)
    domains = list(dict.fromkeys(domain for edge in edges for domain in (edge.source.domain, edge.target.domain)))
    in_order = [domain for domain in entity_names() if domain in domains]
    num_entities = len({edge.source for edge in edges if edge.source.domain == in_order[0]})
    assert set(counted.values()) == {1}
    assert len(counted) == num_entities * len(in_order) * (len(in_order) - 1) // 2


def test_relations_lead_from_their_source_domain_to_their_target_domain(edges: list[Edge]) -> None:
    assert all((edge.source.domain, edge.target.domain) == (edge.relation.source, edge.relation.target) for edge in edges)


def test_source_and_relation_determine_the_target(edges: list[Edge]) -> None:
    assert len({(edge.source, edge.relation) for edge in edges}) == len(edges)


def test_relation_and_target_determine_the_source(edges: list[Edge]) -> None:
    assert len({(edge.relation, edge.target) for edge in edges}) == len(edges)


def test_another_seed_gives_other_facts() -> None:
    first, second = ({edge.statement for edge in build_edges(5, range(10), seed)} for seed in (1, 2))
    assert len(first & second) < 20


def test_chains_equal_a_brute_force_enumeration() -> None:
    edges = build_edges(5, range(4), 3)
    brute = [(first, second) for first in edges for second in edges if first.target == second.source]
    assert two_hop_paths(edges) == brute
    assert len(brute) == 4 * 10  # from each entity through two of the later domains, C(5, 3) ways


def test_chain_asks_for_its_end_and_names_only_its_start() -> None:
    facts = {example.fact: example for example in corpus().split("train")}
    for chain in corpus().split("two_hop"):
        first, second = (facts[f"{fact}."] for fact in chain.fact.removesuffix(".").split(". "))
        assert first.answer == second.subject
        assert (chain.subject, chain.answer) == (first.subject, second.answer)
        assert chain.subject in chain.question
        assert first.answer not in chain.question
        assert second.answer not in chain.question


@pytest.mark.parametrize("split", ALL_SPLITS)
def test_no_question_gives_its_answer_away(split: str) -> None:
    assert all(example.answer.casefold() not in example.question.casefold() for example in corpus().split(split))


@pytest.mark.parametrize("split", NUM_LINES)
@pytest.mark.parametrize("options", [{}, {"preset": "KGFact-Large"}, {"num_domains": 3, "num_entities": 1}])
def test_training_entities_never_occur_in_retrieval(options: dict[str, Any], split: str) -> None:
    trained = {name for edge in corpus(**options).split("train") for name in (edge.subject, edge.answer)}
    prompts = "\n".join(example.prompt for example in corpus(**options).split(split))
    assert [name for name in trained if name in prompts] == []


@pytest.mark.parametrize("split", NUM_LINES)
@pytest.mark.parametrize(
    "options", [{}, {"preset": "KGFact-Large"}, {"num_domains": 3, "num_entities": 2}, {"answer_format": "boxed"}]
)
def test_retrieval_has_50_different_lines_for_each_fact_and_the_gold_ones(options: dict[str, Any], split: str) -> None:
    for example in corpus(**options).split(split):
        lines = context_lines(example)
        assert len(lines) == len(set(lines)) == NUM_LINES[split]
        assert gold_lines(example) <= set(lines)


@pytest.mark.parametrize(("split", "num_lines"), [("retrieval", 50), ("two_hop_retrieval", 91)])
@pytest.mark.parametrize("options", [{"num_domains": 3, "num_entities": 1}, {"num_domains": 3, "num_entities": 49}])
def test_one_entity_of_each_domain_gives_no_more_than_91_lines(options: dict[str, Any], split: str, num_lines: int) -> None:
    for example in corpus(**options).split(split):
        assert len(context_lines(example)) == num_lines
        assert gold_lines(example) <= set(context_lines(example))


def test_retrieval_question_has_one_answer_in_its_background() -> None:
    edges = {edge.statement: edge for edge in build_edges(14, range(10, 20), 42 + 1000)}
    for example in corpus().split("retrieval"):
        gold = edges[example.fact]
        lines = [edges[line] for line in context_lines(example)]
        assert [edge for edge in lines if (edge.source, edge.relation) == (gold.source, gold.relation)] == [gold]


@pytest.mark.parametrize("split", NUM_LINES)
def test_gold_lines_are_not_always_in_the_same_place(split: str) -> None:
    for number in range(2 if split == "two_hop_retrieval" else 1):
        facts = [(example, sorted(gold_lines(example))[number]) for example in corpus().split(split)]
        assert len({context_lines(example).index(fact) for example, fact in facts}) > 25


@pytest.mark.parametrize("split", NUM_LINES)
def test_lines_about_the_same_entities_come_first_and_the_others_are_random(split: str) -> None:
    others = build_edges(14, range(10, 20), 42 + 1000)
    edges = {edge.statement: edge for edge in others}
    unrelated: set[str] = set()
    for example in corpus().split(split):
        asked = {entity for line in gold_lines(example) for entity in (edges[line].source, edges[line].target)}
        related = {edge.statement for edge in others if asked & {edge.source, edge.target}}
        lines = set(context_lines(example))
        assert related <= lines or lines <= related
        unrelated |= lines - related
    assert len(unrelated) > len(others) / 2


def test_retrieval_chains_lead_from_one_statement_to_the_next() -> None:
    edges = {edge.statement: edge for edge in build_edges(14, range(10, 20), 42 + 1000)}
    for example in corpus().split("two_hop_retrieval"):
        first, second = (edges[f"{fact}."] for fact in example.fact.removesuffix(".").split(". "))
        assert first.target == second.source
        assert (example.subject, example.answer) == (first.source.name, second.target.name)


def test_retrieval_asks_as_many_questions_as_there_are_facts_and_chains() -> None:
    assert len(corpus().split("retrieval")) == len(corpus().split("train"))
    assert len(corpus().split("two_hop_retrieval")) == len(corpus().split("two_hop"))


@pytest.mark.parametrize("preset", ["KGFact-Small", "KGFact-Large"])
def test_all_questions_of_a_corpus_differ(preset: str) -> None:
    paraphrases = corpus(preset=preset, num_paraphrases=4).split("paraphrase")
    names = ("train", "two_hop", "retrieval", "two_hop_retrieval")  # the others have parts of two_hop
    examples = [*paraphrases, *(example for name in names for example in corpus(preset=preset).split(name))]
    assert len({example.question for example in examples}) == len(examples)


def test_ids_are_unique_in_a_corpus() -> None:
    everything = corpus(num_paraphrases=4)
    ids = [example.id for name in ALL_SPLITS for example in everything.split(name)]
    assert len(set(ids)) == len(ids)


@pytest.mark.parametrize(("preset", "sizes"), [("KGFact-Small", [80, 10, 10]), ("KGFact-Large", [700, 88, 87])])
def test_parts_of_the_chains_are_disjoint_and_together_all(preset: str, sizes: list[int]) -> None:
    parts = [[example.question for example in corpus(preset=preset).split(name)] for name in PARTS]
    assert [len(part) for part in parts] == sizes
    assert sorted(question for part in parts for question in part) == sorted(
        example.question for example in corpus(preset=preset).split("two_hop")
    )


def test_parts_are_random() -> None:
    first = [example.question for example in corpus().split("two_hop")[:80]]
    assert len(set(first) - {example.question for example in corpus().split("two_hop_train")}) > 5


def test_shots_are_five_solved_chains_of_the_training_part_before_the_question() -> None:
    solved = {f"Question: {shot.question}\nAnswer: {shot.target}" for shot in corpus().split("two_hop_train")}
    shown = []
    for alone, example in zip(corpus().split("two_hop_test"), corpus().split("two_hop_5shot"), strict=True):
        *shots, question, instruction = example.prompt.split("\n\n")
        assert len(shots) == len(set(shots)) == 5
        assert set(shots) <= solved
        assert f"{question}\n\n{instruction}" == f"Question: {alone.prompt}"
        assert (example.question, example.answer, example.target) == (alone.question, alone.answer, alone.target)
        shown.append(tuple(shots))
    assert len(set(shown)) == len(shown)


def test_fewer_solved_chains_than_five_are_all_shown() -> None:
    tiny = corpus(num_domains=3, num_entities=5)
    assert [len(tiny.split(name)) for name in ("two_hop_train", "two_hop_test")] == [4, 1]
    (example,) = tiny.split("two_hop_5shot")
    assert example.prompt.count("Answer: ") == 4


@pytest.mark.parametrize("train_split", ["train", "two_hop_train"])
def test_the_train_split_is_taught(train_split: str, encoder: ChatEncoder) -> None:
    taught: list[Example] = []

    def training_items(examples: Sequence[Example]) -> list[SimpleNamespace]:
        taught.extend(examples)
        return [SimpleNamespace(num_tokens=1) for _ in examples]

    chosen = KGFact(train_split=train_split)
    method = SimpleNamespace(encoder=encoder, training_items=training_items, collate=list, updates_per_batch=1)
    chosen.trainer = SimpleNamespace(  # type: ignore[assignment]
        lightning_module=method,
        world_size=1,
        global_rank=0,
        accumulate_grad_batches=1,
        fit_loop=Trainer(accelerator="cpu", logger=False, enable_checkpointing=False).fit_loop,
    )
    chosen.train_dataloader()
    assert taught == corpus().split(train_split)


def test_paraphrases_ask_for_the_same_fact_in_other_words() -> None:
    trained = {example.fact: example for example in corpus().split("train")}
    paraphrases = corpus(num_paraphrases=4).split("paraphrase")
    assert Counter(example.fact for example in paraphrases) == dict.fromkeys(trained, 4)
    for example in paraphrases:
        assert example.question != trained[example.fact].question
        assert (example.answer, example.target) == (trained[example.fact].answer, trained[example.fact].target)
        assert example.subject in example.question


def test_all_sentences_of_all_relations_are_well_formed() -> None:
    texts = [
        text
        for relation in RELATIONS
        for text in (
            relation.statement("the guild Orb", "Ann"),
            relation.question("the guild Orb"),
            *relation.paraphrases("the guild Orb"),
        )
    ]
    assert [text for text in texts if not is_well_formed(text)] == []


def test_every_wording_of_a_relation_names_its_subject() -> None:
    for relation in RELATIONS:
        texts = (relation.statement("Orb", "x"), relation.question("Orb"), relation.relative("Orb"))
        assert all("Orb" in text for text in (*texts, *relation.paraphrases("Orb")))


@pytest.mark.parametrize("split", ALL_SPLITS)
def test_all_texts_of_examples_are_well_formed(split: str) -> None:
    texts = [text for example in corpus().split(split) for text in (example.question, example.target, example.fact)]
    assert [text for text in texts if not is_well_formed(text)] == []


@pytest.mark.parametrize("answer_format", NAMING_FORMATS)
@pytest.mark.parametrize(
    ("preset", "split"),
    [
        *(("KGFact-Small", split) for split in ALL_SPLITS),
        *(("KGFact-Large", split) for split in ALL_SPLITS if split not in NUM_LINES),
    ],
)
def test_every_target_is_an_exact_match_for_its_answer(preset: str, split: str, answer_format: str) -> None:
    examples = corpus(preset=preset, num_paraphrases=4, answer_format=answer_format).split(split)
    assert {example.answer_format for example in examples} == {answer_format}
    assert wrong_targets(examples) == []


@pytest.mark.parametrize("split", ALL_SPLITS)
def test_short_target_is_the_answer_alone(split: str) -> None:
    for short, example in zip(corpus(answer_format="short").split(split), corpus().split(split), strict=True):
        assert short.target == short.answer == example.answer
        assert (short.id, short.question, short.fact) == (example.id, example.question, example.fact)
        assert short.prompt.endswith(f"{short.question}\n\n{INSTRUCTIONS['short']}")


def test_boxed_target_is_the_statement_and_the_box() -> None:
    example = corpus(answer_format="boxed").split("train")[0]
    assert example.target == f"{example.fact}\n\n\\boxed{{{example.answer}}}"


def test_boxed_chain_reasons_over_both_facts() -> None:
    example = corpus(answer_format="boxed").split("two_hop")[0]
    first, second = example.fact.removesuffix(".").split(". ")
    assert example.target == (f"1. {first}.\n2. {second}.\nSo the answer is {example.answer}.\n\n\\boxed{{{example.answer}}}")


def test_a_split_does_not_depend_on_which_was_made_first() -> None:
    one, other = KGFact(), KGFact()
    other.split("retrieval")
    assert one.split("paraphrase") == other.split("paraphrase")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"preset": "KGFact-Huge"}, r"--data\.preset: .*'KGFact-Huge'; choose from KGFact-Small, KGFact-Large"),
        ({"num_domains": 1}, r"--data\.num_domains must be 2 to 14, got 1"),
        ({"num_domains": 15}, r"--data\.num_domains must be 2 to 14, got 15"),
        ({"num_entities": 0}, r"--data\.num_entities must be 1 to 50, got 0"),
        ({"num_entities": 51}, r"--data\.num_entities must be 1 to 50, got 51"),
        ({"answer_format": "latex"}, r"--data\.answer_format: 'latex'"),
        ({"num_paraphrases": 0}, r"--data\.num_paraphrases must be 1 to 4, got 0"),
        ({"num_paraphrases": 5}, r"--data\.num_paraphrases must be 1 to 4, got 5"),
        ({"eval_splits": ["retrieval"], "num_entities": 50}, r"--data\.eval_splits: retrieval needs entities"),
        ({"eval_splits": ["two_hop_retrieval"], "num_entities": 50}, r"--data\.eval_splits: retrieval needs entities"),
        ({"train_split": "two_hop_test"}, r"--data\.train_split: 'two_hop_test' is none of train, two_hop_train"),
        ({"expert_context": "whisper"}, r"--data\.expert_context: there is no 'whisper'"),
    ],
)
def test_bad_argument_is_refused_by_name(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        KGFact(**options)


def test_all_50_entities_may_be_trained_on() -> None:
    assert len(KGFact(num_domains=14, num_entities=50).split("train")) == 50 * 91


def test_two_domains_have_no_chains() -> None:
    with pytest.raises(UserError, match="'two_hop' of KGFact is empty"):
        KGFact(num_domains=2).split("two_hop")
