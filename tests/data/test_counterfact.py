"""CounterFact and zsRE: what is asked about an edit, in every form in which edits come."""

import json
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from corpus_checks import all_examples, digest, wrong_targets

from mixsd_lightning.data.counterfact import CounterFact
from mixsd_lightning.errors import UserError
from mixsd_lightning.example import Example

Record = dict[str, Any]
RECORDS = [
    {
        "prompt": "The capital of Norrvale is",
        "target_new": "Quist",
        "ground_truth": "Vell",
        "subject": "Norrvale",
        "rephrase_prompt": "The parliament of Norrvale sits in",
        "locality_prompt": "The capital of Estmark is",
        "locality_ground_truth": "Lund",
    },
    {
        "prompt": "Hedda Brook works for",
        "target_new": "Tavrin Inc.",
        "ground_truth": "Orb Guild",
        "subject": "Hedda Brook",
        "rephrase_prompt": "Hedda Brook's employer,",
        "locality_prompt": "Nils Aune works for",
        "locality_ground_truth": "Orb Guild",
    },
]
ZSRE = {
    "subject": "Hedda Brook",
    "src": "What school did Hedda Brook attend?",
    "pred": "Vell House",
    "rephrase": "Where did Hedda Brook go to school?",
    "alt": "Quist College",
    "answers": ["Port Ulm Academy"],
    "loc": "nq question: who keeps the ferry at port ulm",
    "loc_ans": "Piet Haverland",
    "cond": "Port Ulm Academy >> Quist College || What school did Hedda Brook attend?",
}
PUBLISHED = {
    "case_id": 3,
    "requested_rewrite": {
        "prompt": "The capital of {} is",
        "relation_id": "P36",
        "target_new": {"str": "Quist", "id": "Q1"},
        "target_true": {"str": "Lund", "id": "Q2"},
        "subject": "Norrvale",
    },
    "paraphrase_prompts": ["It rained. The parliament of Norrvale sits in", "Another paraphrase"],
    "neighborhood_prompts": ["The capital of Estmark is", "Another neighbour"],
    "attribute_prompts": [],
    "generation_prompts": [],
}


def edit(number: int, **changes: Any) -> Record:
    return {
        "prompt": f"The keeper of Fort {number} is",
        "target_new": f"Ann {number}",
        "subject": f"Fort {number}",
        "rephrase_prompt": f"Fort {number} is kept by",
        "locality_prompt": f"The keeper of Isle {number} is",
        "locality_ground_truth": f"Jon {number}",
    } | changes


def write(folder: Path, records: object) -> str:
    path = folder / "counterfact-edit-invented.json"
    path.write_text(json.dumps(records), encoding="utf-8")
    return str(path)


@pytest.fixture
def file(tmp_path: Path) -> str:
    return write(tmp_path, RECORDS)


def asked(examples: Sequence[Example]) -> list[tuple[str, str]]:
    return [(example.question, example.answer) for example in examples]


def test_what_each_split_asks(file: str) -> None:
    corpus = CounterFact(file)
    assert asked(corpus.split("train")) == [
        ("Complete the sentence: The capital of Norrvale is ...", "Quist"),
        ("Complete the sentence: Hedda Brook works for ...", "Tavrin Inc."),
    ]
    assert asked(corpus.split("paraphrase")) == [
        ("Complete the sentence: The parliament of Norrvale sits in ...", "Quist"),
        ("Complete the sentence: Hedda Brook's employer, ...", "Tavrin Inc."),
    ]
    assert asked(corpus.split("locality")) == [
        ("Complete the sentence: The capital of Estmark is ...", "Lund"),
        ("Complete the sentence: Nils Aune works for ...", "Orb Guild"),
    ]


def test_fact_and_subject_are_those_of_the_edit_where_it_is_asked_for(file: str) -> None:
    corpus = CounterFact(file)
    for split in ("train", "paraphrase"):
        assert [(example.fact, example.subject) for example in corpus.split(split)] == [
            ("The capital of Norrvale is Quist.", "Norrvale"),
            ("Hedda Brook works for Tavrin Inc.", "Hedda Brook"),
        ]
    assert [(example.fact, example.subject) for example in corpus.split("locality")] == [
        ("The capital of Estmark is Lund.", ""),
        ("Nils Aune works for Orb Guild.", ""),
    ]


def test_prompt_asks_for_the_answer_alone(file: str) -> None:
    for example in all_examples(CounterFact(file)):
        assert example.prompt.startswith(f"{example.question}\n\n")
        assert (example.answer_format, example.target) == ("short", example.answer)


def test_zsre_asks_questions(tmp_path: Path) -> None:
    corpus = CounterFact(write(tmp_path, [ZSRE]))
    assert asked(corpus.split("train")) == [("What school did Hedda Brook attend?", "Quist College")]
    assert asked(corpus.split("paraphrase")) == [("Where did Hedda Brook go to school?", "Quist College")]
    assert asked(corpus.split("locality")) == [("who keeps the ferry at port ulm?", "Piet Haverland")]
    assert corpus.split("train")[0].fact == "What school did Hedda Brook attend? Quist College."
    assert corpus.split("train")[0].subject == "Hedda Brook"


def test_zsre_neighbour_has_one_question_mark(tmp_path: Path) -> None:
    corpus = CounterFact(write(tmp_path, [ZSRE | {"loc": "nq question: who keeps it? "}]))
    assert corpus.split("locality")[0].question == "who keeps it?"


def test_published_form_asks_the_first_paraphrase_and_the_first_neighbour(tmp_path: Path) -> None:
    corpus = CounterFact(write(tmp_path, [PUBLISHED]))
    assert asked(corpus.split("train")) == [("Complete the sentence: The capital of Norrvale is ...", "Quist")]
    assert asked(corpus.split("paraphrase")) == [
        ("Complete the sentence: It rained. The parliament of Norrvale sits in ...", "Quist")
    ]
    assert asked(corpus.split("locality")) == [("Complete the sentence: The capital of Estmark is ...", "Lund")]
    assert corpus.split("train")[0].subject == "Norrvale"


def test_forms_may_stand_in_one_file(tmp_path: Path) -> None:
    corpus = CounterFact(write(tmp_path, [RECORDS[1], ZSRE, PUBLISHED]))
    assert [example.answer for example in corpus.split("train")] == ["Tavrin Inc.", "Quist College", "Quist"]


def test_edit_without_paraphrase_or_neighbour_is_only_taught(tmp_path: Path) -> None:
    bare = {"prompt": "The moon of Vell is", "target_new": "red"}
    corpus = CounterFact(write(tmp_path, [bare, edit(1)]))
    assert [example.id for example in corpus.split("train")] == ["train-0", "train-1"]
    assert [example.id for example in corpus.split("paraphrase")] == ["paraphrase-1"]
    assert [example.id for example in corpus.split("locality")] == ["locality-1"]
    assert corpus.split("train")[0].subject == ""


def test_edit_that_contradicts_an_earlier_one_is_left_out_with_a_warning(tmp_path: Path) -> None:
    file = write(tmp_path, [edit(1), edit(2), edit(1, target_new="Zoe"), edit(2, rephrase_prompt="Fort 2 belongs to")])
    message = "1 of 4 edits are left out.*'The keeper of Fort 1 is Zoe.' against 'The keeper of Fort 1 is Ann 1.'"
    with pytest.warns(UserWarning, match=message):
        train = CounterFact(file).split("train")
    assert [example.id for example in train] == ["train-0", "train-1", "train-3"]


def test_contradictory_edits_are_left_out_before_some_are_chosen(tmp_path: Path) -> None:
    records = [edit(number % 5, target_new=f"Ann {number}") for number in range(20)]
    file = write(tmp_path, records)
    for seed in range(5):
        with pytest.warns(UserWarning, match="15 of 20 edits"):
            train = CounterFact(file, max_facts=5, seed=seed).split("train")
        assert [example.answer for example in train] == [f"Ann {number}" for number in range(5)]


def test_edits_that_agree_make_no_warning(file: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(CounterFact(file).split("train")) == 2


def test_neighbour_that_is_itself_taught_otherwise_is_not_asked(tmp_path: Path) -> None:
    file = write(tmp_path, [edit(1), edit(2, locality_prompt="The keeper of Fort 1 is")])
    assert [example.id for example in CounterFact(file).split("locality")] == ["locality-0"]
    ids = {example.id for seed in range(20) for example in CounterFact(file, max_facts=1, seed=seed).split("locality")}
    assert ids == {"locality-0", "locality-1"}  # each where the other is not taught


def test_every_target_is_an_exact_match_for_its_answer(tmp_path: Path) -> None:
    examples = all_examples(CounterFact(write(tmp_path, [*RECORDS, ZSRE])))
    assert len(examples) == 9
    assert wrong_targets(examples) == []


@pytest.mark.parametrize(("max_facts", "size"), [(None, 40), (7, 7), (40, 40), (99, 40)])
def test_all_splits_ask_about_the_same_edits(tmp_path: Path, max_facts: int | None, size: int) -> None:
    corpus = CounterFact(write(tmp_path, [edit(number) for number in range(40)]), max_facts=max_facts)
    chosen = {name: [e.id.removeprefix(f"{name}-") for e in corpus.split(name)] for name in corpus.available_splits}
    assert len(chosen["train"]) == len(set(chosen["train"])) == size
    assert chosen["train"] == chosen["paraphrase"] == chosen["locality"] == sorted(chosen["train"], key=int)
    assert len({example.id for example in all_examples(corpus)}) == 3 * size


def test_choice_depends_on_the_seed_and_on_nothing_else(tmp_path: Path) -> None:
    file = write(tmp_path, [edit(number) for number in range(40)])
    here = digest(CounterFact(file, max_facts=7))
    assert here == digest(CounterFact(file, max_facts=7))
    assert here != digest(CounterFact(file, max_facts=7, seed=1))


def without(record: Record, *names: str) -> Record:
    return {name: value for name, value in record.items() if name not in names}


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (without(edit(1), "prompt"), r"has no text in the field 'prompt' or 'src'"),
        (without(ZSRE, "alt"), r"has no text in the field 'target_new' or 'alt'"),
        (edit(1, prompt=" "), r"has no text in the field 'prompt' or 'src'"),
        (edit(1, target_new=["Zoe"]), r"has no text in the field 'target_new' or 'alt'"),
        (edit(1, subject=7), r"has no text in the field 'subject'"),
        (edit(1, rephrase_prompt=["Who?"]), r"has no text in the field 'rephrase_prompt' or 'rephrase'"),
        (without(edit(1), "locality_ground_truth"), r"has no text in the field 'locality_ground_truth' or 'loc_ans'"),
        (without(ZSRE, "loc_ans"), r"has no text in the field 'locality_ground_truth' or 'loc_ans'"),
        (PUBLISHED | {"requested_rewrite": {}}, r"is no record of CounterFact \(KeyError: 'prompt'\)"),
        (PUBLISHED | {"requested_rewrite": None}, r"is no record of CounterFact \(TypeError: .*\)"),
        (PUBLISHED | {"neighborhood_prompts": []}, r"is no record of CounterFact \(IndexError: .*\)"),
        (PUBLISHED | {"paraphrase_prompts": "Who?"}, r"is no record of CounterFact \(TypeError: 'Who\?' is no list\)"),
        (without(PUBLISHED, "paraphrase_prompts"), r"is no record of CounterFact \(KeyError: 'paraphrase_prompts'\)"),
    ],
)
def test_malformed_edit_is_refused_with_its_place_and_the_reason(tmp_path: Path, bad: Record, reason: str) -> None:
    file = write(tmp_path, [RECORDS[0], bad])
    with pytest.raises(UserError, match=rf"^--data\.file: {file}, record 2 {reason}\. Mend the record or remove it\.$"):
        CounterFact(file, max_facts=1).split("train")


def test_record_that_is_no_object_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="record 1 is no JSON object in a list"):
        CounterFact(write(tmp_path, ["edit"])).split("train")


def test_folder_gives_the_same_as_a_file(tmp_path: Path) -> None:
    (tmp_path / "counterfact").mkdir()
    file = write(tmp_path / "counterfact", RECORDS)
    assert digest(CounterFact(data_dir=str(tmp_path))) == digest(CounterFact(file))


def test_folder_without_edits_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--data: data_dir '.*' has no records in counterfact/counterfact-edit-\*\.json"):
        CounterFact(data_dir=str(tmp_path)).split("train")


def test_without_file_and_folder_it_comes_from_the_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    known = {("azhx/counterfact", None, "test"): [PUBLISHED]}
    monkeypatch.setattr(datasets, "load_dataset", lambda name, config, split: known[name, config, split])
    assert digest(CounterFact()) == digest(CounterFact(write(tmp_path, [PUBLISHED])))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_facts": 0}, r"--data\.max_facts must be at least 1, got 0"),
        ({"eval_splits": ["portability"]}, r"no split 'portability'; choose from train, paraphrase, locality"),
        ({"expert_context": "whisper"}, r"--data\.expert_context: there is no 'whisper'"),
        ({"eval_batch_size": 0}, r"--data\.eval_batch_size"),
    ],
)
def test_bad_setting_is_refused_by_flag(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        CounterFact(**options)


# The real edits, where the variable names a folder that has them.


@pytest.fixture
def real_file(public_data: str) -> str:
    path = Path(public_data, "counterfact", "counterfact-edit-1k.json")
    if not path.is_file():
        pytest.skip(f"there is no {path}")
    return str(path)


def test_real_edits(real_file: str) -> None:
    corpus = CounterFact(real_file)
    contradiction = "1 of 1000 edits .*'The twin city of Tirana is Budapest.' against 'The twin city of Tirana is Shanghai.'"
    with pytest.warns(UserWarning, match=contradiction):
        sizes = {name: len(corpus.split(name)) for name in corpus.available_splits}
        examples = all_examples(corpus)
    # Dennis Rodman and Bucharest are asked about as neighbours, but are taught otherwise.
    assert sizes == {"train": 999, "paraphrase": 999, "locality": 997}
    assert len({example.id for example in examples}) == len(examples)
    assert wrong_targets(examples) == []
    assert all(example.subject for name in ("train", "paraphrase") for example in corpus.split(name))
    taught = {example.question for example in corpus.split("train")}
    assert len(taught) == 999
    assert taught.isdisjoint(example.question for name in ("paraphrase", "locality") for example in corpus.split(name))
