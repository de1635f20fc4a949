"""Folders of torch.distributed.checkpoint (DCP), as FSDP, accelerate and torchtitan write them.

The format (torch, `distributed/checkpoint/metadata.py` and `filesystem.py`): `.metadata` is a pickle of a `Metadata` object,
which says into which chunks each tensor is cut, and in which file, at which bytes, each chunk lies; there it is what
torch.save wrote of that chunk alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deltamend.checkpoint.checkpoint_folder import Checkpoint, StoredTensor
from deltamend.checkpoint.inert_pickle import ForbiddenNameError, Inert, ordered_dict, plain_set, read_inert
from deltamend.checkpoint.torch_archive import TORCH_DTYPES, ArchivedTensor, read_torch_archive
from deltamend.errors import CheckpointError
from deltamend.inputs.distributed_checkpoints.assembled import (
    Box,
    Boxes,
    Parts,
    Span,
    Spans,
    checkpoint_of_parts,
    folder_of_config,
    show_assembled,
)
from deltamend.machine.bounded_files import UnreadableError, read_bytes

METADATA_FILE = ".metadata"
_LARGEST_METADATA = 1 << 30
_MOST_BLOCKS = 512
"""Chunks of one tensor that is cut in more than its first dimension; whether they overlap is tried for every two of them."""
_CLASSES = (
    "torch.distributed.checkpoint.metadata.",
    "torch.distributed._shard.sharded_tensor.metadata.",  # torch before 2.3
    "torch.distributed.checkpoint.filesystem._StorageInfo",
    "torch.distributed.checkpoint.filesystem._StoragePrefix",
    "pathlib.PosixPath",
    "pathlib._local.PosixPath",
    "pathlib.PurePosixPath",
    "pathlib.Path",
)
_OPTIMISER = frozenset(
    {"optim", "optimizer", "optimizers", "optimizer_state", "lr_scheduler", "train_state", "dataloader"}
)


@dataclass(frozen=True)
class _Chunk:
    offsets: tuple[int, ...]
    sizes: tuple[int, ...]
    file: str
    start: int
    stop: int


@dataclass(frozen=True)
class _Tensor:
    shape: tuple[int, ...]
    dtype: str
    chunks: tuple[_Chunk, ...]


def open_dcp(folder: Path) -> Checkpoint:
    """Open the model of a DCP folder; the state of an optimiser beside it is left out.

    Raises:
        CheckpointError: there is no config, the metadata cannot be read or would run code, or chunks are missing, damaged,
            compressed, or do not make up their tensors.
    """
    home = folder_of_config(folder)
    tensors = _model_tensors(folder, _read_metadata(folder / METADATA_FILE))
    inside = "" if folder == home else f"{folder.name}/"
    by_file: dict[str, dict[str, ArchivedTensor]] = {}
    for name, tensor in tensors.items():
        for chunk in tensor.chunks:
            found = _archived(folder, name, tensor, chunk)
            by_file.setdefault(f"{inside}{chunk.file}", {})[_part_name(name, chunk)] = found
    checkpoint = checkpoint_of_parts(home, Parts(dict(sorted(by_file.items()))))
    try:
        shown: dict[str, Any] = {}
        for name, tensor in tensors.items():
            parts = [checkpoint.tensors[_part_name(name, chunk)] for chunk in tensor.chunks]
            shown[name] = (tensor.shape, _source(checkpoint, folder, name, tensor, parts), parts[0])
        prefix = _wrapper(shown)
        note = f"{folder.name}: {len(shown)} tensors are put together from the {len(by_file)} files of a distributed checkpoint"
        show_assembled(checkpoint, {name.removeprefix(prefix): found for name, found in shown.items()}, note)
    except BaseException:
        checkpoint.close()
        raise
    return checkpoint


def _part_name(name: str, chunk: _Chunk) -> str:
    return f"{name}@{','.join(map(str, chunk.offsets))}"


def _read_metadata(path: Path) -> Inert:
    """The `Metadata` object, as an inert record."""
    functions: dict[str, object] = {
        "torch.Size": tuple,
        "torch.serialization._get_layout": str,
        "collections.OrderedDict": ordered_dict,
        "builtins.set": plain_set,
        **{f"torch.{name}": name for name in TORCH_DTYPES},
    }
    try:
        found = read_inert(read_bytes(path, _LARGEST_METADATA), functions, _CLASSES)
    except ForbiddenNameError as error:
        raise CheckpointError(
            f"{path}: its pickle asks for {str(error)!a}, which no distributed checkpoint needs and which could run code; do not use this checkpoint"
        ) from error
    except UnreadableError as error:
        raise CheckpointError(f"{path}: cannot be read ({error}); copy the folder again") from error
    except Exception as error:  # damaged bytes make the unpickler raise of all kinds
        raise CheckpointError(f"{path}: damaged ({type(error).__name__}); copy the folder again") from error
    if not isinstance(found, Inert) or not isinstance(found.field("state_dict_metadata"), dict):
        raise CheckpointError(f"{path}: is no metadata of torch.distributed.checkpoint; copy the folder again")
    return found


def _model_tensors(folder: Path, metadata: Inert) -> dict[str, _Tensor]:
    """The tensors of the model, by name, checked."""
    path = folder / METADATA_FILE
    places = _places(path, metadata.field("storage_data"))
    tensors = {}
    for name, entry in metadata.field("state_dict_metadata").items():
        if not isinstance(entry, Inert) or type(entry).__name__ != "TensorStorageMetadata" or not isinstance(name, str):
            continue
        if _OPTIMISER & set(name.split(".")[:2]):
            continue
        if not name.isprintable():
            raise CheckpointError(f"{path}: tensor name {name!r} is no printable text; do not use this checkpoint")
        try:
            tensors[name] = _tensor(name, entry, places)
        except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
            raise CheckpointError(
                f"{path}: tensor {name!r} is described in a way that cannot be ({type(error).__name__}: {error}); copy the folder again"
            ) from error
    if not tensors:
        raise CheckpointError(
            f"{folder}: holds no tensors of a model, only the state of a training run; give the folder of the model"
        )
    return tensors


def _places(path: Path, stored: object) -> dict[tuple[str, tuple[int, ...]], Inert]:
    """Where each chunk lies, by the name of its tensor and its offsets."""
    places = {}
    for index, place in stored.items() if isinstance(stored, dict) else ():
        if not isinstance(index, Inert) or not isinstance(place, Inert):
            continue
        name, offset = index.field("fqn"), index.field("offset")
        if isinstance(name, str) and isinstance(offset, tuple) and all(type(at) is int for at in offset):
            places[(name, offset)] = place
    if not places:
        raise CheckpointError(f"{path}: says of no tensor where it lies; copy the folder again")
    return places


def _tensor(name: str, entry: Inert, places: Mapping[tuple[str, tuple[int, ...]], Inert]) -> _Tensor:
    shape = _sizes(entry.field("size"))
    properties = entry.field("properties").state
    dtype = str(properties[0] if isinstance(properties, tuple) else properties["dtype"])
    chunks = []
    for chunk in entry.field("chunks"):
        offsets, sizes = _sizes(chunk.field("offsets")), _sizes(chunk.field("sizes"))
        if len(offsets) != len(shape) or len(sizes) != len(shape):
            raise ValueError("a chunk of another number of dimensions")
        if any(at + size > whole for at, size, whole in zip(offsets, sizes, shape, strict=True)):
            raise ValueError("a chunk that is not inside the tensor")
        if math.prod(sizes) or not math.prod(shape):  # a process may hold nothing of a tensor
            place = places[(name, offsets)]
            chunks.append(_Chunk(offsets, sizes, *_place(place)))
    _check_cover(shape, chunks)
    return _Tensor(shape, dtype, tuple(sorted(chunks, key=lambda chunk: chunk.offsets)))


def _sizes(found: object) -> tuple[int, ...]:
    if not isinstance(found, tuple) or any(type(size) is not int or not 0 <= size < 2**62 for size in found):
        raise ValueError(f"{str(found)[:40]} is no list of sizes")
    return found


def _place(place: Inert) -> tuple[str, int, int]:
    file, offset, length = place.field("relative_path"), place.field("offset"), place.field("length")
    if place.field("transform_descriptors"):
        raise ValueError(f"stored with {place.field('transform_descriptors')}, so compressed or encrypted")
    plain = (
        isinstance(file, str) and file.isprintable() and not file.startswith(".") and not {"/", "\\", "\0"} & set(file)
    )
    if not plain or len(file.encode()) > 255:
        raise ValueError(f"{str(file)[:40]!a} is no file of the folder")
    start, stop = offset, offset + length
    if not 0 <= start <= stop < 2**62:
        raise ValueError("bytes before the start of a file")
    return file, start, stop


def _check_cover(shape: tuple[int, ...], chunks: list[_Chunk]) -> None:
    """Raise ValueError unless every entry lies in exactly one chunk."""
    if sum(math.prod(chunk.sizes) for chunk in chunks) != math.prod(shape) or not chunks:
        raise ValueError("chunks that do not make up the tensor")
    if _by_rows(shape, chunks):
        at = 0
        for chunk in sorted(chunks, key=lambda chunk: chunk.offsets):
            if shape and chunk.offsets[0] != at:
                raise ValueError("chunks that overlap")
            at += chunk.sizes[0] if shape else 0
        return
    if len(chunks) > _MOST_BLOCKS:
        raise ValueError(f"more than {_MOST_BLOCKS} blocks")
    for number, first in enumerate(chunks):
        for second in chunks[:number]:
            spans = zip(first.offsets, first.sizes, second.offsets, second.sizes, strict=True)
            if all(a < c + d and c < a + b for a, b, c, d in spans):
                raise ValueError("chunks that overlap")


def _by_rows(shape: tuple[int, ...], chunks: list[_Chunk] | tuple[_Chunk, ...]) -> bool:
    """Whether a tensor is cut in its first dimension alone."""
    return all(chunk.sizes[1:] == shape[1:] for chunk in chunks)


def _archived(folder: Path, name: str, tensor: _Tensor, chunk: _Chunk) -> ArchivedTensor:
    """Where the entries of a chunk lie, checked against the metadata."""
    path = folder / chunk.file
    if not path.is_file():
        raise CheckpointError(f"{path}: is missing, and tensor {name!r} lies in it; copy the folder again")
    if chunk.stop > path.stat().st_size:
        raise CheckpointError(f"{path}: truncated inside tensor {name!r}; copy the folder again")
    found = read_torch_archive(path, (chunk.start, chunk.stop))
    if not isinstance(found, ArchivedTensor):
        raise CheckpointError(f"{path}: holds no tensor where the metadata places {name!r}; copy the folder again")
    if found.shape != chunk.sizes or found.dtype != TORCH_DTYPES.get(tensor.dtype, tensor.dtype):
        raise CheckpointError(
            f"{path}: tensor {name!r} has {list(found.shape)} of {found.dtype} there, where the metadata says {list(chunk.sizes)} of {tensor.dtype}; copy the folder again"
        )
    return found


def _source(
    checkpoint: Checkpoint, folder: Path, name: str, tensor: _Tensor, parts: list[StoredTensor]
) -> Spans | Boxes | StoredTensor:
    if len(parts) == 1:
        return parts[0]
    if len({part.dtype for part in parts}) != 1:
        raise CheckpointError(f"{folder}: tensor {name!r} has chunks of several dtypes; copy the folder again")
    if _by_rows(tensor.shape, tensor.chunks):
        return Spans.of(checkpoint, [Span(part, 0, part.elements) for part in parts])
    boxes = [Box(part, chunk.offsets, chunk.sizes) for part, chunk in zip(parts, tensor.chunks, strict=True)]
    return Boxes(checkpoint, tensor.shape, tuple(boxes))


def _wrapper(names: Mapping[str, object]) -> str:
    """The prefix that a saved state such as {"app": {"model": …}} puts before the names of the model's own tensors."""
    for prefix in _prefixes(names):
        inner = [name.removeprefix(prefix) for name in names]
        # A model's own names begin with the module of its body, such as `model.`, and not all of them do.
        if any(
            name.startswith(("model.", "transformer.", "gpt_neox.", "lm_head.", "language_model.")) for name in inner
        ):
            return prefix
    return ""


def _prefixes(names: Mapping[str, object]) -> Iterator[str]:
    """Known wrappers that begin every name, the longest first."""
    for prefix in ("app.model.", "state.model.", "app.", "model.", "module."):
        if all(name.startswith(prefix) for name in names):
            yield prefix
