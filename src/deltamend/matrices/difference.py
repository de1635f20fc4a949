"""How far two checkpoints are apart, tensor by tensor, without forming a model."""

from __future__ import annotations

import math
import os
from pathlib import Path

import numpy as np
from pydantic import Field

from deltamend.checkpoint.checkpoint_folder import Checkpoint, StoredTensor
from deltamend.checkpoint.dtypes import FLOAT_NAMES
from deltamend.inputs.open_models import open_checkpoint
from deltamend.matrices.buffers import Array, Buffers, norm_squared, row_chunks
from deltamend.matrices.views import StoredMatrix
from deltamend.progress import Progress
from deltamend.records import Record


class TensorDifference(Record):
    """One tensor that both sides hold in the same shape. Norms are Frobenius norms, in fp32 (fp64 where a side is)."""

    name: str
    shape: tuple[int, ...]
    dtypes: tuple[str, str]
    norm: float | None = Field(description="‖A‖; none where a side is not floating point or not finite.")
    distance: float | None = Field(description="‖A − B‖.")
    relative: float | None = Field(description="‖A − B‖ / ‖A‖; none where A = 0 too.")
    largest: float | None = Field(description="max |A − B|.")
    differing: float = Field(description="Share of the entries that differ in value, 0 to 1.", ge=0.0, le=1.0)


class Difference(Record):
    """Two checkpoints."""

    a: str = Field(description="Name of the folder.")
    b: str
    tensors: tuple[TensorDifference, ...] = Field(description="The furthest apart first, by relative distance.")
    only_in_a: tuple[str, ...]
    only_in_b: tuple[str, ...]
    other_shape: dict[str, tuple[tuple[int, ...], tuple[int, ...]]]

    @property
    def equal(self) -> bool:
        """Whether both hold the same names, shapes and values."""
        return not (
            self.only_in_a or self.only_in_b or self.other_shape or any(tensor.differing for tensor in self.tensors)
        )

    @property
    def relative(self) -> float:
        """‖A − B‖ / ‖A‖ over all tensors that have a distance; 0 where A is 0."""
        distance = math.fsum(tensor.distance**2 for tensor in self.tensors if tensor.distance is not None)
        norm = math.fsum(tensor.norm**2 for tensor in self.tensors if tensor.norm is not None)
        return math.sqrt(distance / norm) if norm else 0.0


def diff(a: str | os.PathLike[str], b: str | os.PathLike[str], *, progress: Progress | None = None) -> Difference:
    """Compare two checkpoints tensor by tensor; memory does not grow with the model.

    Args:
        a: the first checkpoint: a folder, a hub id, or what else `open_checkpoint` takes.
        b: the second.
        progress: called as work ends, with the name of the tensor and the share that is done.

    Returns:
        One record for each tensor that both hold in the same shape, with Frobenius norms, the furthest apart first; and the
        names of the others.

    Raises:
        CheckpointError: one of them cannot be read, or is quantised in a way that cannot be undone.

    Source: ours.
    """
    with open_checkpoint(a) as ours, open_checkpoint(b) as theirs:
        shared = [name for name in ours.tensors if name in theirs.tensors]
        same = [name for name in shared if ours.tensors[name].shape == theirs.tensors[name].shape]
        total, done = sum(ours.tensors[name].nbytes for name in same) or 1, 0
        found, buffers = [], Buffers()
        for name in same:
            found.append(_tensor_difference((ours, ours.tensors[name]), (theirs, theirs.tensors[name]), buffers))
            done += ours.tensors[name].nbytes
            if progress is not None:
                progress(name, done / total)
        return Difference(
            a=Path(a).name,
            b=Path(b).name,
            tensors=tuple(sorted(found, key=lambda row: (-_order(row), row.name))),
            only_in_a=tuple(sorted(ours.tensors.keys() - theirs.tensors.keys())),
            only_in_b=tuple(sorted(theirs.tensors.keys() - ours.tensors.keys())),
            other_shape={
                name: (ours.tensors[name].shape, theirs.tensors[name].shape) for name in shared if name not in same
            },
        )


def _order(row: TensorDifference) -> float:
    """What is not finite or has no distance, but differs, comes first."""
    if row.relative is not None:
        return row.relative
    return math.inf if row.differing else 0.0


def _tensor_difference(
    a: tuple[Checkpoint, StoredTensor], b: tuple[Checkpoint, StoredTensor], buffers: Buffers
) -> TensorDifference:
    first, second = StoredMatrix(*a, buffers, "base"), StoredMatrix(*b, buffers, "finetuned")
    dtypes = (a[1].dtype, b[1].dtype)
    numeric = set(dtypes) <= FLOAT_NAMES
    precision = np.dtype(np.float64 if "F64" in dtypes else np.float32)
    squared, norm, largest, differing = 0.0, 0.0, 0.0, 0
    for start, stop in row_chunks(first.shape):
        left, right = first.rows(start, stop), second.rows(start, stop)
        if not numeric:
            differing += int(np.count_nonzero(left != right))
            continue
        before, after = left.astype(precision), right.astype(precision)
        differing += int(np.count_nonzero((before != after) & ~(np.isnan(before) & np.isnan(after))))
        with np.errstate(over="ignore", invalid="ignore"):  # seen below
            after -= before
            squared += norm_squared(after)
            norm += norm_squared(before)
            largest = max(largest, _largest(after))
    finite = numeric and math.isfinite(squared) and math.isfinite(norm)
    return TensorDifference(
        name=a[1].name,
        shape=a[1].shape,
        dtypes=dtypes,
        norm=math.sqrt(norm) if finite else None,
        distance=math.sqrt(squared) if finite else None,
        relative=math.sqrt(squared / norm) if finite and norm else None,
        largest=largest if finite else None,
        differing=differing / max(1, a[1].elements),
    )


def _largest(values: Array) -> float:
    return float(np.abs(values).max(initial=0.0))
