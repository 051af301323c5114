"""CoS-E: commonsense questions with an explanation that people wrote."""

from collections.abc import Mapping
from typing import Any

from typing_extensions import override

from mixsd_lightning.data.choices import ChoiceCorpus
from mixsd_lightning.lettered import LetteredQuestion, options_of
from mixsd_lightning.records import DataSet, Row

_PUBLISHED = {"train": "train", "validation": "train", "test": "dev"}
"""Split -> the published one that it is taken from, by the name of its files."""
_HUB_SPLITS = {"train": "train", "dev": "validation"}
_TUNING_SHARE = 0.1


class CosE(ChoiceCorpus):
    """Questions of CommonsenseQA with explanations (Rajani et al., arXiv 1906.02361).

    Hub `Salesforce/cos_e`, version 1.11 (9741 + 1221 questions with five options). A folder has the files of any version:
    `cos_e/train_rand_split.jsonl` and `cos_e/cose_train_v1.0.jsonl`, joined by their ids, and the same with `dev` (version 1.0:
    7610 + 950 with three options).

    Published are a training and a development split, and what is reported is usually the best checkpoint's score on the latter.
    Here that split is `test`, and a tenth of the training questions, chosen by a digest of their ids, is held out as `validation`.
    """

    @override
    def questions(self, split: str) -> list[LetteredQuestion]:
        published = _PUBLISHED[split]
        data = DataSet(
            f"cos_e/{published}_rand_split.jsonl", "Salesforce/cos_e", "v1.11", _HUB_SPLITS[published], option="--data"
        )
        rows = data.rows(self.data_dir)
        if rows[0].file is None:
            questions = [_from_hub(row) for row in rows]
        else:
            explained = DataSet(f"cos_e/cose_{published}_v*.jsonl", "Salesforce/cos_e", option="--data").rows(self.data_dir)
            explanations = {row.text("id"): _explanation(row) for row in explained}
            questions = [_from_files(row, explanations) for row in rows]
        if published == "dev":
            return questions
        return [q for q in questions if (q.position < _TUNING_SHARE) == (split == "validation")]


def _from_hub(row: Row) -> LetteredQuestion:
    return LetteredQuestion(
        row.text("question").strip(),
        *options_of(row, row.texts("choices"), row.text("answer")),
        explanation=row.text("abstractive_explanation", may_be_empty=True).strip(),
        key=row.text("id"),
    )


def _from_files(row: Row, explanations: Mapping[str, str]) -> LetteredQuestion:
    question, key, letter = _fields(row, "question"), row.text("id"), row.text("answerKey").strip()
    try:
        stem, labelled = question["stem"].strip(), {choice["label"]: choice["text"].strip() for choice in question["choices"]}
    except (KeyError, TypeError, AttributeError) as error:
        raise row.wrong(f"has no stem and choices in the field 'question' ({type(error).__name__}: {error})") from error
    if letter not in labelled:
        raise row.wrong(f"has an answer that is none of its options: {letter[:80]!r}")
    if key not in explanations:
        raise row.wrong(f"has no explanation in cose_*.jsonl, where the id {key} is missing")
    options, gold = options_of(row, list(labelled.values()), labelled[letter])
    return LetteredQuestion(stem, options, gold, explanation=explanations[key], key=key)


def _explanation(row: Row) -> str:
    text = _fields(row, "explanation").get("open-ended")
    if not isinstance(text, str):
        raise row.wrong("has no text in the field 'explanation', 'open-ended'")
    return text.strip()


def _fields(row: Row, name: str) -> Mapping[str, Any]:
    fields = row.fields.get(name)
    if not isinstance(fields, dict):
        raise row.wrong(f"has no JSON object in the field '{name}'")
    return fields
