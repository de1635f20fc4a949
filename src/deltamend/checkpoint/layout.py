"""Decide which tensor goes into which output file, and at which offset, before a byte is written."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass

from huggingface_hub import split_state_dict_into_shards_factory

from deltamend.checkpoint.checkpoint_folder import Checkpoint, StoredTensor
from deltamend.checkpoint.dtypes import FLOAT_NAMES, itemsize
from deltamend.checkpoint.file_names import INDEX_FILE, TORCH_SUFFIX
from deltamend.checkpoint.safetensors_header import encode_header
from deltamend.errors import UsageError, option

_USUAL_SHARD_SIZE = "5GB"
_SIZE = re.compile(r"(\d+(?:\.\d+)?)[KMGT]B", re.IGNORECASE)


@dataclass(frozen=True)
class ShardLayout:
    """One output file: its name, its header, its tensors with the offsets they will have, and its size in bytes."""

    file: str
    header: bytes
    tensors: tuple[StoredTensor, ...]
    size: int


@dataclass(frozen=True)
class Layout:
    """The weight files of the output, and the text of the index (None for a single file)."""

    shards: tuple[ShardLayout, ...]
    index: str | None

    @property
    def nbytes(self) -> int:
        """Bytes of all weight files."""
        return sum(shard.size for shard in self.shards)


def plan_layout(
    finetuned: Checkpoint, *, out_dtype: str | None = None, max_shard_size: int | str | None = None
) -> Layout:
    """Lay out the output like FINETUNED, or with other dtypes and shards where they are given.

    Args:
        finetuned: the checkpoint whose files, order and dtypes are taken over.
        out_dtype: safetensors name of the dtype of every floating-point tensor; None keeps each tensor's own.
        max_shard_size: bytes, or text such as "5GB"; None keeps FINETUNED's shards, or makes some of 5 GB where its files are
            those of a training run.

    Raises:
        UsageError: `max_shard_size` is not a size.
    """
    tensors = {name: _planned_dtype(tensor, out_dtype) for name, tensor in finetuned.tensors.items()}
    if max_shard_size is None and finetuned.assembled:
        max_shard_size = _USUAL_SHARD_SIZE
    if max_shard_size is None:
        files: dict[str, list[str]] = {_written_name(file): [] for file in finetuned.headers}
        for tensor in finetuned.tensors.values():
            files[_written_name(tensor.file)].append(tensor.name)
        files = {file: names for file, names in files.items() if names}
        indexed = finetuned.has_index
    else:
        files = _split(finetuned.tensors, tensors, max_shard_size)
        indexed = len(files) > 1
    shards = tuple(_shard(file, names, finetuned, tensors) for file, names in files.items())
    return Layout(shards, _index_text(shards, finetuned) if indexed else None)


def _planned_dtype(tensor: StoredTensor, out_dtype: str | None) -> str:
    return out_dtype if out_dtype is not None and tensor.output_dtype in FLOAT_NAMES else tensor.output_dtype


def _written_name(file: str) -> str:
    """The name of a weight file in the output: the same, or for a PyTorch file the name that its safetensors version has."""
    return (
        file.replace("pytorch_model", "model", 1).removesuffix(TORCH_SUFFIX) + ".safetensors"
        if file.endswith(TORCH_SUFFIX)
        else file
    )


def _split(
    tensors: Mapping[str, StoredTensor], dtypes: Mapping[str, str], max_shard_size: int | str
) -> dict[str, list[str]]:
    """Split by size, with the file names transformers expects."""
    written = None if isinstance(max_shard_size, int) else _SIZE.fullmatch(max_shard_size)
    size = max_shard_size if isinstance(max_shard_size, int) else float(written[1]) if written else 0
    if isinstance(max_shard_size, bool) or size <= 0:
        raise UsageError(f"{option('max_shard_size')}: {max_shard_size!r} is not a size; write it like 5GB or 500MB")
    split = split_state_dict_into_shards_factory(
        dict(tensors),
        get_storage_size=lambda tensor: tensor.elements * itemsize(dtypes[tensor.name]),
        get_storage_id=lambda tensor: None,  # noqa: ARG005 - the names are the interface; no tensors share storage in a file
        filename_pattern="model{suffix}.safetensors",
        max_shard_size=max_shard_size,
    )
    return {file: list(names) for file, names in split.filename_to_tensors.items()}


def _shard(file: str, names: list[str], finetuned: Checkpoint, dtypes: Mapping[str, str]) -> ShardLayout:
    described = [(name, dtypes[name], finetuned.tensors[name].shape) for name in names]
    metadata = finetuned.headers[file].metadata if file in finetuned.headers else {}
    header, offsets = encode_header(described, {**metadata, "format": "pt"})
    original = finetuned.headers.get(file)
    if original is not None and original.text and metadata.get("format") == "pt" and described == original.described:
        # The same tensors in the same order: the file's own spelling, whoever wrote it.
        header, offsets = original.text, {entry.name: (entry.start, entry.stop) for entry in original.entries}
    tensors = tuple(StoredTensor(name, dtype, shape, file, *offsets[name]) for name, dtype, shape in described)
    return ShardLayout(file, header, tensors, tensors[-1].stop if tensors else len(header))


def _index_text(shards: tuple[ShardLayout, ...], finetuned: Checkpoint) -> str:
    """The index of these shards; FINETUNED's own text where it says the same."""
    weight_map = {tensor.name: shard.file for shard in shards for tensor in shard.tensors}
    total = sum(tensor.nbytes for shard in shards for tensor in shard.tensors)
    if (finetuned.folder / INDEX_FILE).exists():
        text = (finetuned.folder / INDEX_FILE).read_text(encoding="utf-8")
        theirs = json.loads(text)
        metadata = theirs.get("metadata")
        stated = metadata.get("total_size", total) if isinstance(metadata, dict) else total
        if theirs["weight_map"] == weight_map and stated == total:
            return text
    return (
        json.dumps({"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}, indent=2) + "\n"
    )
