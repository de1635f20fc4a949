"""The distance between two checkpoints, tensor by tensor. The models themselves are never loaded."""

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
    """The comparison of one tensor that both checkpoints hold in the same shape.

    Norms are Frobenius norms, computed in fp32, or in fp64 if one of the tensors is stored in fp64. They are None if one of the
    tensors is not of a floating-point type, or holds NaN or Inf.
    """

    name: str
    shape: tuple[int, ...]
    dtypes: tuple[str, str] = Field(description="The stored dtypes in A and in B.")
    norm: float | None = Field(description="‖A‖.")
    distance: float | None = Field(description="‖A − B‖.")
    relative: float | None = Field(description="‖A − B‖ / ‖A‖; also None where A = 0.")
    largest: float | None = Field(description="max |A − B|.")
    differing: float = Field(description="Share of the entries that differ in value, 0 to 1.", ge=0.0, le=1.0)


class Difference(Record):
    """The comparison of two checkpoints, A and B."""

    a: str = Field(description="Name of A's folder.")
    b: str = Field(description="Name of B's folder.")
    tensors: tuple[TensorDifference, ...] = Field(description="The largest relative distance first.")
    only_in_a: tuple[str, ...] = Field(description="Names of tensors that B does not have.")
    only_in_b: tuple[str, ...] = Field(description="Names of tensors that A does not have.")
    other_shape: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = Field(
        description="Tensors whose shapes differ, with the shapes in A and in B; they are not compared."
    )

    @property
    def equal(self) -> bool:
        """Whether both checkpoints hold the same names, shapes and values."""
        return not (
            self.only_in_a or self.only_in_b or self.other_shape or any(tensor.differing for tensor in self.tensors)
        )

    @property
    def relative(self) -> float:
        """‖A − B‖ / ‖A‖ over all tensors whose distance is known; 0 where A is 0."""
        distance = math.fsum(tensor.distance**2 for tensor in self.tensors if tensor.distance is not None)
        norm = math.fsum(tensor.norm**2 for tensor in self.tensors if tensor.norm is not None)
        return math.sqrt(distance / norm) if norm else 0.0


def diff(a: str | os.PathLike[str], b: str | os.PathLike[str], *, progress: Progress | None = None) -> Difference:
    """Compare two checkpoints tensor by tensor. Memory does not grow with the model.

    Args:
        a: the first checkpoint: a folder, a hub id, or any other form that `open_checkpoint` takes.
        b: the second checkpoint, in any of the same forms.
        progress: callback for the name of each compared tensor and the share of the work that is done.

    Returns:
        One record with Frobenius norms for each tensor that both checkpoints hold in the same shape, the largest relative
        distance first; and the names of all other tensors.

    Raises:
        CheckpointError: a checkpoint cannot be read, or is quantised in a way that cannot be undone.

    Source: ours.
    """
    with open_checkpoint(a) as ours, open_checkpoint(b) as theirs:
        shared = [name for name in ours.tensors if name in theirs.tensors]
        same = {name: None for name in shared if ours.tensors[name].shape == theirs.tensors[name].shape}
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
    """The key to sort by: the relative distance; tensors that differ by an unknown distance come first."""
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
        with np.errstate(over="ignore", invalid="ignore"):  # the norms are checked below
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
