"""Log-probabilities of given completions.

Shapes: K contexts, N continuations, P context length, T continuation length, V vocabulary.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from mixsd_lightning.models import inference, is_recurrent


def completion_log_probs(
    model: PreTrainedModel, prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[int]]
) -> list[list[float]]:
    """Log-probability of each token of each completion after its prompt, in nats; all in one batch, unless padding disturbs."""
    if not completions:
        return []
    if len(completions) > 1 and is_recurrent(model):
        pairs = zip(prompts, completions, strict=True)
        return [completion_log_probs(model, [prompt], [completion])[0] for prompt, completion in pairs]
    sequences = [[*prompt, *completion] for prompt, completion in zip(prompts, completions, strict=True)]
    input_ids, mask = _left_padded(sequences, model.device)
    longest = input_ids.shape[1]
    with inference(model):
        logits = model(
            input_ids=input_ids,
            attention_mask=mask,
            position_ids=(mask.cumsum(-1) - 1).clamp(min=0),
            use_cache=False,
            logits_to_keep=1 + max(map(len, completions)),
        ).logits
    return [
        row[-len(completion) - 1 : -1]
        .float()
        .log_softmax(-1)
        .gather(-1, ids[longest - len(completion) :, None])[:, 0]
        .tolist()
        for row, ids, completion in zip(logits, input_ids, completions, strict=True)
    ]


class ContinuationScore(NamedTuple):
    """How a model sees a continuation of a context."""

    log_prob: float
    """Of the whole continuation, in nats."""
    is_greedy: bool
    """Whether greedy decoding after the context writes it: each of its tokens is the most probable one at its place."""


def continuation_scores(
    model: PreTrainedModel, contexts: Sequence[Sequence[int]], continuations: Sequence[Sequence[Sequence[int]]]
) -> list[list[ContinuationScore]]:
    """Scores of several continuations of each context, all in one batch. A context is run once for all of them.

    (Recurrent models run every continuation alone, behind its context.)

    Args:
        model: A causal language model.
        contexts: Token ids, one at least in each.
        continuations: For each context, token ids of one continuation or more, one at least in each.
    """
    flat = [continuation for several in continuations for continuation in several]
    assert all(contexts) and all(continuations) and all(flat)
    device = model.device
    if is_recurrent(model):
        pairs = zip(contexts, continuations, strict=True)
        return [[_score_alone(model, context, continuation) for continuation in several] for context, several in pairs]
    contexts_N = torch.tensor([index for index, several in enumerate(continuations) for _ in several], device=device)
    context_ids_KP, context_mask_KP = _left_padded(contexts, device)
    longest = max(map(len, flat))
    targets_NT = torch.tensor([[*ids, *[0] * (longest - len(ids))] for ids in flat], device=device)
    lengths_N = torch.tensor([len(ids) for ids in flat], device=device)
    is_token_NT = torch.arange(longest, device=device) < lengths_N[:, None]
    with inference(model):
        cache = DynamicCache(config=model.config)
        logits_K1V = model(
            input_ids=context_ids_KP,
            attention_mask=context_mask_KP,
            position_ids=(context_mask_KP.cumsum(-1) - 1).clamp(min=0),
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        ).logits
        parts = [_scores(logits_K1V[contexts_N], targets_NT[:, :1])]
        if longest > 1:
            cache.batch_select_indices(contexts_N)
            mask_NL = torch.cat([context_mask_KP[contexts_N], is_token_NT[:, :-1].long()], dim=1)
            logits_NTV = model(
                input_ids=targets_NT[:, :-1],
                attention_mask=mask_NL,
                position_ids=(mask_NL.cumsum(-1) - 1)[:, context_ids_KP.shape[1] :],
                past_key_values=cache,
                use_cache=True,
            ).logits
            parts.append(_scores(logits_NTV, targets_NT[:, 1:]))
    log_probs_NT, is_greedy_NT = (torch.cat(tensors, dim=1) for tensors in zip(*parts, strict=True))
    log_probs_N = (log_probs_NT * is_token_NT).sum(-1).tolist()
    is_greedy_N = (is_greedy_NT | ~is_token_NT).all(-1).tolist()
    scores = iter(map(ContinuationScore, log_probs_N, is_greedy_N))
    return [[next(scores) for _ in several] for several in continuations]


def _score_alone(model: PreTrainedModel, context: Sequence[int], continuation: Sequence[int]) -> ContinuationScore:
    with inference(model):
        text_1L = torch.tensor([[*context, *continuation]], device=model.device)
        logits_1TV = model(input_ids=text_1L, use_cache=False).logits[:, len(context) - 1 : -1]
    log_probs_1T, is_greedy_1T = _scores(logits_1TV, text_1L[:, len(context) :])
    return ContinuationScore(float(log_probs_1T.sum()), bool(is_greedy_1T.all()))


def _scores(logits_NTV: Tensor, targets_NT: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probability of each target, and whether it is the most probable token."""
    logits_NTV = logits_NTV.float()
    picked_NT = logits_NTV.gather(-1, targets_NT[..., None])[..., 0]
    # Unlike log_softmax, this makes no second copy of the logits.
    return picked_NT - logits_NTV.logsumexp(-1), logits_NTV.argmax(-1) == targets_NT


def _left_padded(sequences: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Token ids and attention mask of sequences that end together. Any id does for padding: the mask hides it."""
    longest = max(map(len, sequences))
    ids = torch.tensor([[*[0] * (longest - len(sequence)), *sequence] for sequence in sequences], device=device)
    lengths = torch.tensor([len(sequence) for sequence in sequences], device=device)
    mask = torch.arange(longest, device=device) >= longest - lengths[:, None]
    return ids, mask.long()
