"""Reading the folders that sharded training saves (`torch.distributed.checkpoint`), in one process and without running them.

Lightning's own consolidation unpickles whatever the folder's index holds. Here the index may name the classes that an index consists
of, and nothing else.
"""

import pickle
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed import checkpoint as distributed_checkpoint
from torch.distributed.checkpoint import FileSystemReader
from torch.distributed.checkpoint import metadata as index
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata
from typing_extensions import override

INDEX_FILE = ".metadata"
OTHERS_FILE = "meta.pt"
"""Where Lightning keeps what is no tensor: hyper-parameters, step, callbacks."""

_ALLOWED = {
    ("collections", "OrderedDict"),
    ("pathlib", "PosixPath"),
    ("pathlib", "WindowsPath"),
    ("pathlib", "PurePosixPath"),
    ("torch", "Size"),
    ("torch.distributed.checkpoint.filesystem", "_StorageInfo"),
    ("torch.serialization", "_get_layout"),
}


def is_sharded_checkpoint(path: Path) -> bool:
    """Whether a folder is a checkpoint of sharded training."""
    return (path / INDEX_FILE).is_file()


def read_sharded_checkpoint(folder: Path) -> dict[str, Any]:
    """The folder as Lightning's single files are: the whole tensors under `state_dict`, beside everything that is no tensor.

    Optimizer states are left out.

    Raises:
        pickle.UnpicklingError: if it holds more than tensors and plain values.
    """
    reader = _Reader(folder)
    entries = reader.read_metadata().state_dict_metadata
    state = {
        name: torch.empty(entry.size, dtype=entry.properties.dtype)
        for name, entry in entries.items()
        if name.startswith("state_dict.") and isinstance(entry, TensorStorageMetadata)
    }
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled")  # as it should be
        distributed_checkpoint.load(state, storage_reader=reader, no_dist=True)
    others = torch.load(folder / OTHERS_FILE, map_location="cpu", weights_only=True)
    weights: dict[str, Tensor] = {name.removeprefix("state_dict."): tensor for name, tensor in state.items()}
    return {**others, "state_dict": weights}


class _Reader(FileSystemReader):
    @override
    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        with Path(self.path, INDEX_FILE).open("rb") as file:
            found = _IndexUnpickler(file).load()
        if not isinstance(found, Metadata):
            raise pickle.UnpicklingError(f"{INDEX_FILE} is no index of a checkpoint")
        found.storage_meta = found.storage_meta or index.StorageMeta()
        found.storage_meta.load_id = self.load_id
        return found


class _IndexUnpickler(pickle.Unpickler):
    @override
    def find_class(self, module: str, name: str) -> Any:
        is_index_class = module == index.__name__ and isinstance(getattr(index, name, None), type)
        is_dtype = module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)
        if is_index_class or is_dtype or (module, name) in _ALLOWED:
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"{INDEX_FILE} wants to use {module}.{name}")
