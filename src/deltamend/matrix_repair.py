"""Repair one matrix: form its delta, let the method decide, add what is kept to the base, and measure what was written."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch

from deltamend.checkpoint.manifest import MatrixRepair, Outcome, SpectrumRecord
from deltamend.delta import Buffers, DeltaBlocks, Matrix, all_finite, norm_squared, row_chunks
from deltamend.errors import FilterError
from deltamend.methods.method import KeptDelta, Method, TensorContext
from deltamend.spectrum.filter import SpectralFilter


class Sink(Protocol):
    """Where the repaired matrix goes, in its output dtype; rows come in order, or columns do."""

    @property
    def dtype(self) -> torch.dtype:
        """The output dtype."""

    def write_rows(self, start: int, values: torch.Tensor) -> None:
        """Take rows from `start` on, contiguous, in the output dtype."""

    def write_columns(self, start: int, values: torch.Tensor) -> None:
        """Take columns from `start` on, contiguous, in the output dtype."""


@dataclass
class _Norms:
    """Running sums over the entries of one matrix."""

    delta: float = 0.0
    kept: float = 0.0
    realised: float = 0.0
    lost: float = 0.0
    unmoved: int = 0


def repair_matrix(
    base: Matrix, finetuned: Matrix, rows: int, method: Method, context: TensorContext, sink: Sink, buffers: Buffers
) -> MatrixRepair:
    """Repair the first `rows` rows of a matrix and copy the rest from FINETUNED.

    W* = W_base + Δ*, added in fp32 (fp64 when a side is fp64) and cast to the sink's dtype; where Δ* = Δ or Δ = 0 the
    fine-tuned values themselves are written, so that nothing is lost to the detour.

    Args:
        base: shape (≥ rows, n).
        finetuned: shape (≥ rows, n).
        rows: how many rows both sides hold.
        method: decides what of Δ is kept.
        context: the tensor's name and the device.
        sink: takes the result.
        buffers: this thread's memory.

    Raises:
        FilterError: NaN or Inf in an input or, after a cast to fp16, in the output; or the filter failed.
    """
    delta = DeltaBlocks(base, finetuned, rows, buffers)
    norms = _Norms()
    if delta.is_zero():
        copy_rows(finetuned, (0, rows), sink, context.name)
        outcome: Outcome = "zero"
        kept = KeptDelta("identity", "base and fine-tuned are equal", lambda block: block)
        norms.unmoved = rows * base.shape[1]
    else:
        kept = _apply(method, delta, context, base, finetuned)
        outcome = kept.outcome
        _write(delta, kept, base, finetuned, sink, norms, context.name)
    copy_rows(finetuned, (rows, finetuned.shape[0]), sink, context.name)
    return MatrixRepair(
        outcome=outcome,
        reason=kept.reason,
        spectrum=None if kept.spectrum is None else _spectrum_record(kept.spectrum),
        delta_norm=math.sqrt(norms.delta),
        kept_norm=math.sqrt(norms.kept),
        kept_energy=norms.kept / norms.delta if norms.delta else None,
        realised_norm=math.sqrt(norms.realised),
        realised_error=math.sqrt(norms.lost / norms.kept) if norms.kept else None,
        unmoved=norms.unmoved / (rows * base.shape[1]),
    )


def copy_rows(source: Matrix, span: tuple[int, int], sink: Sink, name: str) -> None:
    """Copy rows of FINETUNED to the output, bit for bit where the dtypes agree.

    Raises:
        FilterError: NaN or Inf in the rows, or made by a cast to fp16.
    """
    start, stop = span
    for first, last in row_chunks((stop - start, source.shape[1])):
        values = source.rows(start + first, start + last)
        if not all_finite(values):
            raise FilterError(f"tensor {name!r} holds NaN or Inf in FINETUNED; give an undamaged checkpoint")
        sink.write_rows(start + first, _cast(values, sink.dtype, name))


def _apply(method: Method, delta: DeltaBlocks, context: TensorContext, base: Matrix, finetuned: Matrix) -> KeptDelta:
    """Run the method; when it fails, say in which of the inputs the fault lies."""
    try:
        return method.apply(delta, context)
    except FilterError as error:
        for side, matrix in (("BASE", base), ("FINETUNED", finetuned)):
            if not all(all_finite(matrix.rows(*span)) for span in row_chunks(matrix.shape)):
                raise FilterError(
                    f"tensor {context.name!r} holds NaN or Inf in {side}; give an undamaged checkpoint"
                ) from error
        raise FilterError(f"tensor {context.name!r}: {error}") from error


def _write(
    delta: DeltaBlocks, kept: KeptDelta, base: Matrix, finetuned: Matrix, sink: Sink, norms: _Norms, name: str
) -> None:
    """Write W_base + Δ* block by block and add up the norms."""
    rows, columns = delta.shape
    for start, stop, values in delta:
        source = torch.from_numpy(values)
        height, width = source.shape
        for first, last in row_chunks((height, width)):
            norms.delta += norm_squared(source[first:last])
        kept_values = torch.from_numpy(kept.block(values))
        if width < columns:  # a block of columns of a wide matrix
            base_part, finetuned_part = base.columns(start, stop)[:rows], finetuned.columns(start, stop)[:rows]
            sink.write_columns(start, _merge(base_part, finetuned_part, kept_values, kept.outcome, sink, norms, name))
            continue
        offset = start if height < rows else 0
        for first, last in row_chunks((height, width)):
            base_part, finetuned_part = (
                base.rows(offset + first, offset + last),
                finetuned.rows(offset + first, offset + last),
            )
            written = _merge(base_part, finetuned_part, kept_values[first:last], kept.outcome, sink, norms, name)
            sink.write_rows(offset + first, written)


def _merge(
    base: torch.Tensor,
    finetuned: torch.Tensor,
    kept: torch.Tensor,
    outcome: Outcome,
    sink: Sink,
    norms: _Norms,
    name: str,
) -> torch.Tensor:
    """The values to write for one part of the matrix, in the output dtype; measures the realised delta."""
    base_values = base.to(kept.dtype)
    match outcome:
        case "filtered":
            written = _cast(base_values + kept, sink.dtype, name)
        case "reverted":
            written = _cast(base, sink.dtype, name)
        case _:
            written = _cast(finetuned, sink.dtype, name)
    realised = written.to(kept.dtype) - base_values
    norms.kept += norm_squared(kept)
    norms.realised += norm_squared(realised)
    norms.unmoved += realised.numel() - int(torch.count_nonzero(realised))
    norms.lost += norm_squared(realised.sub_(kept))
    return written


def _cast(values: torch.Tensor, dtype: torch.dtype, name: str) -> torch.Tensor:
    cast = values.to(dtype) if values.is_floating_point() else values
    if cast.dtype != values.dtype and not all_finite(cast):
        raise FilterError(f"tensor {name!r} overflows in {dtype}; write it with --out-dtype fp32")
    return cast


def _spectrum_record(found: SpectralFilter) -> SpectrumRecord:
    return SpectrumRecord(
        rank=found.rank,
        full_rank=min(found.shape),
        threshold=found.threshold,
        noise=found.noise,
        median=found.median,
        largest=found.largest,
        route=found.route,
        tie=found.tie,
    )
