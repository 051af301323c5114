"""What is fetched or computed once and kept in the user's cache."""

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from platformdirs import user_cache_path
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from mixsd_lightning.atomic_file import scratch_beside
from mixsd_lightning.ranks import all_ranks

CACHE_VARIABLE = "MIXSD_CACHE_DIR"

_T = TypeVar("_T")
_Json = TypeVar("_Json", bound=list[Any] | dict[str, Any])


def cache_dir() -> Path:
    """Folder for everything that is fetched or computed once; the variable ``MIXSD_CACHE_DIR`` moves it."""
    override = os.environ.get(CACHE_VARIABLE)
    return Path(override).expanduser() if override else user_cache_path("mixsd_lightning")


def computed_dir() -> Path:
    """Folder for what is computed once."""
    return cache_dir() / "computed"


def digest(content: Any) -> str:
    """Short digest of JSON values."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:32]


def cached_tensors(kind: str, depends_on: Mapping[str, Any], compute: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
    """What ``compute`` returns, computed only if it has not been before. All ranks call it, and compute together or not.

    A file that cannot be read is made again. Where none can be written, the result is used and not kept, with a warning.

    Args:
        kind: Folder in the cache.
        depends_on: JSON values that the result is a function of.
        compute: Makes the tensors, on the CPU.
    """
    return _cached(_path(kind, depends_on, "safetensors"), load_file, save_file, compute)


def cached_json(kind: str, depends_on: Mapping[str, Any], compute: Callable[[], _Json]) -> _Json:
    """The same for JSON values: a list, or a dict whose keys are texts."""
    return _cached(_path(kind, depends_on, "json"), _read_json, _write_json, compute)


def _path(kind: str, depends_on: Mapping[str, Any], suffix: str) -> Path:
    from mixsd_lightning import __version__  # which imports this file

    return computed_dir() / kind / f"{digest({**depends_on, 'version': __version__})}.{suffix}"


def _read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def _write_json(value: Any, path: Path) -> None:
    path.write_text(json.dumps(value), encoding="utf-8")


def _cached(path: Path, read: Callable[[Path], _T], write: Callable[[_T, Path], None], compute: Callable[[], _T]) -> _T:
    kept = None
    with suppress(OSError, SafetensorError, ValueError):  # the last: not JSON
        kept = read(path)
    if all_ranks(kept is not None):
        assert kept is not None
        return kept
    computed = compute()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with scratch_beside(path) as scratch:
            write(computed, scratch)
    except (OSError, SafetensorError) as error:  # the second is how a full disk shows
        rank_zero_warn(
            f"Cannot keep {path}: {getattr(error, 'strerror', None) or error}. It will be computed again next time; "
            f"free some space, or set {CACHE_VARIABLE} to a writable folder."
        )
    return computed
