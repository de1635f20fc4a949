"""The second moments of a layer's inputs, as `deltamend calibrate activations` stores them: how a method finds and uses them."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import xxhash

from deltamend.checkpoint.dtypes import NUMPY_DTYPES
from deltamend.checkpoint.safetensors_header import Header, read_header
from deltamend.errors import CheckpointError, FilterError, MethodError
from deltamend.machine.json_text import parse_json
from deltamend.methods.method import Counts, Deltas, TensorContext
from deltamend.spectrum.blocks import Blocks, FloatArray

SAME_INPUT = "same_input"
"""Key in the metadata of an activations file: JSON that maps a weight to the weight whose input it shares."""
CONTENT = "content"
"""Key in the metadata of an activations file: the hash that `content_digest` gives."""
VERSION = "4"
"""Version of the format of an activations file; stored under the key `activations` of its metadata."""
EIGENVALUES = ".eigenvalues"
"""Suffix of the tensor that holds the eigenvalues of a weight; the eigenvectors have the name of the weight itself."""

Array = npt.NDArray[np.float64]


def content_digest(tensors: Mapping[str, npt.NDArray[Any]], shared: str) -> str:
    """XXH3-128 of the names, shapes and values of an activations file, and of what it says under the key SAME_INPUT."""
    digest = xxhash.xxh3_128(shared.encode())
    for name in sorted(tensors):
        digest.update(f"{name} {list(tensors[name].shape)}".encode())
        digest.update(np.ascontiguousarray(tensors[name]).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def is_whole(path: Path) -> bool:
    """Whether a file is one of `deltamend calibrate activations` of this version, with every value as it was written."""
    try:
        header = read_header(path)
        known = header.metadata
        if known.get("activations") != VERSION or CONTENT not in known:
            return False
        stored = {entry.name: _stored(path, header, entry.name) for entry in header.entries}
    except (CheckpointError, FilterError, OSError):
        return False
    tensors = {name: tensor for name, tensor in stored.items() if tensor is not None}
    return content_digest(tensors, known.get(SAME_INPUT, "")) == known[CONTENT]


def refuse_other_model(activations: Path, deltas: Deltas) -> None:
    """Refuse a file that was computed from another model, and so holds the inputs of none of the matrices.

    Raises:
        MethodError: the file holds the inputs of no matrix, or cannot be read.
    """

    def known(_delta: Blocks, context: TensorContext) -> Counts:
        header, same = _read(activations, activations.stat().st_mtime_ns)
        tensor = weight_of(context)
        return np.array([1, same.get(tensor, tensor) in {entry.name for entry in header.entries}], np.int64)

    matrices, found = deltas.total(known)
    if matrices and not found:
        raise MethodError(
            f"{activations.name} holds the inputs of none of the matrices; compute it from the base of this pair"
        )


class Inputs(NamedTuple):
    """The second moment of the inputs of a delta's n columns: C = Σ valuesᵢ vectorsᵢᵀ vectorsᵢ.

    Attributes:
        vectors: (k, n), orthonormal rows.
        values: (k,), above 0.
    """

    vectors: FloatArray
    values: Array


def weight_of(context: TensorContext) -> str:
    """The name under which the file holds the inputs of a delta's columns, which is that of the weight in BASE."""
    if context.inputs_of is not None:
        return context.inputs_of
    return context.name if context.place is None else context.place.tensor


def effect_by_direction(delta: Blocks, context: TensorContext, inputs: Inputs) -> Array | None:
    """What Δ does to each principal direction of a layer's inputs, relative to the layer's outputs; None where these are 0.

    Returns:
        (k,) float64: valuesᵢ·‖Δvᵢ‖²/E‖W_base x‖². The root of their sum is the effect of Δ.

    Raises:
        FilterError: Δ holds NaN or infinity.
    """
    updates, weights = np.zeros(len(inputs.values)), 0.0
    for block in delta:
        updates += squares(block.values, inputs.vectors)
        base = context.base.read(block.start, block.stop)
        weights += float(squares(base, inputs.vectors) @ inputs.values)
    if not np.isfinite(updates).all():
        raise FilterError("the delta holds NaN or infinity")
    return updates * inputs.values / weights if weights else None


def squares(values: FloatArray, vectors: FloatArray) -> Array:
    """Σ over the rows of (row·vectorᵢ)², (k,) float64."""
    coordinates = values @ vectors.astype(values.dtype, copy=False).T
    found: Array = np.einsum("ij,ij->j", coordinates, coordinates, dtype=np.float64)
    return found


def inputs_of(path: Path, context: TensorContext, width: int) -> Inputs | None:
    """The inputs of a delta's columns; None where the file does not hold them.

    Raises:
        FilterError: it holds them in another shape, or holds numbers that are no second moments.
        MethodError: the file cannot be read.
    """
    tensor = weight_of(context)
    header, same = _read(path, path.stat().st_mtime_ns if path.exists() else 0)
    stored = same.get(tensor, tensor)
    vectors, values = (_stored(path, header, name) for name in (stored, f"{stored}{EIGENVALUES}"))
    if vectors is None or values is None:
        return None
    first, last = (0, width) if context.place is None or context.place.columns is None else context.place.columns
    whole = context.place is None or context.place.columns is None
    fits = vectors.ndim == 2 and values.shape == vectors.shape[:1] and last - first == width
    if not fits or (last != vectors.shape[1] if whole else last > vectors.shape[1]):
        raise FilterError(f"{path.name} holds its inputs as {list(vectors.shape)}; compute it for this model")
    known = np.asarray(values, np.float64)
    if not (np.isfinite(vectors).all() and np.isfinite(known).all() and (known >= 0.0).all()):
        raise FilterError(f"{path.name} holds no second moments of its inputs; compute it again")
    if width == vectors.shape[1]:
        return Inputs(vectors, known)
    some = vectors[:, first:last].astype(np.float64)
    values_of_some, vectors_of_some = np.linalg.eigh(some.T * known @ some)
    return Inputs(vectors_of_some.T.astype(np.float32), np.maximum(values_of_some, 0.0))


def _stored(path: Path, header: Header, name: str) -> npt.NDArray[Any] | None:
    for entry in header.entries:
        if entry.name == name:
            if entry.dtype != "F32":
                raise FilterError(f"{path.name} holds its inputs as {entry.dtype}; compute it for this model")
            return np.memmap(path, NUMPY_DTYPES[entry.dtype], "r", entry.start, entry.shape)
    return None


@lru_cache(maxsize=4)
def _read(path: Path, mtime_ns: int) -> tuple[Header, dict[str, str]]:  # noqa: ARG001 - read again when the file changes
    try:
        header = read_header(path)
        same = parse_json(header.metadata.get(SAME_INPUT, "{}"))
    except (CheckpointError, ValueError) as error:
        raise MethodError(f"{path}: is no file of `deltamend calibrate activations` ({error})") from error
    known = header.metadata.get("activations") == VERSION
    if not known or not isinstance(same, dict) or not all(isinstance(other, str) for other in same.values()):
        raise MethodError(f"{path}: its metadata is not that of `deltamend calibrate activations`; make it again")
    return header, same
