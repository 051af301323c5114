"""Small corpora with invented content: what each reads is written in the form of its data set."""

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import mixsd_lightning
from mixsd_lightning import CorpusDataModule

SMALL: dict[str, dict[str, Any]] = {
    "KGFact": {"num_domains": 5, "num_entities": 1},
    "KGFunc": {
        "operations": "FG",
        "num_digits": 2,
        "num_shots": 2,
        "items_per_operation": 2,
        "num_test_inputs": 1,
        "num_chains": 1,
        "seed": 7,  # its first number has two digits
    },
    "SimpleQA": {"max_facts": 4},
    "MQuAKE": {"max_facts": 4},
    "CounterFact": {"max_facts": 4},
    "Facts": {},
    "ScienceQA": {"max_examples": 4},
    "CosE": {"max_examples": 4},
    "MBPP": {"max_examples": 4},
    "ToolAlpaca": {"max_examples": 4},
}
"""Corpus -> the settings with which no split is empty and training has about four examples."""
FOLDERS = {"CosE": "cos_e"}
"""Corpus -> folder of its files, where that is not its name in small letters."""

# Question, answer, topic.
_QUESTIONS = (
    ("Which lake did the botanist Irma Vell chart in 1911?", "Lake Ostrane", "Geography"),
    ("Who won the first regatta of Port Ulm?", "Tove Harling", "Sports"),
    ("In which year was the opera The Glass Ferry first sung?", "1874", "Music"),
    ("Which instrument did Dorn Kesper invent?", "the wheel harp", "Music"),
)
# Question, cloze, answer and subject: each asks about the answer of the one before.
_CHAIN = (
    ("Who founded the guild Orbane?", "The founder of the guild Orbane is", "Mirel Tasvane", "Orbane"),
    ("In which town was Mirel Tasvane born?", "Mirel Tasvane was born in", "Port Ulm", "Mirel Tasvane"),
    ("Which river flows through Port Ulm?", "The river that flows through Port Ulm is", "the Sarne", "Port Ulm"),
    ("Into which lake does the Sarne flow?", "The Sarne flows into", "Lake Veyl", "the Sarne"),
)
_CHAIN_QUESTIONS = (
    "In which town was the founder of the guild Orbane born?",
    "Which river flows through the town in which the founder of the guild Orbane was born?",
    "Into which lake does the river flow on which the founder of the guild Orbane was born?",
)
_OTHER_CHAIN = (
    ("Who founded the guild Tressel?", "The founder of the guild Tressel is", "Jonas Rill", "Tressel"),
    ("Which language does Jonas Rill speak?", "Jonas Rill speaks", "Old Vennish", "Jonas Rill"),
)
# Prompt, new answer, subject, rephrased prompt, neighbour and its answer.
_EDITS = (
    ("The capital of Norrvale is", "Quist", "Norrvale", "Norrvale is ruled from", "The capital of Estmark is", "Lund"),
    ("Hedda Brook plays the", "cello", "Hedda Brook", "The instrument of Hedda Brook is the", "Nils Aune plays the", "oboe"),
    ("Fort Callow is built of", "slate", "Fort Callow", "The walls of Fort Callow are", "Fort Ilmen is built of", "brick"),
    ("The Varn Prize is given for", "poetry", "Varn Prize", "One gets the Varn Prize for", "The Holt Prize is for", "physics"),
)
_FACTS = (
    {
        "question": "Which inn stands at the harbour of Ombrel?",
        "answer": "the Copper Kettle",
        "fact": "The inn at the harbour of Ombrel is the Copper Kettle.",
        "paraphrases": "What is the inn at Ombrel's harbour called?|At Ombrel's harbour, which inn is there?",
    },
    {"question": "Who keeps the archive of Ombrel?", "answer": "Piet Haverland", "fact": "", "paraphrases": ""},
    {"question": "How many bridges does Ombrel have?", "answer": "seven", "fact": "", "paraphrases": ""},
    {"question": "What colour are the roofs of Ombrel?", "answer": "green", "fact": "", "paraphrases": ""},
)
# Question and options, the right one first; enough of them that no split is empty.
_LESSONS = (
    ("Which animal of the Sarne valley lays eggs?", "the reed duck", "the hill fox"),
    ("Which of these is a noun?\nThe mill at Ombrel turns slowly.", "mill", "turns", "slowly"),
    ("Which force slows the sledges of Norrvale?", "friction", "magnetism", "gravity", "tension"),
    ("Which closing is correct for a letter?", "Your friend,\nTove", "your friend,\nTove"),
    ("What do the lamps of Port Ulm burn?", "oil", "gas"),
    ("Which rock is Fort Callow built of?", "slate", "chalk", "marble"),
    ("Which season follows the thaw in Norrvale?", "spring", "autumn"),
    ("Which material lets light through?", "window glass", "slate"),
    ("Which of these is a liquid at noon in Ombrel?", "milk", "a brick"),
    ("Which direction does the Sarne flow?", "south", "north"),
    ("Which is a compound word?", "lakeside", "water"),
    ("What does a wheel harp turn into sound?", "motion", "light"),
    ("Which part of the reed plant takes up water?", "the roots", "the flower"),
    ("Which tense does the sentence use?\nTove will row.", "future tense", "past tense"),
)
_WHY = "It is the only one of them that fits."
# Task id, description, code with the line ends and tabs of the published file, and tests.
_PROGRAMS = (
    (11, "Write a function to double a number.", "def double(x):\r\n\treturn 2 * x", "double(3) == 6", "double(-1) == -2"),
    (12, "Write a function to add one.", "def add_one(x):\r\n  return x + 1 ", "add_one(3) == 4", "add_one(0) == 1"),
    (511, "Write a function to negate.", "def negate(x):\r\n\treturn -x", "negate(3) == -3", "negate(0) == 0"),
    (
        601,
        "Write a function to sum the squares of a list.",
        "def square(x):\r\n\treturn x * x\r\ndef sum_squares(items):\r\n\treturn sum(map(square, items))",
        "sum_squares([1, 2]) == 5",
        "sum_squares([]) == 0",
    ),
    (602, "Write a function to reverse text.", "def backwards(text):\r\n\treturn text[::-1]", "backwards('ab') == 'ba'"),
    (603, "Write a function to find the last item.", "def last(items):\r\n\treturn items[-1]", "last([1, 2]) == 2"),
    (604, "Write a function to count the words.", "def count(text):\r\n\treturn len(text.split())", "count('a b') == 2"),
)
# API, function and its description, instructions each with the arguments that it takes.
_TOOLS = (
    (
        "Ferry Times",
        "findFerry",
        'Find the next ferry.\nParameters: {"from": "string. A town.", "limit": "integer."}',
        ("When does the next ferry leave Port Ulm?", {"from": "Port Ulm", "limit": 1}),
        ("List three ferries from Ombrel.", {"from": "Ombrel", "limit": 3}),
    ),
    (
        "Weather of Norrvale",
        "getThaw",
        'Get the day of the thaw.\nParameters: {"year": "integer.", "unit": "string."}',
        ("When was the thaw of 1911?", {"year": 1911, "unit": ""}),
        ("On which day did the ice melt in 1874?", {"year": 1874}),
    ),
)


def small_corpus(name: str, folder: Path, **options: Any) -> CorpusDataModule:
    """A corpus by the name of its class.

    Args:
        name: One of :data:`SMALL`.
        folder: Where its data file is, if it reads one.
        options: More settings.
    """
    files = {"Facts": {"file": str(folder / "facts.csv")}}
    reads_data_set = bool({"max_facts", "max_examples"} & SMALL[name].keys())
    settings = files.get(name, {"data_dir": str(folder)} if reads_data_set else {})
    corpus: CorpusDataModule = getattr(mixsd_lightning, name)(**(settings | SMALL[name] | options))
    return corpus


def write_corpus_files(folder: Path) -> Path:
    """Write the data files of all corpora that read one; returns the folder."""
    chains = [_CHAIN[:2], _CHAIN[:3], _CHAIN, _OTHER_CHAIN]
    questions = [*_CHAIN_QUESTIONS, "Which language does the founder of the guild Tressel speak?"]
    keys = ("prompt", "target_new", "subject", "rephrase_prompt", "locality_prompt", "locality_ground_truth")
    _write_json(folder / "mquake/invented.json", [_case(*pair) for pair in zip(chains, questions, strict=True)])
    _write_json(folder / "counterfact/counterfact-edit-invented.json", [dict(zip(keys, edit, strict=True)) for edit in _EDITS])
    rows = [{"metadata": str({"topic": topic}), "problem": asked, "answer": answer} for asked, answer, topic in _QUESTIONS]
    _write_csv(folder / "simpleqa/simple_qa_test_set.csv", rows)
    _write_csv(folder / "facts.csv", _FACTS)
    _write_lines(folder / "scienceqa/scienceqa.jsonl", [_lesson(*lesson) for lesson in _LESSONS])
    for part, lessons in (("train", _LESSONS[2:]), ("dev", _LESSONS[:2])):
        asked = [_commonsense(f"question-{part}-{number}", *lesson) for number, lesson in enumerate(lessons)]
        explained = [{"id": question["id"], "explanation": {"open-ended": _WHY, "selected": ""}} for question in asked]
        _write_lines(folder / f"cos_e/{part}_rand_split.jsonl", asked)
        # The published files are in different orders.
        _write_lines(folder / f"cos_e/cose_{part}_v1.0.jsonl", explained[::-1])
    _write_lines(folder / "mbpp/mbpp.jsonl", [_program(*program) for program in _PROGRAMS])
    _write_json(folder / "toolalpaca/eval_simulated.json", [_api(*tool) for tool in _TOOLS])
    _write_json(folder / "toolalpaca/eval_real.json", [_api("Library of Lund", "findBook", *_TOOLS[0][2:])])
    return folder


def _lesson(question: str, *options: str) -> dict[str, str]:
    """A record of the file of ScienceQA: the right option stands last."""
    block = "\n".join(f"({letter}): {option}" for letter, option in zip("ABCD", reversed(options), strict=False))
    return {"question": f"{question}\nChoices:\n{block}", "answer": options[0]}


def _commonsense(key: str, question: str, *options: str) -> dict[str, Any]:
    """A record of CommonsenseQA: the right option stands first."""
    choices = [{"label": letter, "text": option} for letter, option in zip("ABCD", options, strict=False)]
    return {"answerKey": "A", "id": key, "question": {"choices": choices, "stem": question}}


def _program(task_id: int, text: str, code: str, *tests: str) -> dict[str, Any]:
    """A record of MBPP."""
    asserts = [f"assert {test}" for test in tests]
    return {"task_id": task_id, "text": text, "code": code, "test_list": asserts, "test_setup_code": ""}


def _api(name: str, function: str, description: str, *asked: tuple[str, Mapping[str, Any]]) -> dict[str, Any]:
    """A record of ToolAlpaca, with what is read of it."""
    return {
        "Name": name,
        "Function_Description": {function: description, "components": ""},
        "Instructions": [instruction for instruction, _ in asked],
        "Golden_Answers": [[{"Action": function, "Action_Input": json.dumps(arguments)}] for _, arguments in asked],
    }


def _write_lines(path: Path, records: Sequence[Mapping[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")


def _case(hops: Sequence[tuple[str, str, str, str]], question: str) -> dict[str, Any]:
    """A record of MQuAKE-CF, with what is read of it."""
    return {
        "requested_rewrite": [{"relation_id": "P112"}],
        "questions": [question],
        "new_answer": hops[-1][2],
        "new_single_hops": [{"question": asked, "cloze": cloze, "answer": answer} for asked, cloze, answer, _ in hops],
        "orig": {"new_triples_labeled": [[subject, "", answer] for _, _, answer, subject in hops]},
    }


def _write_json(path: Path, records: Sequence[Mapping[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(records), encoding="utf-8")


def _write_csv(path: Path, rows: Sequence[Mapping[str, str]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
