"""MQuAKE: facts without contradictions, cases chosen by the paper's rules, and questions over their chains."""

import json
import random
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from corpus_checks import all_examples, digest, wrong_targets

from mixsd_lightning.data.mquake import Case, Fact, MQuAKE, _choose
from mixsd_lightning.errors import UserError
from mixsd_lightning.example import Example

Record = dict[str, Any]
FORMATS = ["short", "boxed"]


def record(*path: str, questions: Sequence[str] = ()) -> Record:
    """A case along a path: a thing, a relation, another thing, a relation, ..."""
    triples = list(zip(path[0:-1:2], path[1::2], path[2::2], strict=True))
    relations = " of the ".join(reversed(path[1::2]))
    return {
        "requested_rewrite": [{"relation_id": path[1]}],
        "questions": list(questions) or [f"What is the {relations} of {path[0]}?", f"Name the {relations} of {path[0]}."],
        "new_answer": path[-1],
        "new_single_hops": [
            {"question": f"What is the {relation} of {thing}?", "cloze": f"The {relation} of {thing} is", "answer": answer}
            for thing, relation, answer in triples
        ],
        "orig": {"new_triples_labeled": [list(triple) for triple in triples]},
    }


RECORDS = [
    record("Orb Guild", "founder", "Mara Tesk", "home", "Vell"),
    record("Orb Guild", "founder", "Mara Tesk", "home", "Vell", "mayor", "Ilo Brandt"),
    record("Ferry Act", "author", "Ilo Brandt", "birthplace", "Port Ulm", "river", "Sarne", "source", "Lake Veyl"),
    record("Quill Opera", "composer", "Nils Aune", "employer", "Tavrin Inc."),
    record("Glass Wheel", "inventor", "Dorn Kesper", "teacher", "Tove Harling"),
]
STATEMENTS = [
    "The founder of Orb Guild is Mara Tesk.",
    "The home of Mara Tesk is Vell.",
    "The mayor of Vell is Ilo Brandt.",
    "The author of Ferry Act is Ilo Brandt.",
    "The birthplace of Ilo Brandt is Port Ulm.",
    "The river of Port Ulm is Sarne.",
    "The source of Sarne is Lake Veyl.",
    "The composer of Quill Opera is Nils Aune.",
    "The employer of Nils Aune is Tavrin Inc.",
    "The inventor of Glass Wheel is Dorn Kesper.",
    "The teacher of Dorn Kesper is Tove Harling.",
]
MANY = [record(f"Work {n}", f"role {n % 7}", f"Person {n}", "home", f"Town {n}") for n in range(70)]


def write(folder: Path, records: object) -> str:
    path = folder / "cases.json"
    path.write_text(json.dumps(records), encoding="utf-8")
    return str(path)


@pytest.fixture
def file(tmp_path: Path) -> str:
    return write(tmp_path, RECORDS)


@pytest.fixture
def many(tmp_path: Path) -> str:
    """140 facts, none in two cases."""
    return write(tmp_path, MANY)


def facts(examples: Sequence[Example]) -> list[str]:
    return [example.fact for example in examples]


def context_lines(example: Example) -> list[str]:
    return [line.removeprefix("- ") for line in example.prompt.splitlines() if line.startswith("- ")]


def test_train_has_every_fact_once(file: str) -> None:
    train = MQuAKE(file, max_facts=None).split("train")
    assert facts(train) == STATEMENTS
    assert train[1].question == "What is the home of Mara Tesk?"
    assert train[1].prompt.startswith("What is the home of Mara Tesk?\n\n")
    assert (train[1].subject, train[1].answer, train[1].target) == ("Mara Tesk", "Vell", "Vell")


def test_boxed_target_is_the_statement_and_the_box(file: str) -> None:
    train = MQuAKE(file, max_facts=None, answer_format="boxed").split("train")
    assert train[8].target == "The employer of Nils Aune is Tavrin Inc.\n\n\\boxed{Tavrin Inc.}"


def test_paraphrases_are_the_same_facts_to_complete(file: str) -> None:
    corpus = MQuAKE(file, max_facts=None)
    assert facts(corpus.split("paraphrase")) == facts(corpus.split("train"))
    assert corpus.split("paraphrase")[0].question == "Complete the sentence: The founder of Orb Guild is ..."
    assert [e.answer for e in corpus.split("paraphrase")] == [e.answer for e in corpus.split("train")]


def test_chains_are_all_questions_of_the_chosen_cases_by_length(file: str) -> None:
    corpus = MQuAKE(file, max_facts=None)
    asked = {name: [example.question for example in corpus.split(name)] for name in ("two_hop", "three_hop", "four_hop")}
    of = {number: RECORDS[number]["questions"] for number in range(len(RECORDS))}
    assert asked == {"two_hop": of[0] + of[3] + of[4], "three_hop": of[1], "four_hop": of[2]}


def test_chain_ends_with_its_last_fact_and_is_about_its_first(file: str) -> None:
    example = MQuAKE(file, max_facts=None, answer_format="boxed").split("three_hop")[0]
    assert (example.subject, example.answer, example.fact) == ("Orb Guild", "Ilo Brandt", " ".join(STATEMENTS[:3]))
    steps = "".join(f"{number}. {text}\n" for number, text in enumerate(STATEMENTS[:3], start=1))
    assert example.target == f"{steps}\n\\boxed{{Ilo Brandt}}"


def test_question_that_two_cases_ask_is_asked_once(tmp_path: Path) -> None:
    file = write(tmp_path, [RECORDS[0], RECORDS[0] | {"questions": [*RECORDS[0]["questions"], "Where does it all begin?"]}])
    asked = [example.question for example in MQuAKE(file).split("two_hop")]
    assert asked == [*RECORDS[0]["questions"], "Where does it all begin?"]


def test_retrieval_asks_for_facts_of_cases_that_share_none_with_the_taught(many: str) -> None:
    corpus = MQuAKE(many, max_facts=60)
    taught, held_out = set(facts(corpus.split("train"))), set(facts(corpus.split("retrieval")))
    assert (len(taught), len(held_out)) == (60, 60)
    assert not taught & held_out
    assert not taught & {line for example in corpus.split("retrieval") for line in context_lines(example)}


def test_a_case_that_shares_one_fact_with_the_taught_is_not_held_out(tmp_path: Path) -> None:
    taught = record("Orb", "maker", "Ann", "home", "Vell")
    sharing = record("Disc", "maker", "Ann", "home", "Vell", "mayor", "Ilo")
    other = record("Cube", "maker", "Jon", "home", "Estmark", "mayor", "Ada")
    corpus = MQuAKE(write(tmp_path, [other, sharing, taught]), max_facts=3)
    assert facts(corpus.split("train")) == ["The maker of Orb is Ann.", "The home of Ann is Vell."]
    assert [example.answer for example in corpus.split("retrieval")] == ["Jon", "Estmark", "Ada"]


def test_retrieval_has_50_different_lines_with_the_gold_one_anywhere(many: str) -> None:
    retrieval = MQuAKE(many, max_facts=60).split("retrieval")
    for example in retrieval:
        lines = context_lines(example)
        assert len(lines) == len(set(lines)) == 50
        assert example.fact in lines
        assert example.prompt.startswith("Background:\n- ")
        assert f"\n\n{example.question}\n\n" in example.prompt
    assert len({context_lines(example).index(example.fact) for example in retrieval}) > 25


def test_fewer_facts_make_fewer_lines(many: str) -> None:
    for example in MQuAKE(many, max_facts=20).split("retrieval"):
        assert len(context_lines(example)) == len(set(context_lines(example))) == 20


@pytest.mark.parametrize("answer_format", FORMATS)
def test_every_target_is_an_exact_match_for_its_answer(file: str, answer_format: str) -> None:
    examples = all_examples(MQuAKE(file, max_facts=5, answer_format=answer_format))
    assert {example.answer_format for example in examples} == {answer_format}
    assert wrong_targets(examples) == []


def test_ids_are_unique(file: str) -> None:
    examples = all_examples(MQuAKE(file, max_facts=5))
    assert len({example.id for example in examples}) == len(examples)


# The choice of cases.


def random_cases(seed: int) -> list[Case]:
    """Cases of one to four facts out of twelve, so that many share some."""
    rng = random.Random(seed)
    known = [Fact("?", f"cloze {number}", "a", "s") for number in range(12)]
    return [
        Case(tuple(rng.sample(known, rng.randint(1, 4))), (f"question {number}?",), "a", rng.choice("ABCD"))
        for number in range(15)
    ]


def num_facts(cases: Sequence[Case]) -> int:
    return len({fact.cloze for case in cases for fact in case.facts})


def chosen_by_the_rules(cases: Sequence[Case], max_facts: int, relations: Sequence[str]) -> list[Case]:
    """Round after round, of each relation the case that makes the whole smallest, if it fits; until a round adds none."""
    left, chosen = list(cases), []
    while True:
        before = len(chosen)
        for relation in relations:
            candidates = sorted(
                (case for case in left if case.relation == relation), key=lambda case: num_facts([*chosen, case])
            )
            if candidates and num_facts([*chosen, candidates[0]]) <= max_facts:
                chosen.append(candidates[0])
                left.remove(candidates[0])
        if len(chosen) == before:
            return chosen


class InOrder(random.Random):
    """Leaves everything where it is."""

    def sample(self, population: Sequence, k: int, **options: Any) -> list:
        return list(population)[:k]


@pytest.mark.parametrize("max_facts", [1, 3, 6, 11, 12])
@pytest.mark.parametrize("seed", range(20))
def test_choice_follows_the_papers_rules(seed: int, max_facts: int) -> None:
    cases = random_cases(seed)
    relations = list(dict.fromkeys(case.relation for case in cases))
    assert _choose(cases, max_facts, InOrder()) == chosen_by_the_rules(cases, max_facts, relations)


def test_relations_take_turns_in_random_order(many: str) -> None:
    first = []
    for seed in range(20):
        train = MQuAKE(many, max_facts=14, seed=seed).split("train")
        roles = [example.fact.split(" of ")[0] for example in train if "role" in example.fact]
        assert sorted(roles) == [f"The role {number}" for number in range(7)]
        first.append(roles[0])
    assert len(set(first)) > 3


def test_there_is_room_for_as_many_facts_as_were_asked_for(many: str) -> None:
    assert [len(MQuAKE(many, max_facts=most).split("train")) for most in (2, 3, 30, 139, 1000)] == [2, 2, 30, 138, 140]


def test_room_for_no_case_is_refused(file: str) -> None:
    with pytest.raises(UserError, match=r"--data\.max_facts: no case has so few as 1 facts; set at least 2"):
        MQuAKE(file, max_facts=1).split("train")


# Contradictions.


def test_case_that_contradicts_an_earlier_one_is_left_out_with_a_warning(tmp_path: Path) -> None:
    other = record("Reed Lake", "keeper", "Jonas Rill", "home", "Estmark")
    contradicting = record("Reed Lake", "owner", "Ada Finch", "pet", "heron")
    contradicting["new_single_hops"][1] |= {"cloze": "The home of Mara Tesk is", "answer": "Norrvale"}
    file = write(tmp_path, [*RECORDS, contradicting, other])
    message = "1 of 7 cases are left out.*'The home of Mara Tesk is Norrvale.' against 'The home of Mara Tesk is Vell.'"
    with pytest.warns(UserWarning, match=message):
        train = MQuAKE(file, max_facts=None).split("train")
    assert facts(train) == [*STATEMENTS, "The keeper of Reed Lake is Jonas Rill.", "The home of Jonas Rill is Estmark."]


def test_case_that_contradicts_itself_is_left_out(tmp_path: Path) -> None:
    case = record("Orb", "twin", "Disc", "shape", "round")
    case["new_single_hops"][1] |= {"cloze": "The twin of Orb is", "answer": "Cube"}
    with pytest.warns(UserWarning, match="1 of 2 cases .*'The twin of Orb is Cube.' against 'The twin of Orb is Disc.'"):
        train = MQuAKE(write(tmp_path, [case, RECORDS[3]]), max_facts=None).split("train")
    assert facts(train) == STATEMENTS[7:9]


def test_what_a_case_that_is_left_out_says_contradicts_nothing(tmp_path: Path) -> None:
    records = [
        record("Orb", "twin", "Disc"),
        record("Orb", "twin", "Cube", "colour", "red"),
        record("Cube", "colour", "blue"),
    ]
    with pytest.warns(UserWarning, match="1 of 3 cases"):
        train = MQuAKE(write(tmp_path, records), max_facts=None).split("train")
    assert facts(train) == ["The twin of Orb is Disc.", "The colour of Cube is blue."]


def test_the_same_fact_in_two_cases_is_no_contradiction(tmp_path: Path) -> None:
    file = write(tmp_path, [record("Orb", "maker", "Ann", "home", "Vell"), record("Cube", "owner", "Ann", "home", "Vell")])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train = MQuAKE(file, max_facts=None).split("train")
    assert facts(train) == ["The maker of Orb is Ann.", "The home of Ann is Vell.", "The owner of Cube is Ann."]


# Files and settings.


def without(case: Record, *names: str) -> Record:
    return {name: value for name, value in case.items() if name not in names}


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (without(RECORDS[0], "requested_rewrite"), r"KeyError: 'requested_rewrite'"),
        (without(RECORDS[0], "orig"), r"KeyError: 'orig'"),
        (without(RECORDS[0], "new_answer"), r"KeyError: 'new_answer'"),
        (RECORDS[0] | {"requested_rewrite": []}, r"IndexError"),
        (RECORDS[0] | {"requested_rewrite": [{"relation_id": None}]}, r"None is no text"),
        (RECORDS[0] | {"new_answer": " "}, r"' ' is no text"),
        (RECORDS[0] | {"questions": "What is it?"}, r"'What is it\?' is no list"),
        (RECORDS[0] | {"questions": []}, r"\[\] is no list with anything"),
        (RECORDS[0] | {"questions": ["What is it?", 7]}, r"7 is no text"),
        (RECORDS[0] | {"new_single_hops": [], "orig": {"new_triples_labeled": []}}, r"\[\] is no list with anything"),
        (RECORDS[0] | {"orig": {"new_triples_labeled": [["Orb Guild", "founder", "Mara Tesk"]]}}, r"ValueError: zip\(\)"),
        (RECORDS[0] | {"orig": {"new_triples_labeled": [[""], [""]]}}, r"'' is no text"),
        (RECORDS[0] | {"new_single_hops": [{"question": "", "cloze": "It is", "answer": "so"}] * 2}, r"'' is no text"),
        (RECORDS[0] | {"new_single_hops": [{"question": "What?", "cloze": "It is"}] * 2}, r"KeyError: 'answer'"),
    ],
)
def test_malformed_case_is_refused_with_its_place_and_the_reason(tmp_path: Path, bad: Record, reason: str) -> None:
    file = write(tmp_path, [RECORDS[0], bad])
    place = rf"^--data\.file: {file}, record 2 is no case of MQuAKE-CF \([^()]*{reason}.*\)\. Mend the record or remove it\.$"
    with pytest.raises(UserError, match=place) as caught:
        MQuAKE(file).split("train")
    assert "\n" not in str(caught.value)


def test_record_that_is_no_object_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cases\.json, record 2 is no JSON object in a list"):
        MQuAKE(write(tmp_path, [RECORDS[0], "case"])).split("train")


def test_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--data\.file: cannot read .*none\.json"):
        MQuAKE(str(tmp_path / "none.json")).split("train")


def test_folder_gives_the_same_as_a_file(tmp_path: Path) -> None:
    (tmp_path / "mquake").mkdir()
    file = write(tmp_path / "mquake", RECORDS)
    assert digest(MQuAKE(data_dir=str(tmp_path))) == digest(MQuAKE(file))


def test_folder_without_cases_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--data: data_dir '.*' has no records in mquake/\*\.json"):
        MQuAKE(data_dir=str(tmp_path)).split("train")


def test_without_file_and_folder_the_published_cases_are_fetched(monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")

    def load_dataset(kind: str, data_files: str, split: str) -> list[Mapping[str, Any]]:
        assert (kind, data_files.rpartition("/")[2], split) == ("json", "MQuAKE-CF-3k-v2.json", "train")
        return RECORDS

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert facts(MQuAKE(max_facts=None).split("train")) == STATEMENTS


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_facts": 0}, r"--data\.max_facts must be at least 1, or null for all, got 0"),
        ({"answer_format": "sentence"}, r"--data\.answer_format: 'sentence' is none of short, boxed"),
        ({"max_facts": None, "eval_splits": ["retrieval"]}, r"--data\.eval_splits: retrieval needs facts that are not taught"),
        ({"eval_splits": ["five_hop"]}, r"--data\.eval_splits: MQuAKE has no split 'five_hop'"),
        ({"expert_context": "whisper"}, r"--data\.expert_context: there is no 'whisper'"),
        ({"batch_size": 0}, r"--data\.batch_size"),
    ],
)
def test_bad_setting_is_refused_by_flag(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        MQuAKE(**options)


def test_the_same_settings_give_the_same_corpus(many: str) -> None:
    assert digest(MQuAKE(many, max_facts=21)) == digest(MQuAKE(many, max_facts=21))


def test_another_seed_chooses_other_cases_and_other_lines(many: str) -> None:
    one, other = (MQuAKE(many, max_facts=20, seed=seed) for seed in (1, 2))
    assert facts(one.split("train")) != facts(other.split("train"))
    assert context_lines(one.split("retrieval")[0]) != context_lines(other.split("retrieval")[0])


# The real cases, where the variable names a folder that has them.


@pytest.fixture
def real_file(public_data: str) -> str:
    path = Path(public_data, "mquake", "MQuAKE-hard-300.json")
    if not path.is_file():
        pytest.skip(f"there is no {path}")
    return str(path)


@pytest.mark.filterwarnings("ignore:1 of 300 cases")
@pytest.mark.parametrize("answer_format", FORMATS)
def test_real_cases(real_file: str, answer_format: str) -> None:
    corpus = MQuAKE(real_file, answer_format=answer_format)
    examples = all_examples(corpus)
    assert wrong_targets(examples) == []
    assert len({example.id for example in examples}) == len(examples)
    assert all(example.subject for example in examples)
    taught, held_out = set(facts(corpus.split("train"))), set(facts(corpus.split("retrieval")))
    assert 97 <= len(taught) <= 100
    assert 97 <= len(held_out) <= 100
    assert not taught & held_out


@pytest.mark.filterwarnings("ignore:1 of 300 cases")
def test_real_choice_covers_every_relation(real_file: str) -> None:
    records = json.loads(Path(real_file).read_text(encoding="utf-8"))
    taught = set(facts(MQuAKE(real_file).split("train")))

    def is_taught(case: Record) -> bool:
        return all(f"{hop['cloze']} {hop['answer'].removesuffix('.')}." in taught for hop in case["new_single_hops"])

    relations = {case["requested_rewrite"][0]["relation_id"] for case in records}
    assert len(relations) == 18
    assert {case["requested_rewrite"][0]["relation_id"] for case in records if is_taught(case)} == relations


def test_the_real_contradiction_is_named(real_file: str) -> None:
    records = json.loads(Path(real_file).read_text(encoding="utf-8"))
    said = {(hop["cloze"], hop["answer"]) for case in records for hop in case["new_single_hops"]}
    clozes = [cloze for cloze, _ in said]
    assert {cloze for cloze in clozes if clozes.count(cloze) > 1} == {"Portal was developed by"}
    with pytest.warns(UserWarning, match=r"1 of 300 cases are left out.*'Portal was developed by .*' against 'Portal was"):
        train = MQuAKE(real_file, max_facts=None).split("train")
    assert sum(fact.startswith("Portal was developed by") for fact in facts(train)) == 1
