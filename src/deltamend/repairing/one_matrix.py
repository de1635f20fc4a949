"""Repair one matrix: form its delta, let the method decide what of it is kept, and write the sum with the base."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from deltamend.checkpoint.manifest import MatrixOutcome, MatrixRepair, SpectrumRecord
from deltamend.errors import FilterError, option
from deltamend.matrices.buffers import Buffers
from deltamend.matrices.delta import BaseBlocks, DeltaBlocks
from deltamend.matrices.views import Matrix
from deltamend.methods.method import KeptDelta, Method, Place, TensorContext
from deltamend.repairing.merge import copy_rows, refuse_damaged, write_merged
from deltamend.repairing.rounding import Rounding
from deltamend.repairing.sinks import FactorSink, Norms, Sink
from deltamend.spectrum.kept_subspace import SpectralFilter


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


def apply_method(method: Method, delta: DeltaBlocks, context: TensorContext, sides: tuple[Matrix, Matrix]) -> KeptDelta:
    """Run the method; when it fails, say in which of the inputs (base, finetuned) the fault lies."""
    try:
        return method.apply(delta, context)
    except MemoryError as error:
        raise FilterError(
            f"tensor {context.name!r}: there is not enough memory for it; use {option('workers', '1')}, or a larger machine"
        ) from error
    except (FilterError, np.linalg.LinAlgError) as error:
        refuse_damaged(sides, context.name)
        raise FilterError(f"tensor {context.name!r}: {error}") from error


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
