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
}
"""Corpus -> the settings with which no split is empty and training has about four examples."""

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


def small_corpus(name: str, folder: Path, **options: Any) -> CorpusDataModule:
    """A corpus by the name of its class.

    Args:
        name: One of :data:`SMALL`.
        folder: Where its data file is, if it reads one.
        options: More settings.
    """
    files = {"Facts": {"file": str(folder / "facts.csv")}}
    reads_data_set = "max_facts" in SMALL[name]
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
    return folder


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
