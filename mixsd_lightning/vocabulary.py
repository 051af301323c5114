"""Which tokens a model may write: those that its tokenizer has a text for.

Many models have more embeddings than their tokenizer has tokens (Qwen3: 151936 and 151669), because round numbers multiply
faster. What is left over was never trained and means nothing, so it is never sampled and stands in no target.
"""

from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from mixsd_lightning.errors import UserError


def suppressed_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Ids that a model has embeddings for and its tokenizer has no text for, ascending."""
    return sorted(set(range(_num_embeddings(model))).difference(tokenizer.get_vocab().values()))


def suppress_unknown(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Note in a model's generation config, which is exported with it, what it may never write."""
    generation = model.generation_config
    if ids := suppressed_ids(model, tokenizer):
        generation.suppress_tokens = sorted({*ids, *(generation.suppress_tokens or ())})


def forbid_suppressed(model: PreTrainedModel, logits_NV: Tensor) -> Tensor:
    """Next-token logits with those of suppressed tokens at minus infinity, in place."""
    if ids := model.generation_config.suppress_tokens:
        logits_NV[:, ids] = -float("inf")
    return logits_NV


def check_vocabulary(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Make sure that a model has an embedding for all that its tokenizer may give it.

    Special tokens that no chat contains may lie beyond (Gemma 3 of 1B: the place of an image).

    Raises:
        UserError: if it lacks one.
    """
    size = _num_embeddings(model)
    special = {id for id, token in tokenizer.added_tokens_decoder.items() if token.special}
    written = [tokenizer.bos_token_id, tokenizer.eos_token_id]
    if tokenizer.chat_template:
        chat = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hi"}]
        text = tokenizer.apply_chat_template(chat, tokenize=False)
        written += tokenizer(text, add_special_tokens=False)["input_ids"]
    used = {*tokenizer.get_vocab().values()}.difference(special).union(written)
    if beyond := sorted(id for id in used if id is not None and id >= size):
        raise UserError(
            f"--model.model_name_or_path: the tokenizer gives ids up to {beyond[-1]} (such as {beyond[0]}, "
            f"{tokenizer.convert_ids_to_tokens(beyond[0])!r}), but the model has {size} embeddings. Give the tokenizer that belongs "
            "to the model, or resize its embeddings (resize_token_embeddings) and save it."
        )


def _num_embeddings(model: PreTrainedModel) -> int:
    weight = model.get_input_embeddings().weight
    assert isinstance(weight, Tensor)
    return len(weight)
