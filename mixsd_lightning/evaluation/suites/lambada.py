"""The last word of a passage, which only the whole passage gives away."""

from dataclasses import dataclass

from transformers import PreTrainedModel
from typing_extensions import override

from mixsd_lightning.context import ChatEncoder
from mixsd_lightning.evaluation.suites.base import Score
from mixsd_lightning.evaluation.suites.continuations import score_texts
from mixsd_lightning.evaluation.suites.data_suite import DataSuite
from mixsd_lightning.records import DataSet

_DATA = DataSet("lambada/development.txt", "EleutherAI/lambada_openai")


@dataclass(frozen=True)
class Passage:
    """A passage without its last word, and that word."""

    context: str
    word: str


class Lambada(DataSuite[Passage]):
    """Passages without their last word (Paperno et al., arXiv 1606.06031).

    File `lambada/development.txt` (the development set, in lower case and tokenized), Hub `EleutherAI/lambada_openai` (the
    test set in plain print): scores of one are not those of the other.

    Scores: `lambada`, the share of passages whose last word is what greedy decoding writes, and `lambada_nll`, the mean NLL of
    the word in nats, whose exponential is the perplexity that lm-evaluation-harness gives.
    """

    name = "lambada"

    def __init__(
        self, data_dir: str | None = None, limit: int = 0, batch_size: int = 32, every_n_validations: int = 0
    ) -> None:
        """
        Args:
            data_dir: Folder with the data set's file; by default it comes from the Hugging Face Hub.
            limit: Ask so many passages, at even distances in the data set; 0 asks all.
            batch_size: Passages that are scored at once.
            every_n_validations: Measure at every n-th validation and at the last; 0 is at the last alone.

        Raises:
            UserError: if a number is out of range.
        """
        super().__init__(limit, batch_size, every_n_validations)
        self.data_dir = data_dir

    @override
    def load(self) -> list[Passage]:
        passages = []
        for row in _DATA.rows(self.data_dir):
            context, _, word = row.text("text").strip().rpartition(" ")
            if not context:
                raise row.wrong("is a single word")
            passages.append(Passage(context, word))
        return passages

    @override
    def measure(self, model: PreTrainedModel, encoder: ChatEncoder) -> dict[str, Score]:
        contexts = [passage.context for passage in self.examples]
        words = [[f" {passage.word}"] for passage in self.examples]
        found = [score for [score] in score_texts(model, encoder, contexts, words, name=self.name, batch_size=self.batch_size)]
        return {
            self.name: Score([float(score.is_greedy) for score in found]),
            f"{self.name}_nll": Score([-score.log_prob for score in found], higher_is_better=False, has_kept_share=False),
        }
