"""Loading models and tokenizers, and the few facts about them that every method needs."""

import hashlib
from collections.abc import Iterator, Set
from contextlib import contextmanager, nullcontext
from inspect import signature
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from mixsd_lightning.builtin_model import BUILTIN_MODEL, builtin_model_path
from mixsd_lightning.errors import UserError
from mixsd_lightning.sharding import evenly_spaced_values, is_sharded, reshard
from mixsd_lightning.vocabulary import check_vocabulary, suppress_unknown

ATTENTION_KINDS = frozenset({"full_attention", "sliding_attention", "chunked_attention"})
"""Layers that see the past through keys and values of each token alone."""


def load_student(model_name_or_path: str, trust_remote_code: bool = False) -> PreTrainedModel:
    """Load a causal language model in float32, ready to train.

    It has no dropout: targets and likelihoods are those of the model without, and so is what it is trained to. It never writes
    tokens that its tokenizer has no text for.

    Args:
        model_name_or_path: ``smollm2-135m`` (the built-in model), a local Hugging Face folder, or a Hub id.
        trust_remote_code: Allow code that comes with the model to run.

    Raises:
        UserError: if there is no such model, it cannot be read, or its tokenizer is another model's.
    """
    model, loading = _from_pretrained(
        AutoModelForCausalLM, model_name_or_path, trust_remote_code, dtype=torch.float32, output_loading_info=True
    )
    if missing := sorted(loading["missing_keys"]):
        raise UserError(
            f"--model.model_name_or_path: '{model_name_or_path}' lacks {len(missing)} tensors ({missing[0]}, ...), which would "
            "be random. Give a complete model folder whose config matches its weights."
        )
    _switch_dropout_off(model)
    tokenizer = load_tokenizer(model_name_or_path, trust_remote_code)
    check_vocabulary(model, tokenizer)
    suppress_unknown(model, tokenizer)
    return model.train()  # from_pretrained returns it in eval mode, and Lightning no longer switches


def load_tokenizer(model_name_or_path: str, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a model named as in :func:`load_student`.

    Raises:
        UserError: if it cannot be read.
    """
    return _from_pretrained(AutoTokenizer, model_name_or_path, trust_remote_code)


def context_window(model_name_or_path: str, trust_remote_code: bool = False) -> int:
    """Number of tokens (prompt and completion together) that the model was made for, read from its config alone."""
    return window_of(_from_pretrained(AutoConfig, model_name_or_path, trust_remote_code))


def window_of(config: PretrainedConfig) -> int:
    """Number of tokens (prompt and completion together) that a model of this config was made for.

    With LongRoPE (Phi-3 of 128k) it is the window of the first training. Longer texts change the model's frequencies, and with
    them everything else in their batch.
    """
    text = config.get_text_config()
    # MPT has a name of its own; models without position embeddings (state-space models) have no limit.
    windows = [getattr(text, name, None) for name in ("max_position_embeddings", "max_seq_len")]
    rope = getattr(text, "rope_parameters", None) or {}
    if rope.get("rope_type") == "longrope":
        windows.append(rope.get("original_max_position_embeddings"))
    return min((int(window) for window in windows if window), default=2**31)


def stop_token_ids(model: PreTrainedModel, end_of_turn_id: int) -> frozenset[int]:
    """Ids that end a completion: all of the generation config's end tokens and the chat template's end of turn."""
    configured = model.generation_config.eos_token_id if model.generation_config else None
    listed = configured if isinstance(configured, list) else [configured]
    return frozenset([end_of_turn_id, *(token for token in listed if token is not None)])


def weights_fingerprint(model: torch.nn.Module) -> str:
    """Short digest of a model's weights: names, shapes and 64 evenly spaced values of every parameter.

    It tells different models and different checkpoints apart without reading every byte of a large model. A LoRA adapter does
    not count. All ranks that share a model call it, and get what one with the whole model gets.
    """
    digest = hashlib.sha256()
    parameters = dict(base_parameters(model))
    for (name, parameter), sample in zip(parameters.items(), evenly_spaced_values(list(parameters.values()), 64), strict=True):
        digest.update(f"{name}{tuple(parameter.shape)}".encode())
        digest.update(sample.numpy().tobytes())
    return digest.hexdigest()[:16]


def add_lora(model: PreTrainedModel, rank: int, alpha: int) -> None:
    """Put a LoRA adapter on all linear layers but the head, and freeze everything else.

    It begins at random, by the seed of torch's generator alone: what was drawn before, which differs between strategies, does not
    change it.

    Raises:
        UserError: if peft is not installed.
    """
    try:
        from peft import LoraConfig
    except ImportError as error:
        raise UserError(
            "--model.lora_rank needs peft, which is not installed: pip install 'mixsd_lightning[lora]', or leave "
            "--model.lora_rank at 0 to train all weights."
        ) from error
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(torch.initial_seed())
        model.add_adapter(LoraConfig(r=rank, lora_alpha=alpha, target_modules="all-linear"))


@contextmanager
def without_lora(model: PreTrainedModel) -> Iterator[None]:
    """Switch a model's LoRA adapter off for a while."""
    model.disable_adapters()
    try:
        yield
    finally:
        model.enable_adapters()


def base_parameters(model: torch.nn.Module) -> Iterator[tuple[str, torch.nn.Parameter]]:
    """A model's own parameters by the names that they have without a LoRA adapter; of a sharded one, the parts."""
    reshard(model)
    for name, parameter in model.named_parameters():
        if ".lora_" not in name:
            yield name.replace(".base_layer.", "."), parameter


def effective_parameters(model: torch.nn.Module, only_trained: bool = False) -> Iterator[tuple[str, torch.Tensor]]:
    """What a model computes with: its own parameters, with the change that a LoRA adapter makes to them.

    Args:
        model: A model with or without an adapter.
        only_trained: Leave out those that training does not change.
    """
    reshard(model)
    for name, parameter in model.named_parameters():
        if ".lora_" in name:
            continue
        module_name, _, kind = name.rpartition(".base_layer.")
        is_adapted = bool(module_name) and kind == "weight"
        if only_trained and not (parameter.requires_grad or is_adapted):
            continue
        weight = parameter.detach()
        if is_adapted:
            weight = weight + model.get_submodule(module_name).get_delta_weight("default")  # type: ignore[operator]
        yield name.replace(".base_layer.", "."), weight


def attends_by(model: PreTrainedModel, kinds: Set[str]) -> bool:
    """Whether all layers of a model are attention of these kinds, so that rows may go on from a common cache.

    Never of a sharded model: its layers must run equally often on all ranks, whatever their rows have in common.
    """
    return _layer_kinds(model) <= kinds and not getattr(model, "_is_stateful", False) and not is_sharded(model)


def is_recurrent(model: PreTrainedModel) -> bool:
    """Whether a model keeps more than the keys and values of single tokens, so that padding and other rows may disturb a row."""
    has_cache = "past_key_values" in signature(model.forward).parameters
    return not has_cache or bool(_layer_kinds(model) - ATTENTION_KINDS) or getattr(model, "_is_stateful", False)


def allows_gaps(model: PreTrainedModel) -> bool:
    """Whether padding may stand between the tokens of a row, so that positions alone say how far apart they are.

    A window counts columns, and so do the biases of models that take no positions (ALiBi).
    """
    return attends_by(model, {"full_attention"}) and "position_ids" in signature(model.forward).parameters


def _layer_kinds(model: PreTrainedModel) -> set[str]:
    config = model.config.get_text_config()
    if kinds := getattr(config, "layer_types", None):
        return set(kinds)
    is_windowed = getattr(config, "sliding_window", None) is not None  # Mistral, Phi-3, Starcoder 2
    if is_windowed or "local" in getattr(config, "attention_layers", ()):  # GPT-Neo
        return {"sliding_attention"}
    return {"full_attention" if getattr(config, "attention_chunk_size", None) is None else "chunked_attention"}


def compile_decoder(model: PreTrainedModel) -> None:
    """Have `torch.compile` translate everything below the head, at its first forward in train mode."""
    model.base_model.compile(dynamic=True)


def is_compiled(model: torch.nn.Module) -> bool:
    """Whether a model went through :func:`compile_decoder`."""
    return isinstance(model, PreTrainedModel) and model.base_model._compiled_call_impl is not None


@contextmanager
def evaluating(model: torch.nn.Module) -> Iterator[None]:
    """Put a model into eval mode for a while, whatever ends it.

    A compiled model runs as it is written: each step of decoding has shapes of its own and would be compiled anew.
    """
    was_training = model.training
    model.eval()
    try:
        with torch.compiler.set_stance("force_eager") if is_compiled(model) else nullcontext():
            yield
    finally:
        model.train(was_training)


@contextmanager
def inference(model: PreTrainedModel) -> Iterator[None]:
    """Run a model for what it says: in eval mode, without gradients, and on a CPU without autocast.

    bf16 autocast would cast every weight anew at each step; for the small products of CPU decoding that costs more than the
    products themselves.
    """
    with torch.no_grad(), torch.autocast(model.device.type, enabled=_autocasts(model)), evaluating(model):
        yield


def inference_dtype(model: PreTrainedModel) -> torch.dtype:
    """What a model computes in under :func:`inference`."""
    return torch.get_autocast_dtype(model.device.type) if _autocasts(model) else model.dtype


def _switch_dropout_off(model: PreTrainedModel) -> None:
    """Set every rate of dropout to zero: in modules, where they are modules or numbers, and in configs (Falcon looks there)."""
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        for owner in (module, module.config) if isinstance(module, PreTrainedModel) else (module,):
            for name, value in list(vars(owner).items()):
                if "drop" in name and isinstance(value, float):
                    setattr(owner, name, 0.0)


def _autocasts(model: PreTrainedModel) -> bool:
    device = model.device.type
    return device != "cpu" and torch.is_autocast_enabled(device)


def model_source(model_name_or_path: str) -> str:
    """What the loaders of transformers and vLLM know a model by: a folder or a Hub id."""
    return str(builtin_model_path()) if model_name_or_path == BUILTIN_MODEL else model_name_or_path


def _from_pretrained(auto_class: Any, model_name_or_path: str, trust_remote_code: bool, **options: Any) -> Any:
    source = model_source(model_name_or_path)
    try:
        return auto_class.from_pretrained(source, trust_remote_code=trust_remote_code, **options)
    except Exception as error:  # whatever a damaged folder makes the loaders raise; the cause is kept and shown
        where = "local folder" if Path(source).is_dir() else "Hub id (there is no local folder of that name)"
        reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise UserError(
            f"--model.model_name_or_path: cannot load '{model_name_or_path}' as a {where}: {reason} "
            f"Give a readable model folder, a Hub id that this machine can reach, or '{BUILTIN_MODEL}'."
        ) from error
