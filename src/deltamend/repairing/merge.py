"""Add what a method keeps to the base, W* = W_base + Δ*, cast it to the output dtype, and measure what was written."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from deltamend.checkpoint.dtypes import all_finite, is_float
from deltamend.checkpoint.manifest import MatrixOutcome
from deltamend.errors import FilterError, option
from deltamend.matrices.buffers import Array, Buffers, norm_squared, row_chunks
from deltamend.matrices.delta import DeltaBlocks
from deltamend.matrices.views import Matrix
from deltamend.methods.method import KeptDelta
from deltamend.methods.random_bits import RandomBits
from deltamend.repairing.rounding import Rounding, round_for, rounding_bits
from deltamend.repairing.sinks import Norms, Sink
from deltamend.spectrum.blocks import Block, FloatArray


def write_merged(
    delta: DeltaBlocks,
    kept: KeptDelta,
    sides: tuple[Matrix, Matrix],
    sink: Sink,
    name: str,
    buffers: Buffers,
    *,
    rounding: Rounding = "nearest",
) -> Norms:
    """Write W_base + Δ* block by block and add up the norms; what a held block of Δ holds is used up.

    Raises:
        FilterError: as `repair_matrix`.
    """
    rows, columns = delta.shape
    norms = Norms()
    part = _Merger(name, kept.outcome, sink.dtype, rounding_bits(rounding, name, delta.shape), buffers)
    for start, stop, values in delta:
        height, width = values.shape
        for first, last in row_chunks((height, width)):
            norms.delta += norm_squared(values[first:last])
        if not math.isfinite(norms.delta):
            refuse_damaged(sides, name)
            raise FilterError(
                f"tensor {name!r}: the difference of base and fine-tuned overflows; give a base that belongs to it"
            )
        kept_values = kept.block(Block(start, stop, values))
        if width < columns:  # a block of columns of a wide matrix
            columns_of = [side.columns(start, stop)[:rows] for side in sides]
            slab = buffers.get("slab", (height, width), sink.dtype)
            for first, last in row_chunks((height, width)):
                rows_of = [values_of[first:last] for values_of in columns_of]
                slab[first:last] = part.merge(rows_of, kept_values[first:last], (first, start), norms)
            sink.write_columns(start, slab)
            continue
        offset = start if height < rows else 0
        for first, last in row_chunks((height, width)):
            rows_of = [side.rows(offset + first, offset + last) for side in sides]
            written = part.merge(rows_of, kept_values[first:last], (offset + first, 0), norms)
            sink.write_rows(offset + first, written)
    return norms


def copy_rows(source: Matrix, span: tuple[int, int], sink: Sink, name: str, buffers: Buffers) -> None:
    """Copy rows of FINETUNED to the output, bit for bit where the dtypes agree.

    Raises:
        FilterError: NaN or Inf in the rows, or made by a cast to fp16.
    """
    start, stop = span
    for first, last in row_chunks((stop - start, source.shape[1])):
        values = source.rows(start + first, start + last)
        if not all_finite(values):
            raise FilterError(f"tensor {name!r} holds NaN or Inf in FINETUNED; give an undamaged checkpoint")
        sink.write_rows(
            start + first, _cast(values, sink.dtype, name, buffers) if sink.dtype != values.dtype else values
        )


def refuse_damaged(sides: tuple[Matrix, Matrix], name: str) -> None:
    """Raise FilterError when the base or the fine-tuned matrix holds NaN or Inf."""
    for side, matrix in zip(("BASE", "FINETUNED"), sides, strict=True):
        if not all(all_finite(matrix.rows(*span)) for span in row_chunks(matrix.shape)):
            raise FilterError(f"tensor {name!r} holds NaN or Inf in {side}; give an undamaged checkpoint")


@dataclass(frozen=True)
class _Merger:
    """What is the same for every part of one matrix while it is written."""

    name: str
    outcome: MatrixOutcome
    dtype: np.dtype[Any]
    bits: RandomBits | None
    buffers: Buffers

    def merge(self, sides: list[Array], kept: FloatArray, at: tuple[int, int], norms: Norms) -> Array:
        """The values to write from (row, column) `at` on, in the output dtype; measures the realised delta."""
        base, finetuned = sides
        base_values = self.buffers.get("base-values", kept.shape, kept.dtype)
        np.copyto(base_values, base)
        realised = self.buffers.get("realised", kept.shape, kept.dtype)
        match self.outcome:
            case "filtered":
                with np.errstate(over="ignore", invalid="ignore"):  # seen in the cast
                    np.add(base_values, kept, out=realised)
                written = self._cast(round_for(realised, self.dtype, self.bits, at))
            case "reverted":
                written = self._cast(base)
            case _:
                written = self._cast(finetuned)
        np.copyto(realised, written)
        realised -= base_values
        norms.kept += norm_squared(kept)
        norms.realised += norm_squared(realised)
        if norms.unmoved is not None:
            norms.unmoved += realised.size - int(np.count_nonzero(realised))
        realised -= kept
        norms.lost += norm_squared(realised)
        if norms.removed is not None and self.outcome in ("filtered", "reverted"):
            np.copyto(realised, finetuned)
            realised -= base_values
            realised -= kept
            norms.removed += norm_squared(realised)
        return written

    def _cast(self, values: Array) -> Array:
        return _cast(values, self.dtype, self.name, self.buffers)


def _cast(values: Array, dtype: np.dtype[Any], name: str, buffers: Buffers) -> Array:
    """The values in the output dtype, rounded to nearest, in a buffer; what is not floating point stays as it is.

    Raises:
        FilterError: a value is too large for the dtype.
    """
    if not is_float(values.dtype):
        return values
    cast = buffers.get("cast", values.shape, dtype)
    with np.errstate(over="ignore"):  # seen below, and said in our own words
        np.copyto(cast, round_for(values, dtype), casting="unsafe")
    if not all_finite(cast):
        raise FilterError(f"tensor {name!r} overflows in {dtype}; write it with {option('out_dtype', 'fp32')}")
    return cast
