"""Repair one matrix: form its delta, let the method decide, add what is kept to the base, and measure what was written."""

from __future__ import annotations

import math
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Generic, Protocol, TypeVar

import numpy as np

from deltamend.checkpoint.dtypes import all_finite, is_float
from deltamend.checkpoint.manifest import MatrixOutcome, MatrixRepair, PartRecord, SpectrumRecord
from deltamend.errors import FilterError
from deltamend.inputs.pairing import Submatrix, TensorPair
from deltamend.inputs.row_spans import RowSpans
from deltamend.matrices.buffers import Array, Buffers, norm_squared, row_chunks
from deltamend.matrices.delta import BaseBlocks, DeltaBlocks
from deltamend.matrices.views import Matrix, SubMatrix
from deltamend.methods.method import Counts, KeptDelta, Method, Place, TensorContext
from deltamend.methods.random_bits import RandomBits
from deltamend.repairing.rounding import Rounding, round_for, rounding_bits
from deltamend.spectrum.blocks import Block, Blocks, FloatArray
from deltamend.spectrum.kept_subspace import SpectralFilter

Item = TypeVar("Item")


class Sink(Protocol):
    """Where the repaired matrix goes, in its output dtype."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """The output dtype."""

    def write_rows(self, start: int, values: Array) -> None:
        """Take rows from `start` on, contiguous, in the output dtype."""

    def write_columns(self, start: int, values: Array, row: int = 0) -> None:
        """Take columns from `start` on, of the rows from `row` on, in the output dtype."""


@dataclass
class Norms:
    """Running sums over the entries of one matrix.

    `unmoved` and `removed`, ‖Δ − Δ*‖², are None where the entries themselves are not written.
    """

    delta: float = 0.0
    kept: float = 0.0
    removed: float | None = 0.0
    realised: float = 0.0
    lost: float = 0.0
    unmoved: int | None = 0


class FactorSink(Sink, Protocol):
    """A sink that would rather have the factors of a low-rank Δ*, or nothing where Δ* = 0, than the matrix."""

    def take_factors(self, delta: DeltaBlocks, kept: KeptDelta) -> Norms | None:
        """Write the factors and measure them; None where the rows of the matrix are to be written after all."""


@dataclass(frozen=True)
class Job:
    """What is to be done to one matrix.

    Attributes:
        name: of the tensor.
        rows: how many rows both sides hold; further rows are kept as fine-tuned.
        method: decides what of Δ is kept.
        device: where spectral filters run.
        surveyed: what the method's survey of the whole model found.
        update_rank: see `TensorContext`.
        place: see `TensorContext`.
        rounding: how W_base + Δ* is cast to a narrower dtype.
        inputs_of: see `TensorContext`.
    """

    name: str
    rows: int
    method: Method
    device: str = "cpu"
    surveyed: Any = None
    update_rank: int | None = None
    place: Place | None = None
    rounding: Rounding = "nearest"
    inputs_of: str | None = None


def open_delta(base: Matrix, finetuned: Matrix, job: Job, buffers: Buffers) -> tuple[DeltaBlocks, TensorContext]:
    """The delta of a job and what its method may know besides."""
    delta = DeltaBlocks(base, finetuned, job.rows, buffers, whole_rows=job.method.whole_rows)
    context = TensorContext(
        job.name,
        BaseBlocks(delta),
        str(finetuned.dtype),
        job.device,
        surveyed=job.surveyed,
        update_rank=job.update_rank,
        place=job.place,
        inputs_of=job.inputs_of,
        workspace=buffers.workspace,
    )
    return delta, context


@dataclass(frozen=True)
class Survey(Generic[Item]):
    """All deltas of one method, as `methods.Deltas`.

    Args:
        items: one for each matrix.
        opened: both sides of an item, and its job.
        buffers: the memory of the calling thread.
        run: calls a function for each item, in any order and from any thread.
    """

    items: Sequence[Item]
    opened: Callable[[Item], tuple[Matrix, Matrix, Job]]
    buffers: Callable[[], Buffers]
    run: Callable[[Callable[[Item], None], Sequence[Item]], object]

    def total(self, count: Callable[[Blocks, TensorContext], Counts]) -> Counts:
        """See `Deltas.total`."""
        lock = threading.Lock()
        totals: list[Counts] = []

        def add(item: Item) -> None:
            base, finetuned, job = self.opened(item)
            delta, context = open_delta(base, finetuned, job, self.buffers())
            try:
                found = count(delta, context)
            except FilterError:
                refuse_damaged((base, finetuned), job.name)
                raise
            with lock:
                totals[:] = [totals[0] + found if totals else found]

        self.run(add, self.items)
        return totals[0]


def repair_matrix(
    base: Matrix, finetuned: Matrix, job: Job, sink: Sink, buffers: Buffers, *, factor_sink: FactorSink | None = None
) -> MatrixRepair:
    """Repair the first rows of a matrix and copy the rest from FINETUNED.

    W* = W_base + Δ*, added in fp32 (fp64 when a side is fp64) and cast to the sink's dtype; where Δ* = Δ or Δ = 0 the
    fine-tuned values themselves are written, so that nothing is lost to the detour.

    Args:
        base: shape (≥ rows, n).
        finetuned: shape (≥ rows, n).
        job: what to do.
        sink: takes the result.
        buffers: this thread's memory.
        factor_sink: the sink again, where it takes factors.

    Raises:
        FilterError: NaN or Inf in an input or, after a cast to fp16, in the output; or the filter failed.
    """
    rows = job.rows
    delta, context = open_delta(base, finetuned, job, buffers)
    # A cast may move values that are equal on both sides; the way below measures that.
    if (factor_sink is not None or sink.dtype == finetuned.dtype) and delta.is_zero():
        if factor_sink is None:
            copy_rows(finetuned, (0, rows), sink, context.name, buffers)
        else:
            refuse_damaged((base, finetuned), context.name)
        outcome: MatrixOutcome = "zero"
        kept = KeptDelta.identity("base and fine-tuned are equal")
        norms = Norms(unmoved=rows * base.shape[1])
    else:
        kept = apply_method(job.method, delta, context, (base, finetuned))
        outcome = kept.outcome
        taken = None if factor_sink is None else factor_sink.take_factors(delta, kept)
        norms = taken or write_merged(delta, kept, (base, finetuned), sink, job.name, buffers, rounding=job.rounding)
    copy_rows(finetuned, (rows, finetuned.shape[0]), sink, context.name, buffers)
    return MatrixRepair(
        outcome=outcome,
        reason=kept.reason,
        spectrum=None if kept.spectrum is None else _spectrum_record(kept.spectrum),
        delta_norm=math.sqrt(norms.delta),
        kept_norm=math.sqrt(norms.kept),
        kept_energy=norms.kept / norms.delta if norms.delta else None,
        removed_norm=None if norms.removed is None else math.sqrt(norms.removed),
        realised_norm=math.sqrt(norms.realised),
        realised_error=math.sqrt(norms.lost / norms.kept) if norms.kept else None,
        unmoved=None if norms.unmoved is None else norms.unmoved / (rows * base.shape[1]),
    )


def repair_parts(
    sides: tuple[Matrix, Matrix], pair: TensorPair, job: Job, sink: Sink, buffers: Buffers
) -> tuple[MatrixRepair, tuple[PartRecord, ...]]:
    """Repair a tensor: as one matrix, or each of its parts by itself, and copy what is in none of them.

    Args:
        sides: base and fine-tuned, whole.
        pair: says what the parts are.
        job: for the whole tensor.
        sink: takes the result.
        buffers: this thread's memory.

    Returns:
        What was done over all, and for each part where there are several.
    """
    if not pair.submatrices:
        return repair_matrix(*sides, job, sink, buffers), ()
    done = []
    for part in pair.submatrices:
        ours, theirs, own_job = open_part(sides, job, part, buffers)
        inner = _SubSink(sink, part.finetuned_rows, part.columns)
        done.append(PartRecord(label=part.label, **repair_matrix(ours, theirs, own_job, inner, buffers).model_dump()))
    covered = sorted(span for part in pair.submatrices for span in part.finetuned_rows)
    position = 0
    for start, stop in [*covered, (sides[1].shape[0], sides[1].shape[0])]:
        if start > position:
            copy_rows(sides[1], (position, start), sink, job.name, buffers)
        position = max(position, stop)
    if len(done) == 1:
        return MatrixRepair(**done[0].model_dump(exclude={"label"})), ()
    return _over_all(done, pair), tuple(done)


def open_part(sides: tuple[Matrix, Matrix], job: Job, part: Submatrix, buffers: Buffers) -> tuple[Matrix, Matrix, Job]:
    """Both sides of one part, and its job."""
    ours = SubMatrix(sides[0], part.base_rows, part.columns, buffers, "base-part")
    theirs = SubMatrix(sides[1], part.finetuned_rows, part.columns, buffers, "finetuned-part")
    place = Place(job.name, part.finetuned_rows, part.columns)
    return ours, theirs, replace(job, name=job.name + part.label, rows=part.rows, place=place)


def _over_all(parts: Sequence[PartRecord], pair: TensorPair) -> MatrixRepair:
    """What was done to a tensor of several matrices."""

    def norm(values: Iterable[float | None]) -> float:
        return math.sqrt(sum(value**2 for value in values if value is not None))

    outcomes = Counter(part.outcome for part in parts)
    delta, kept = norm(part.delta_norm for part in parts), norm(part.kept_norm for part in parts)
    lost = norm((part.realised_error or 0.0) * (part.kept_norm or 0.0) for part in parts)
    sizes = [rows * columns for rows, columns in pair.shapes]
    unmoved = sum((part.unmoved or 0.0) * size for part, size in zip(parts, sizes, strict=True))
    only = next(iter(outcomes)) if len(outcomes) == 1 else "filtered"
    return MatrixRepair(
        outcome=only,
        reason=", ".join(f"{count} {outcome}" for outcome, count in outcomes.most_common()),
        delta_norm=delta,
        kept_norm=kept,
        kept_energy=(kept / delta) ** 2 if delta else None,
        removed_norm=None
        if any(part.removed_norm is None for part in parts)
        else norm(part.removed_norm for part in parts),
        realised_norm=norm(part.realised_norm for part in parts),
        realised_error=lost / kept if kept else None,
        unmoved=unmoved / sum(sizes),
    )


class _SubSink:
    """Where a part of a matrix goes."""

    def __init__(self, sink: Sink, spans: tuple[tuple[int, int], ...], columns: tuple[int, int] | None) -> None:
        self._sink, self._spans, self._columns = sink, RowSpans(spans), columns
        self.dtype = sink.dtype

    def write_rows(self, start: int, values: Array) -> None:
        """See `Sink.write_rows`."""
        for piece in self._spans.pieces(start, start + values.shape[0]):
            part = values[piece.start : piece.stop]
            if self._columns is None:
                self._sink.write_rows(piece.source[0], part)
            else:
                self._sink.write_columns(self._columns[0], part, piece.source[0])

    def write_columns(self, start: int, values: Array, row: int = 0) -> None:
        """See `Sink.write_columns`."""
        first = start if self._columns is None else start + self._columns[0]
        for piece in self._spans.pieces(row, row + values.shape[0]):
            self._sink.write_columns(first, values[piece.start : piece.stop], piece.source[0])


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


def apply_method(method: Method, delta: DeltaBlocks, context: TensorContext, sides: tuple[Matrix, Matrix]) -> KeptDelta:
    """Run the method; when it fails, say in which of the inputs (base, finetuned) the fault lies."""
    try:
        return method.apply(delta, context)
    except MemoryError as error:
        raise FilterError(
            f"tensor {context.name!r}: there is not enough memory for it; use --workers 1, or a larger machine"
        ) from error
    except (FilterError, np.linalg.LinAlgError) as error:
        refuse_damaged(sides, context.name)
        raise FilterError(f"tensor {context.name!r}: {error}") from error


def refuse_damaged(sides: tuple[Matrix, Matrix], name: str) -> None:
    """Raise FilterError when the base or the fine-tuned matrix holds NaN or Inf."""
    for side, matrix in zip(("BASE", "FINETUNED"), sides, strict=True):
        if not all(all_finite(matrix.rows(*span)) for span in row_chunks(matrix.shape)):
            raise FilterError(f"tensor {name!r} holds NaN or Inf in {side}; give an undamaged checkpoint")


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
    part = _Part(name, kept.outcome, sink.dtype, rounding_bits(rounding, name, delta.shape), buffers)
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


@dataclass(frozen=True)
class _Part:
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
