"""Log-probabilities of given completions."""

from collections.abc import Sequence

import torch
from transformers import PreTrainedModel

from mixsd_lightning.models import inference


def completion_log_probs(
    model: PreTrainedModel, prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[int]]
) -> list[list[float]]:
    """Log-probability of each token of each completion after its prompt, in nats, all in one batch."""
    if not completions:
        return []
    sequences = [[*prompt, *completion] for prompt, completion in zip(prompts, completions, strict=True)]
    lengths = torch.tensor([len(sequence) for sequence in sequences])
    longest = int(lengths.max())
    input_ids = torch.tensor([[0] * (longest - len(ids)) + ids for ids in sequences], device=model.device)
    mask = torch.arange(longest) >= longest - lengths[:, None]
    with inference(model):
        logits = model(
            input_ids=input_ids,
            attention_mask=mask.long().to(model.device),
            position_ids=(mask.cumsum(-1) - 1).clamp(min=0).to(model.device),
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
