"""Add the kept update to the base, W* = W_base + Δ*, cast the sum to the output dtype, and measure what was written."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from deltamend.checkpoint.dtypes import all_finite
from deltamend.checkpoint.manifest import MatrixOutcome
from deltamend.errors import FilterError
from deltamend.matrices.buffers import Array, Buffers, norm_squared, row_chunks
from deltamend.matrices.delta import DeltaBlocks
from deltamend.matrices.views import Matrix
from deltamend.methods.method import KeptDelta
from deltamend.methods.random_bits import RandomBits
from deltamend.repairing.compensated_rounding import CompensatedRounding
from deltamend.repairing.rounding import ROUNDED, Rounding, cast_to, round_for, rounding_bits
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
    """Write W_base + Δ* block by block, and measure its norms.

    If the delta keeps its only block in memory, the values of that block are overwritten.

    Args:
        delta: Δ of the matrix.
        kept: what the method keeps of it.
        sides: the base and the fine-tuned matrix.
        sink: receives W* in the output dtype.
        name: the name of the tensor, for errors and for stochastic rounding.
        buffers: the memory of this thread.
        rounding: how W* is rounded to bf16 or fp16.

    Raises:
        FilterError: an input holds NaN or Inf, Δ overflows, or W* overflows in the output dtype.
    """
    rows, columns = delta.shape
    norms = Norms()
    bits = rounding_bits(rounding, name, delta.shape)
    compensated = _compensated(kept, sink.dtype, name) if rounding == "compensated" else None
    part = _Merger(name, kept.outcome, sink.dtype, bits, compensated, buffers)
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
        if width < columns:  # the block holds some columns of a wide matrix
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
    """Copy rows of FINETUNED to the output. The bytes stay the same unless the output has another dtype.

    Raises:
        FilterError: the rows hold NaN or Inf, or overflow in the output dtype.
    """
    start, stop = span
    for first, last in row_chunks((stop - start, source.shape[1])):
        values = source.rows(start + first, start + last)
        if not all_finite(values):
            raise FilterError(f"tensor {name!r} holds NaN or Inf in FINETUNED; give an undamaged checkpoint")
        sink.write_rows(
            start + first, cast_to(values, sink.dtype, name, buffers) if sink.dtype != values.dtype else values
        )


def refuse_damaged(sides: tuple[Matrix, Matrix], name: str) -> None:
    """Raise FilterError if the base or the fine-tuned matrix holds NaN or Inf."""
    for side, matrix in zip(("BASE", "FINETUNED"), sides, strict=True):
        if not all(all_finite(matrix.rows(*span)) for span in row_chunks(matrix.shape)):
            raise FilterError(f"tensor {name!r} holds NaN or Inf in {side}; give an undamaged checkpoint")


def _compensated(kept: KeptDelta, dtype: np.dtype[Any], name: str) -> CompensatedRounding | None:
    """None where nothing is rounded, or the method has no metric for this matrix and values are rounded to nearest."""
    if kept.outcome != "filtered" or kept.metric is None or dtype not in ROUNDED:
        return None
    try:
        return CompensatedRounding(kept.metric())
    except FilterError as error:
        raise FilterError(f"tensor {name!r}: {error}") from error


@dataclass(frozen=True)
class _Merger:
    """Merges the pieces of one matrix; it holds what is the same for all of them."""

    name: str
    outcome: MatrixOutcome
    dtype: np.dtype[Any]
    bits: RandomBits | None
    compensated: CompensatedRounding | None
    buffers: Buffers

    def merge(self, sides: list[Array], kept: FloatArray, at: tuple[int, int], norms: Norms) -> Array:
        """Merge one piece of the matrix, and add its norms to `norms`.

        Args:
            sides: the piece of the base and of the fine-tuned matrix.
            kept: the piece of Δ*.
            at: the row and column of its first entry.
            norms: the sums to add to.

        Returns:
            The values to write, in the output dtype.
        """
        base, finetuned = sides
        base_values = self.buffers.get("base-values", kept.shape, kept.dtype)
        np.copyto(base_values, base)
        realised = self.buffers.get("realised", kept.shape, kept.dtype)
        match self.outcome:
            case "filtered":
                with np.errstate(over="ignore", invalid="ignore"):  # the cast finds an overflow
                    np.add(base_values, kept, out=realised)
                if self.compensated is None:
                    written = self._cast(round_for(realised, self.dtype, self.bits, at))
                else:
                    written = self._cast(self.compensated.round(realised, self.dtype))
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
        return cast_to(values, self.dtype, self.name, self.buffers)
