"""Diagnose one matrix: everything that is measured on its update, in one decomposition of Δ and a few passes over it."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from deltamend.checkpoint.architecture import kind_of, layer_of
from deltamend.diagnosis.base_overlap import (
    EXAMINED,
    against_base_record,
    directions_of_base,
    directions_of_top_subspace,
    leading_directions,
)
from deltamend.diagnosis.controls import Sample
from deltamend.diagnosis.noise_checks import bulk_record, controls_record, entries_record
from deltamend.diagnosis.records import MatrixDiagnosis, Measured
from deltamend.diagnosis.rounding_effect import rounding_record, stored_as
from deltamend.diagnosis.spectrum_facts import KnownSpectrum, RecordingRule, facts_of_spectrum
from deltamend.diagnosis.verdict import judge
from deltamend.errors import FilterError
from deltamend.matrices.buffers import Buffers, row_chunks
from deltamend.matrices.delta import BaseBlocks, DeltaBlocks
from deltamend.matrices.quantisation_error import quantisation_variance
from deltamend.matrices.views import Matrix
from deltamend.methods.dg_hard import DGHard
from deltamend.methods.finetuned_blocks import BaseOnly, FinetunedBlocks
from deltamend.methods.method import TensorContext
from deltamend.repairing.merge import refuse_damaged
from deltamend.spectrum.blocks import FloatArray
from deltamend.spectrum.entry_tests import EntrySums
from deltamend.spectrum.filter import filter_delta
from deltamend.spectrum.fortran_calls import LapackError
from deltamend.spectrum.goodness_of_fit import check_bulk
from deltamend.spectrum.kept_subspace import SpectralFilter
from deltamend.spectrum.noise import rounding_variance
from deltamend.spectrum.subspace import Leading


@dataclass(frozen=True)
class Question:
    """Which matrix to diagnose, and how.

    Attributes:
        name: the name of the tensor.
        rows: how many rows both sides have.
        written: the dtype that a repair would write, whose rounding is predicted.
        all_values: whether the record holds every singular value.
        update_rank: the rank of the update if it is known, because the update is an adapter; else None.
        packings: the formats that the base and the fine-tuned side are quantised in; None for a side that is not.
    """

    name: str
    rows: int
    written: np.dtype[Any]
    all_values: bool = False
    update_rank: int | None = None
    packings: tuple[str | None, str | None] = (None, None)


def diagnose_matrix(base: Matrix, finetuned: Matrix, question: Question, buffers: Buffers) -> MatrixDiagnosis:
    """Measure the update of one matrix, and give a verdict on it.

    Args:
        base: shape (≥ rows, n).
        finetuned: shape (≥ rows, n).
        question: the name of the matrix, and what the record is to hold.
        buffers: the memory of this thread.

    Raises:
        FilterError: an input holds NaN or Inf, or no algorithm gave a result that passed the accuracy checks.
    """
    measuring = _Measuring(base, finetuned, question, buffers)
    try:
        measured = measuring.measured()
    except FilterError as error:
        refuse_damaged((base, finetuned), question.name)
        raise FilterError(f"tensor {question.name!r}: {error}") from error
    except LapackError as error:
        raise FilterError(f"tensor {question.name!r}: {error}") from error
    verdict, reasons = judge(measured)
    return MatrixDiagnosis(**dict(measured), verdict=verdict, reasons=reasons)


@dataclass
class _PassSums:
    """What one pass over the blocks of Δ adds up.

    Attributes:
        entries: sums for the tests of the entries.
        sample: entries of some rows and columns, for the controls.
        rounding: the sum over all entries of the variance of their rounding in the stored dtype.
        inside: ‖Δ‖² inside the base's top subspace; only measured if the filter has no basis.
    """

    entries: EntrySums
    sample: Sample
    rounding: float = 0.0
    inside: float = 0.0


class _Measuring:
    """Takes the measurements of one matrix, in an order that lets them share memory."""

    def __init__(self, base: Matrix, finetuned: Matrix, question: Question, buffers: Buffers) -> None:
        self._sides, self._question, self._buffers = (base, finetuned), question, buffers
        self._delta = DeltaBlocks(base, finetuned, question.rows, buffers)
        digest = hashlib.sha256(question.name.encode("utf-8", "surrogatepass")).digest()
        self._random = np.random.default_rng(list(digest))

    def measured(self) -> Measured:
        """All measurements; only the norm of 0 where Δ = 0."""
        recording, workspace = RecordingRule(), self._buffers.workspace
        found = None if self._delta.is_zero() else filter_delta(self._delta, recording, workspace=workspace)
        if found is None or found.outcome == "zero":
            return self._record(0.0)
        found = self._as_adapter(found)
        spectrum = KnownSpectrum(found.shape, found.energy, recording.values)
        base_blocks = BaseBlocks(self._delta)
        base = leading_directions(BaseOnly(self._delta, base_blocks), directions_of_base(found.shape), workspace)
        finetuned = leading_directions(FinetunedBlocks(self._delta, base_blocks), EXAMINED, workspace)
        sums = self._one_pass(found, base)
        rounding = math.sqrt(sums.rounding / math.prod(self._delta.shape) + self._quantisation())
        bulk = None
        if found.outcome != "no-noise-floor":
            bulk = bulk_record(check_bulk(spectrum.values(), spectrum.shape, found.threshold))
        question = self._question
        return self._record(
            math.sqrt(found.energy),
            spectrum=facts_of_spectrum(spectrum, found, rounding, all_values=question.all_values),
            bulk=bulk,
            controls=controls_record(sums.sample, self._random, workspace),
            entries=entries_record(sums.entries.tests()),
            base=against_base_record(found, sums.inside, base, finetuned),
            # The last measurement, because it overwrites Δ.
            rounding=rounding_record(
                self._delta,
                found,
                self._sides,
                (rounding, stored_as(str(self._sides[1].dtype), question.packings)),
                question.written,
                question.name,
                self._buffers,
            ),
        )

    def _quantisation(self) -> float:
        """The mean variance of an entry by quantisation; 0 for an adapter's update, whose two sides share it."""
        if self._question.update_rank is not None:
            return 0.0
        return quantisation_variance(self._sides, self._question.rows)

    def _as_adapter(self, found: SpectralFilter) -> SpectralFilter:
        """The filter that keeps all of Δ if Δ is known to be an adapter's update, as DG-Hard does; else `found`.

        The small singular values of such an update are rounding of the product B·A, and not noise of training.
        """
        context = TensorContext(
            self._question.name,
            BaseBlocks(self._delta),
            str(self._sides[1].dtype),
            update_rank=self._question.update_rank,
        )
        kept = DGHard.model_validate({}).without_floor(self._delta, context)
        if kept is None:
            return found
        none = np.zeros(0)
        return replace(
            found, outcome="no-noise-floor", rank=min(found.shape), threshold=0.0, noise=None, singular_values=none,
            gains=none, kept_energy=found.energy, basis=None, reason=kept.reason,
        )  # fmt: skip

    def _record(self, norm: float, **parts: Any) -> Measured:
        name = self._question.name
        nothing = dict.fromkeys(("spectrum", "bulk", "controls", "entries", "rounding", "base"))
        return Measured(
            name=name,
            kind=kind_of(name),
            layer=layer_of(name),
            module=module_of(name),
            shape=self._delta.shape,
            dtypes=(str(self._sides[0].dtype), str(self._sides[1].dtype)),
            update_rank=self._question.update_rank,
            norm=norm,
            **{**nothing, **parts},
        )

    def _one_pass(self, found: SpectralFilter, base: Leading | None) -> _PassSums:
        """Read Δ once more, for all measurements that are sums over its entries or blocks."""
        shape = self._delta.shape
        scale = math.sqrt(found.energy / math.prod(shape))
        sums = _PassSums(EntrySums(shape, scale), Sample.of_shape(shape, self._delta.dtype, self._random))
        weights = FinetunedBlocks(self._delta, BaseBlocks(self._delta))
        top = None
        if base is not None and found.basis is None:
            top = base.vectors[:, : directions_of_top_subspace(shape)]
        stored = str(self._sides[1].dtype)
        for block in self._delta:
            finetuned = weights.block(block)
            row, column = (0, block.start) if found.wide else (block.start, 0)
            for first, last in _chunks(block.values):
                part = block.values[first:last]
                sums.entries.add(part, row + first, column)
                sums.rounding += float(np.sum(rounding_variance(finetuned[first:last], stored)))
            sums.sample.take(block.values, row, column)
            if top is not None:
                inside = top.T.astype(block.values.dtype) @ (block.values if found.wide else block.values.T)
                sums.inside += float(np.vdot(inside, inside))
        return sums


def module_of(name: str) -> str:
    """The name of a tensor without the layer that it belongs to and without `.weight`."""
    inner = name.removesuffix(".weight")
    return re.split(r"(?:^|\.)\d+\.", inner, maxsplit=1)[-1]


def _chunks(values: FloatArray) -> Iterator[tuple[int, int]]:
    return row_chunks((values.shape[0], values.shape[1]))
