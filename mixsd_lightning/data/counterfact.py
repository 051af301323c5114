"""CounterFact and zsRE in the form in which knowledge editing is measured."""

import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from typing_extensions import override

from mixsd_lightning.context import user_turn
from mixsd_lightning.data.base import CorpusDataModule
from mixsd_lightning.data.wording import gap_question, statement
from mixsd_lightning.errors import require
from mixsd_lightning.example import Example
from mixsd_lightning.records import DataSet, Row, read_rows

_DATA = DataSet("counterfact/counterfact-edit-*.json", "azhx/counterfact", option="--data")
_FIELDS = {
    # EasyEdit's names, for CounterFact and for zsRE.
    "prompt": ("prompt", "src"),
    "answer": ("target_new", "alt"),
    "rephrased": ("rephrase_prompt", "rephrase"),
    "neighbour": ("locality_prompt", "loc"),
    "neighbour_answer": ("locality_ground_truth", "loc_ans"),
    "subject": ("subject",),
}
_ASKED = {
    "train": ("prompt", "answer"),
    "paraphrase": ("rephrased", "answer"),
    "locality": ("neighbour", "neighbour_answer"),
}
"""Split -> what it asks, and what is right."""
_NATURAL_QUESTION = "nq question: "
"""Mark of zsRE's neighbours, which come from Natural Questions and have no question mark."""

Edit = Mapping[str, str]


class CounterFact(CorpusDataModule):
    """Counterfactual edits (Meng et al., arXiv 2202.05262), or zsRE's, as EasyEdit writes them, one JSON list in a file.

    Splits and the names that knowledge editing has for them: `train` (*efficacy*), `paraphrase` (*generalisation*, the rephrased
    prompt) and `locality` (a prompt that the edits should leave alone, with its true answer). All edits are taught together:
    one that contradicts an earlier one is left out, and so is a neighbour that another edit is about. All are answered by
    generation in the chat template, not by comparing likelihoods, so figures are lower than those of teacher forcing. Where
    EasyEdit compares an edited model with itself before, `locality` asks for the truth: what the untaught model scores is the
    most that can be kept.
    """

    available_splits = ("train", "paraphrase", "locality")

    def __init__(
        self,
        file: str | None = None,
        data_dir: str | None = None,
        max_facts: int | None = None,
        expert_context: str | None = None,
        batch_size: int = 16,
        eval_batch_size: int = 64,
        eval_splits: Sequence[str] = ("train", "paraphrase", "locality"),
        max_eval_examples: int | None = 200,
        seed: int = 42,
    ) -> None:
        """
        Args:
            file: Edits in EasyEdit's form, with CounterFact's field names or zsRE's, or CounterFact as it was published.
            data_dir: Folder that has `counterfact/counterfact-edit-*.json`, if there is no `file`; without both, the 2191 test
                records of `azhx/counterfact` are fetched (extra `hub`).
            max_facts: Teach so many edits, a random choice; by default all.
            expert_context: How the expert is shown the fact.
            batch_size: Examples in a training batch, per device.
            eval_batch_size: Questions that are answered at once during validation.
            eval_splits: Splits that are answered at each validation.
            max_eval_examples: Ask at most this many questions of each split (a fixed random choice); null asks all.
            seed: Decides the choice of edits and the order of training examples.
        """
        super().__init__(batch_size, eval_batch_size, eval_splits, max_eval_examples, seed, expert_context)
        require("data.max_facts", max_facts, max_facts is None or max_facts >= 1, "at least 1")
        self.file = file
        self.data_dir = data_dir
        self.max_facts = max_facts

    @override
    def build_splits(self, names: Sequence[str]) -> dict[str, list[Example]]:
        rows = read_rows(Path(self.file).expanduser(), "--data.file") if self.file else _DATA.rows(self.data_dir)
        edits = _without_contradictions([_edit(row) for row in rows])
        shuffled = random.Random(f"{self.seed}|counterfact").sample(range(len(rows)), len(rows))
        numbers = sorted([number for number in shuffled if number in edits][: self.max_facts])
        taught = {edits[number]["prompt"] for number in numbers}

        def is_asked(split: str, edit: Edit) -> bool:
            prompt = edit[_ASKED[split][0]]
            return bool(prompt) and not (split == "locality" and prompt in taught)

        return {
            name: [_example(name, number, edits[number]) for number in numbers if is_asked(name, edits[number])]
            for name in names
        }


def _edit(row: Row) -> Edit:
    """A record under our names, as EasyEdit has it or as CounterFact was published; what is not there is empty.

    Raises:
        UserError: if it lacks the prompt or the new answer, or has a question without an answer.
    """
    fields = _as_published(row) if "requested_rewrite" in row.fields else row.fields
    edit = {name: next((fields[own] for own in owns if fields.get(own)), "") for name, owns in _FIELDS.items()}
    for name, text in edit.items():
        is_needed = name in _ASKED["train"] or (name == "neighbour_answer" and edit["neighbour"])
        if not isinstance(text, str) or (is_needed and not text.strip()):
            raise row.wrong(f"has no text in the field {' or '.join(map(repr, _FIELDS[name]))}")
    texts = {name: text.strip() for name, text in edit.items()}
    if texts["neighbour"].startswith(_NATURAL_QUESTION):
        texts["neighbour"] = texts["neighbour"].removeprefix(_NATURAL_QUESTION).rstrip("? ") + "?"
    return texts


def _as_published(row: Row) -> Edit:
    """EasyEdit's fields of a record in CounterFact's first form, with the first of several paraphrases and neighbours."""
    try:
        rewrite = row.fields["requested_rewrite"]
        return {
            "prompt": rewrite["prompt"].replace("{}", rewrite["subject"]),  # not format, which knows more than {}
            "target_new": rewrite["target_new"]["str"],
            "rephrase_prompt": _first(row.fields["paraphrase_prompts"]),
            "locality_prompt": _first(row.fields["neighborhood_prompts"]),
            "locality_ground_truth": rewrite["target_true"]["str"],
            "subject": rewrite["subject"],
        }
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        raise row.wrong(f"is no record of CounterFact ({type(error).__name__}: {error})") from error


def _first(prompts: Any) -> str:
    if not isinstance(prompts, list):
        raise TypeError(f"{prompts!r} is no list")
    return prompts[0]


def _without_contradictions(edits: Sequence[Edit]) -> dict[int, Edit]:
    """Number -> edit, without those that complete an earlier one's prompt with something else."""
    first: dict[str, Edit] = {}
    kept = {
        number: edit for number, edit in enumerate(edits) if first.setdefault(edit["prompt"], edit)["answer"] == edit["answer"]
    }
    rejected = [edit for number, edit in enumerate(edits) if number not in kept]
    if rejected:
        other = first[rejected[0]["prompt"]]
        rank_zero_warn(
            f"{len(rejected)} of {len(edits)} edits are left out, because they contradict others; the first: "
            f"'{_fact(rejected[0])}' against '{_fact(other)}'"
        )
    return kept


def _fact(edit: Edit) -> str:
    return statement(edit["prompt"], edit["answer"])


def _example(split: str, number: int, edit: Edit) -> Example:
    """One question about an edit."""
    asked, answer = (edit[name] for name in _ASKED[split])
    question = asked if asked.endswith("?") else gap_question(asked)
    is_neighbour = split == "locality"
    return Example(
        id=f"{split}-{number}",
        question=question,
        prompt=user_turn(question, "short"),
        answer=answer,
        target=answer,
        fact=statement(asked, answer) if is_neighbour else _fact(edit),
        answer_format="short",
        subject="" if is_neighbour else edit["subject"],
    )
