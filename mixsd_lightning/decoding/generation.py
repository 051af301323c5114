"""Batched decoding, for answers that are scored and for rollouts. It works with every causal language model of transformers.

Shapes: N completions in flight, V vocabulary, L cached length.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from mixsd_lightning.decoding.prefix_tree import common_prefix_length
from mixsd_lightning.decoding.sampling import supports, uniform_numbers
from mixsd_lightning.errors import UserError
from mixsd_lightning.models import allows_gaps, inference, is_recurrent, window_of
from mixsd_lightning.vocabulary import forbid_suppressed


@dataclass
class Completion:
    """Generated token ids (with the stop token, if there is one) and why generation ended."""

    token_ids: list[int] = field(default_factory=list)
    finish_reason: str = ""
    """``stop`` or ``max_new_tokens``."""


class CachedRows:
    """Prompts with their key-value cache, extended by one token a step.

    What all prompts begin with is computed once, where the model allows it; what follows is padded on the left.

    Attributes:
        logits_NV: Next-token logits of each row, float32.
    """

    logits_NV: Tensor

    def __init__(self, model: PreTrainedModel, prompts: Sequence[Sequence[int]]) -> None:
        self._model = model
        self._cache = DynamicCache(config=model.config)
        shared = common_prefix_length(prompts) if len(prompts) > 1 and allows_gaps(model) else 0
        rests = [list(prompt[shared:]) for prompt in prompts]
        longest = max(map(len, rests))
        # Any id does for padding: the mask hides it.
        ids_NL = torch.tensor([[0] * (longest - len(rest)) + rest for rest in rests], device=model.device)
        lengths_N = torch.tensor([len(rest) for rest in rests], device=model.device)
        is_prompt_NL = torch.arange(longest, device=model.device) >= longest - lengths_N[:, None]
        if shared:
            self._mask_NL = torch.ones(1, shared, dtype=torch.long, device=model.device)
            beginning = torch.tensor([list(prompts[0][:shared])], device=model.device)
            self._forward(beginning, torch.arange(shared, device=model.device)[None])
            self._cache.batch_repeat_interleave(len(prompts))
        self._mask_NL = torch.cat([is_prompt_NL.new_ones(len(prompts), shared), is_prompt_NL], dim=1).long()
        self._next_position_N = shared + lengths_N
        self._forward(ids_NL, shared + (is_prompt_NL.long().cumsum(-1) - 1).clamp(min=0))

    def append(self, tokens_N: Tensor) -> None:
        """Append one token to every row and compute the next logits."""
        self._mask_NL = torch.cat([self._mask_NL, self._mask_NL.new_ones(len(tokens_N), 1)], dim=1)
        self._forward(tokens_N[:, None], self._next_position_N[:, None])
        self._next_position_N = self._next_position_N + 1

    def keep(self, rows: Sequence[int]) -> None:
        """Keep these rows, in this order; one may be kept more than once."""
        index = torch.tensor(list(rows), device=self._mask_NL.device)
        self._cache.batch_select_indices(index)
        self._mask_NL = self._mask_NL[index]
        self._next_position_N = self._next_position_N[index]
        self.logits_NV = self.logits_NV[index]

    def _forward(self, ids_NL: Tensor, positions_NL: Tensor) -> None:
        output = self._model(
            input_ids=ids_NL,
            attention_mask=self._mask_NL,
            position_ids=positions_NL,
            past_key_values=self._cache,
            use_cache=True,
            logits_to_keep=1,
        )
        self.logits_NV = forbid_suppressed(self._model, output.logits[:, -1].float())


class UncachedRows:
    """The same for recurrent models, whose states padding would disturb: every row is run alone, from its start at every step.

    Attributes:
        logits_NV: Next-token logits of each row, float32.
    """

    logits_NV: Tensor

    def __init__(self, model: PreTrainedModel, prompts: Sequence[Sequence[int]]) -> None:
        self._model = model
        self._texts = [list(prompt) for prompt in prompts]
        self._forward()

    def append(self, tokens_N: Tensor) -> None:
        """Append one token to every row and compute the next logits."""
        self._texts = [[*text, token] for text, token in zip(self._texts, tokens_N.tolist(), strict=True)]
        self._forward()

    def keep(self, rows: Sequence[int]) -> None:
        """Keep these rows, in this order; one may be kept more than once."""
        self._texts = [self._texts[row] for row in rows]
        self.logits_NV = self.logits_NV[list(rows)]

    def _forward(self) -> None:
        texts = [torch.tensor([text], device=self._model.device) for text in self._texts]
        logits = [self._model(input_ids=ids, use_cache=False, logits_to_keep=1).logits[:, -1] for ids in texts]
        self.logits_NV = forbid_suppressed(self._model, torch.cat(logits).float())


@dataclass(frozen=True)
class Sampling:
    """How a rollout picks its tokens."""

    temperature: float = 1.0
    """0 takes the most probable token."""
    top_k: int = 0
    """Sample from the k most probable tokens; 0 for all."""
    top_p: float = 1.0
    """Sample from the fewest most probable tokens that have this probability together."""


def generate_greedy(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    stop_ids: frozenset[int],
    batch_size: int = 64,
) -> list[Completion]:
    """Greedy completions of ``prompts``, in order; the most probable token at every position.

    Args:
        model: A causal language model; it is put into eval mode for the call.
        prompts: Prompt token ids.
        max_new_tokens: Longest completion, stop token included.
        stop_ids: Tokens that end a completion.
        batch_size: Prompts answered at once.
    """

    def most_probable(logits_NV: Tensor, rows: Sequence[int], position: int) -> list[int]:
        return list(logits_NV.argmax(-1).tolist())

    return _generate(model, prompts, 1, most_probable, max_new_tokens, stop_ids, batch_size)


def roll_out(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    keys: Sequence[str],
    sampling: Sampling,
    *,
    num_rollouts: int,
    max_new_tokens: int,
    stop_ids: frozenset[int],
    batch_size: int = 64,
    on_tokens: Callable[[Sequence[int], Sequence[int]], None] | None = None,
) -> list[list[Completion]]:
    """Sampled completions, ``num_rollouts`` for every prompt.

    Args:
        model: A causal language model; it is put into eval mode for the call.
        prompts: Prompt token ids.
        keys: Decides the draws, for every prompt: a rollout is a function of the model, the prompt, its key and its number,
            whatever else is in the batch.
        sampling: How tokens are picked.
        num_rollouts: Completions of every prompt, which is run once for all of them.
        max_new_tokens: Longest completion, stop token included.
        stop_ids: Tokens that end a completion.
        batch_size: Completions in flight at once, but all of a prompt together.
        on_tokens: Called at every step with the numbers of the completions in flight and their new tokens.
    """
    uniforms = [uniform_numbers(f"{key}|{number}", max_new_tokens) for key in keys for number in range(num_rollouts)]

    def draw(logits_NV: Tensor, rows: Sequence[int], position: int) -> list[int]:
        found = supports(logits_NV, sampling.temperature, sampling.top_k, sampling.top_p)
        tokens = [support.pick(uniforms[row][position]) for support, row in zip(found, rows, strict=True)]
        if on_tokens is not None:
            on_tokens(rows, tokens)
        return tokens

    num_prompts = max(1, batch_size // num_rollouts)
    completions = _generate(model, prompts, num_rollouts, draw, max_new_tokens, stop_ids, num_prompts)
    return [completions[first : first + num_rollouts] for first in range(0, len(completions), num_rollouts)]


Pick = Callable[[Tensor, Sequence[int], int], list[int]]
"""Next tokens, from the logits of completions in flight, their numbers and the position."""


def _generate(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    num_each: int,
    pick: Pick,
    max_new_tokens: int,
    stop_ids: frozenset[int],
    num_prompts: int,
) -> list[Completion]:
    """``num_each`` completions of every prompt, in order, of ``num_prompts`` prompts at once."""
    longest = max(map(len, prompts), default=0)
    if longest + max_new_tokens > window_of(model.config):
        raise UserError(
            f"A prompt of {longest} tokens and an answer of up to {max_new_tokens} do not fit the model's window of "
            f"{window_of(model.config)}. Shorten the prompt, or lower max_new_tokens."
        )
    completions = [Completion() for _ in range(len(prompts) * num_each)]
    # Similar lengths together, so that little of a batch is padding.
    order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
    with inference(model):
        for start in range(0, len(order), num_prompts):
            indices = order[start : start + num_prompts]
            rows = (UncachedRows if is_recurrent(model) else CachedRows)(model, [prompts[index] for index in indices])
            in_flight = [index * num_each + number for index in indices for number in range(num_each)]
            if num_each > 1:
                rows.keep([slot for slot in range(len(indices)) for _ in range(num_each)])
            for position in range(max_new_tokens):
                tokens = pick(rows.logits_NV, in_flight, position)
                staying: list[int] = []
                for slot, (index, token) in enumerate(zip(in_flight, tokens, strict=True)):
                    completion = completions[index]
                    completion.token_ids.append(token)
                    if token in stop_ids:
                        completion.finish_reason = "stop"
                    elif position + 1 == max_new_tokens:
                        completion.finish_reason = "max_new_tokens"
                    else:
                        staying.append(slot)
                if not staying:
                    break
                if len(staying) < len(in_flight):  # finished ones leave the batch
                    rows.keep(staying)
                    in_flight = [in_flight[slot] for slot in staying]
                    tokens = [tokens[slot] for slot in staying]
                rows.append(torch.tensor(tokens, device=model.device))
    return completions
