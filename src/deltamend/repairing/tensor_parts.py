"""Repair a tensor, either as one matrix or in separate parts, such as the experts of a stack."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace

from deltamend.checkpoint.manifest import MatrixRepair, PartRecord
from deltamend.inputs.pairing import Submatrix, TensorPair
from deltamend.matrices.buffers import Buffers
from deltamend.matrices.update_walk import MatrixItem, part_of
from deltamend.matrices.views import Matrix
from deltamend.methods.method import Method, Place
from deltamend.repairing.merge import copy_rows
from deltamend.repairing.one_matrix import Job, repair_matrix
from deltamend.repairing.rounding import Rounding
from deltamend.repairing.sinks import PartOfSink, Sink


def repair_parts(
    sides: tuple[Matrix, Matrix], pair: TensorPair, job: Job, sink: Sink, buffers: Buffers
) -> tuple[MatrixRepair, tuple[PartRecord, ...]]:
    """Repair a tensor, either as one matrix or in separate parts. Rows that belong to no part are copied from FINETUNED.

    Args:
        sides: the base and the fine-tuned side of the whole tensor.
        pair: the tensor, with its parts.
        job: the job for the whole tensor.
        sink: receives the result.
        buffers: the memory of this thread.

    Returns:
        The record of the whole tensor, and the records of its parts if there are several.
    """
    if not pair.submatrices:
        return repair_matrix(*sides, job, sink, buffers), ()
    done = []
    for part in pair.submatrices:
        inner = PartOfSink(sink, part.finetuned_rows, part.columns)
        repaired = repair_matrix(*part_of(sides, part, buffers), job_of_part(job, part), inner, buffers)
        done.append(PartRecord(label=part.label, **repaired.model_dump()))
    covered = sorted(span for part in pair.submatrices for span in part.finetuned_rows)
    position = 0
    for start, stop in [*covered, (sides[1].shape[0], sides[1].shape[0])]:
        if start > position:
            copy_rows(sides[1], (position, start), sink, job.name, buffers)
        position = max(position, stop)
    if len(done) == 1:
        return MatrixRepair(**done[0].model_dump(exclude={"label"})), ()
    return _over_all(done, pair), tuple(done)


def job_for(
    item: MatrixItem, method: Method, device: str, surveyed: object = None, rounding: Rounding = "nearest"
) -> Job:
    """Make the job of a matrix.

    Args:
        item: the matrix.
        method: the method, which decides how much of the delta is kept.
        device: where spectral filters run, "cpu" or a torch device.
        surveyed: the result of the method's survey of the whole model.
        rounding: how repaired weights are rounded to bf16 or fp16.
    """
    pair = item.pair
    job = Job(
        pair.name,
        MatrixItem(pair).rows,
        method,
        device,
        surveyed,
        pair.update_rank,
        pair.same_source,
        rounding=rounding,
        inputs_of=pair.inputs_of,
    )
    return job if item.part is None else job_of_part(job, item.part)


def job_of_part(job: Job, part: Submatrix) -> Job:
    """Make the job of one part of a tensor from the job of the whole tensor."""
    place = Place(job.name, part.finetuned_rows, part.columns)
    return replace(job, name=job.name + part.label, rows=part.rows, place=place)


def _over_all(parts: Sequence[PartRecord], pair: TensorPair) -> MatrixRepair:
    """Combine the records of the parts of a tensor into a record of the whole tensor."""

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
