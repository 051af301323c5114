"""What an answer to any question says about a corpus that was taught: right, wrong and why, or nothing."""

from dataclasses import dataclass

from mixsd_lightning.data import CorpusDataModule
from mixsd_lightning.evaluation.error_modes import Entities, held_out_mode, injected_mode
from mixsd_lightning.evaluation.scoring import is_exact_match
from mixsd_lightning.example import Example

_MODES = {
    "format": "no answer can be found in it",
    "cross_entity": "it names something else of the corpus",
    "genuine": "a wrong answer",
}


@dataclass(frozen=True)
class Asked:
    """A question as it is put to a model."""

    prompt: str
    """The user turn: of a question of the corpus as it was taught, with how to answer; anything else as it was typed."""
    question: str
    split: str = ""
    """Of the corpus; empty where the question is not in it."""
    example: Example | None = None


class TaughtCorpus:
    """Finds questions in a corpus, and judges answers."""

    def __init__(self, corpus: CorpusDataModule) -> None:
        self.entities = Entities(corpus.split(corpus.train_split))
        self._asked: dict[str, Asked] = {}
        for split in dict.fromkeys((corpus.train_split, *corpus.eval_splits)):
            for example in corpus.split(split):
                for wording in (example.question, example.prompt):
                    self._asked.setdefault(_key(wording), Asked(example.prompt, example.question, split, example))

    def find(self, text: str) -> Asked:
        """A typed question: that of the corpus, whatever case, white space or marks it is typed with, or itself."""
        return self._asked.get(_key(text), Asked(text, text))

    def judge(self, asked: Asked, answer: str) -> str:
        """One line on an answer.

        Of a question of the corpus: right, or wrong with its error mode. Of any other: that it is not in the corpus, and whether
        the answer names something of the corpus that the question does not (*leakage*).
        """
        if asked.example is None:
            if held_out_mode(answer, asked.question, "free", self.entities) == "leakage":
                names = sorted(self.entities.found_in(answer) - self.entities.found_in(asked.question))
                return f"not in the corpus, but the answer names what is (leakage): {', '.join(names)}"
            about = sorted(self.entities.found_in(asked.question))
            return f"not in the corpus, which knows {', '.join(about)}, though" if about else "not in the corpus"
        example = asked.example
        if is_exact_match(answer, example.answer, example.question, example.answer_format):
            return f"right ({asked.split})"
        mode = injected_mode(answer, example, self.entities)
        return f"wrong ({asked.split}), {mode}: {_MODES[mode]}; right is {example.answer}"


def _key(text: str) -> str:
    return " ".join(text.split()).casefold().rstrip(".?! ")
