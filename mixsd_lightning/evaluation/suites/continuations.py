"""How probable texts are as continuations of others: plain text, without a chat."""

from collections.abc import Sequence

from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from mixsd_lightning.context import ChatEncoder
from mixsd_lightning.decoding.log_probs import ContinuationScore, continuation_scores
from mixsd_lightning.errors import UserError
from mixsd_lightning.models import window_of
from mixsd_lightning.progress import Progress


def score_texts(
    model: PreTrainedModel,
    encoder: ChatEncoder,
    contexts: Sequence[str],
    continuations: Sequence[Sequence[str]],
    *,
    name: str,
    batch_size: int,
) -> list[list[ContinuationScore]]:
    """Scores of several continuations of each context.

    A context that does not fit the model's window loses its beginning, with a warning.

    Args:
        model: A causal language model.
        encoder: Its tokenizer's.
        contexts: Texts to be continued.
        continuations: For each context, texts that follow it directly, each beginning with white space.
        name: Of the suite, for messages.
        batch_size: Continuations that are scored at once.

    Raises:
        UserError: if a continuation alone fills the model's window.
    """
    window = window_of(model.config)
    encoded: list[tuple[list[int], list[list[int]]]] = []
    num_cut = 0
    for context, several in zip(contexts, continuations, strict=True):
        context_ids, several_ids = encode_continuations(encoder.tokenizer, context, several)
        room = window - max(map(len, several_ids))
        if room < 1:
            raise UserError(
                f"--retention.suites: a text of {name} has {window - room} tokens, and with what comes before it does not fit "
                f"the model's window of {window}. Shorten it or remove it."
            )
        num_cut += room < len(context_ids)
        encoded.append((context_ids[-room:], several_ids))
    if num_cut:
        rank_zero_warn(f"{name}: {num_cut} of {len(contexts)} texts do not fit the model's window and lose their beginning.")
    # Similar lengths together, so that little of a batch is padding.
    order = sorted(range(len(encoded)), key=lambda index: len(encoded[index][0]))
    found: dict[int, list[ContinuationScore]] = {}
    batches = _batches(order, [len(several) for _, several in encoded], batch_size)
    with Progress(f"Scoring {name}", len(batches)) as progress:
        for batch in batches:
            ids, several = zip(*(encoded[index] for index in batch), strict=True)
            found.update(zip(batch, continuation_scores(model, ids, several), strict=True))
            progress.advance()
    return [found[index] for index in range(len(encoded))]


def encode_continuations(
    tokenizer: PreTrainedTokenizerBase, context: str, continuations: Sequence[str]
) -> tuple[list[int], list[list[int]]]:
    """Token ids of a context, and of each continuation as it is encoded after the context.

    White space at the end of the context belongs to the continuation, for words are encoded with the space before them. This
    is how lm-evaluation-harness divides a text, so that scores are comparable.
    """

    def encode(text: str) -> list[int]:
        # Data that merely looks like a special token is plain text; one that the tokenizer puts first on its own stays.
        return list(tokenizer(text, split_special_tokens=True)["input_ids"])

    start = context.rstrip()
    start_ids = encode(start)
    rest_ids = [encode(context + continuation)[len(start_ids) :] for continuation in continuations]
    assert start_ids and all(rest_ids), "a continuation begins with white space, which no token joins to the word before"
    return start_ids, rest_ids


def _batches(order: Sequence[int], sizes: Sequence[int], batch_size: int) -> list[list[int]]:
    """Divide contexts, in order, so that the sizes of each part sum to ``batch_size`` at most, or it is a single one."""
    batches: list[list[int]] = []
    room = 0
    for index in order:
        if not batches or sizes[index] > room:
            batches.append([])
            room = batch_size
        batches[-1].append(index)
        room -= sizes[index]
    return batches
