"""Repair one matrix: form its delta, let the method decide how much of it is kept, and write the sum with the base."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from deltamend.checkpoint.manifest import MatrixOutcome, MatrixRepair, SpectrumRecord
from deltamend.errors import FilterError, option
from deltamend.matrices.buffers import Buffers
from deltamend.matrices.delta import BaseBlocks, DeltaBlocks
from deltamend.matrices.quantisation_error import quantisation_variance
from deltamend.matrices.views import Matrix
from deltamend.methods.method import KeptDelta, Method, Place, TensorContext
from deltamend.repairing.merge import copy_rows, refuse_damaged, write_merged
from deltamend.repairing.rounding import Rounding
from deltamend.repairing.sinks import FactorSink, Norms, Sink
from deltamend.spectrum.kept_subspace import SpectralFilter


@dataclass(frozen=True)
class Job:
    """Everything that is needed to repair one matrix, apart from its values.

    Attributes:
        name: the name of the tensor.
        rows: how many rows both sides have; all further rows are kept as fine-tuned.
        method: the method, which decides how much of Δ is kept.
        device: where spectral filters run, "cpu" or a torch device.
        surveyed: the result of the method's survey of the whole model.
        update_rank: see `TensorContext`.
        same_source: see `TensorPair`.
        place: see `TensorContext`.
        rounding: how W_base + Δ* is rounded to bf16 or fp16.
        inputs_of: see `TensorContext`.
    """

    name: str
    rows: int
    method: Method
    device: str = "cpu"
    surveyed: Any = None
    update_rank: int | None = None
    same_source: bool = False
    place: Place | None = None
    rounding: Rounding = "nearest"
    inputs_of: str | None = None


def open_delta(base: Matrix, finetuned: Matrix, job: Job, buffers: Buffers) -> tuple[DeltaBlocks, TensorContext]:
    """Form the delta of a job, and the context that its method is given together with it."""
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
        # The two sides of an adapter's update share their quantisation.
        quantisation=None if job.same_source else lambda: quantisation_variance((base, finetuned), job.rows),
    )
    return delta, context


def repair_matrix(
    base: Matrix, finetuned: Matrix, job: Job, sink: Sink, buffers: Buffers, *, factor_sink: FactorSink | None = None
) -> MatrixRepair:
    """Repair the rows of a matrix that both sides have, and copy all further rows from FINETUNED.

    W* = W_base + Δ* is formed in fp32, or in fp64 if a side is stored in fp64, and cast to the sink's dtype. If Δ* = Δ or
    Δ = 0, the fine-tuned values themselves are written, so that they keep their last bits.

    Args:
        base: shape (≥ rows, n).
        finetuned: shape (≥ rows, n).
        job: the method and its context.
        sink: receives the result.
        buffers: the memory of this thread.
        factor_sink: the same sink, if it can store low-rank factors instead of the matrix.

    Returns:
        The record of what was done.

    Raises:
        FilterError: an input holds NaN or Inf, the filter failed, or the result overflows in the sink's dtype.
    """
    rows = job.rows
    delta, context = open_delta(base, finetuned, job, buffers)
    # If the dtype changes, a cast may alter values that are equal on both sides; `write_merged` measures by how much.
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
        known_rank = job.update_rank if job.method.keeps_rank else None
        taken = None if factor_sink is None else factor_sink.take_factors(delta, kept, known_rank)
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
    """Run the method. If it fails because an input is damaged, the error says which one.

    Raises:
        FilterError: the method failed, there is not enough memory, or an input holds NaN or Inf.
    """
    try:
        return method.apply(delta, context)
    except MemoryError as error:
        raise FilterError(
            f"tensor {context.name!r}: there is not enough memory to repair it; use {option('workers', '1')}, or a machine "
            "with more memory"
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
