"""One matrix: everything that is measured on its update, in one decomposition of Δ and a few passes over it."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from deltamend.checkpoint.architecture import kind_of, layer_of
from deltamend.diagnosis.controls import Sample
from deltamend.diagnosis.records import (
    AgainstBase,
    Bulk,
    Controls,
    Entries,
    Histogram,
    MatrixDiagnosis,
    Measured,
    Rounding,
    SpectrumFacts,
    Spread,
    Tail,
)
from deltamend.diagnosis.verdict import judge
from deltamend.errors import FilterError
from deltamend.matrices.buffers import Array, Buffers, row_chunks
from deltamend.matrices.delta import BaseBlocks, DeltaBlocks
from deltamend.matrices.views import Matrix
from deltamend.methods.dg_hard import DGHard
from deltamend.methods.finetuned_blocks import BaseOnly, FinetunedBlocks
from deltamend.methods.method import TensorContext, spectral_result
from deltamend.repairing.merge import refuse_damaged, write_merged
from deltamend.spectrum.blocks import Blocks, FloatArray
from deltamend.spectrum.decompositions import Workspace
from deltamend.spectrum.entry_tests import EntrySums, EntryTests, NeighbourTest, VarianceTest
from deltamend.spectrum.filter import filter_delta
from deltamend.spectrum.fortran_calls import LapackError
from deltamend.spectrum.goodness_of_fit import BulkTest, check_bulk
from deltamend.spectrum.kept_subspace import SpectralFilter
from deltamend.spectrum.noise import BulkFitNoise, MedianNoise, QuartileNoise, nonzero_part, rounding_variance
from deltamend.spectrum.singular_values import Spectrum
from deltamend.spectrum.subspace import Leading, all_values, leading_vectors
from deltamend.spectrum.tails import power_law_tail
from deltamend.spectrum.thresholds import (
    GavishDonoho,
    KnownNoise,
    MarchenkoPasturEdge,
    ScreeNOT,
    Threshold,
    ThresholdRule,
    TracyWidomEdge,
)

_BINS = 48
_TOP_SHARE, _TOP_LEAST = 10, 50
_EXAMINED, _RESEMBLES = 10, 0.5


@dataclass(frozen=True)
class Question:
    """What is asked of one matrix.

    Attributes:
        name: of the tensor.
        rows: how many rows both sides hold.
        written: the dtype the realised delta is predicted for.
        all_values: whether the record holds every singular value.
        update_rank: the rank of an adapter's update, where that is known by construction.
    """

    name: str
    rows: int
    written: np.dtype[Any]
    all_values: bool = False
    update_rank: int | None = None


def diagnose_matrix(base: Matrix, finetuned: Matrix, question: Question, buffers: Buffers) -> MatrixDiagnosis:
    """Measure one update and judge it.

    Args:
        base: shape (≥ rows, n).
        finetuned: shape (≥ rows, n).
        question: what is asked.
        buffers: this thread's memory.

    Raises:
        FilterError: NaN or Inf in an input, or no algorithm gave a checked answer.
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


@dataclass(frozen=True)
class _Known:
    """A `Spectrum` of which every value is there, descending."""

    shape: tuple[int, int]
    energy: float
    descending: FloatArray

    def median(self) -> float:
        return float(np.median(self.descending))

    def largest(self) -> float:
        return float(self.descending[0])

    def values(self) -> FloatArray:
        return self.descending


class _Recording:
    """DG-Hard's rule, which keeps the singular values it was shown."""

    def __init__(self) -> None:
        self.values: FloatArray = np.zeros(0)

    def threshold(self, spectrum: Spectrum) -> Threshold:
        self.values = spectrum.values()
        return GavishDonoho().threshold(spectrum)


class _Discard:
    """A sink that lets go of what it is given: the merge is only measured."""

    def __init__(self, dtype: np.dtype[Any]) -> None:
        self.dtype = dtype

    def write_rows(self, start: int, values: Array) -> None:
        """Nothing is written."""

    def write_columns(self, start: int, values: Array, row: int = 0) -> None:
        """Nothing is written."""


@dataclass
class _Pass:
    """What one pass over the blocks of Δ adds up."""

    entries: EntrySums
    sample: Sample
    rounding: float = 0.0
    inside: float = 0.0


class _Measuring:
    """The measurements of one matrix, in the order that the memory they share allows."""

    def __init__(self, base: Matrix, finetuned: Matrix, question: Question, buffers: Buffers) -> None:
        self._sides, self._question, self._buffers = (base, finetuned), question, buffers
        self._delta = DeltaBlocks(base, finetuned, question.rows, buffers)
        digest = hashlib.sha256(question.name.encode("utf-8", "surrogatepass")).digest()
        self._random = np.random.default_rng(list(digest))

    @property
    def _workspace(self) -> Workspace:
        return self._buffers.workspace

    def measured(self) -> Measured:
        recording = _Recording()
        found = None if self._delta.is_zero() else filter_delta(self._delta, recording, workspace=self._workspace)
        if found is None or found.outcome == "zero":
            return self._record(0.0)
        found = self._without_floor(found)
        spectrum = _Known(found.shape, found.energy, recording.values)
        whole = BaseBlocks(self._delta)
        base = self._leading(BaseOnly(self._delta, whole), max(min(found.shape) // _TOP_SHARE, _TOP_LEAST))
        finetuned = self._leading(FinetunedBlocks(self._delta, whole), _EXAMINED)
        sums = self._one_pass(found, base)
        entries = sums.entries.tests()
        floor = math.sqrt(sums.rounding / math.prod(self._delta.shape))
        threshold = None if found.outcome == "no-noise-floor" else found.threshold
        return self._record(
            math.sqrt(found.energy),
            spectrum=_spectrum_facts(spectrum, found, floor, self._question.all_values),
            bulk=None if threshold is None else _bulk(check_bulk(spectrum.values(), spectrum.shape, threshold)),
            controls=self._controls(sums.sample),
            entries=_entries(entries),
            base=_against_base(found, sums.inside, base, finetuned),
            rounding=self._rounding(found, floor),  # last: it uses up Δ
        )

    def _without_floor(self, found: SpectralFilter) -> SpectralFilter:
        """Δ is kept whole where it is an adapter's, as DG-Hard keeps it; what was found is then the rounding of B·A."""
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

    def _leading(self, blocks: Blocks, count: int) -> Leading | None:
        return leading_vectors(blocks, min(count, min(blocks.shape)), self._workspace)

    def _one_pass(self, found: SpectralFilter, base: Leading | None) -> _Pass:
        """Entries, rounding, the sample for the controls, and what of Δ lies in the base's top subspace."""
        shape = self._delta.shape
        scale = math.sqrt(found.energy / math.prod(shape))
        sums = _Pass(EntrySums(shape, scale), Sample.of_shape(shape, self._delta.dtype, self._random))
        weights = FinetunedBlocks(self._delta, BaseBlocks(self._delta))
        top = None if base is None or found.basis is not None else base.vectors[:, : _directions(shape)]
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

    def _controls(self, sample: Sample) -> Controls:
        """The bulk test on what was made iid."""
        shape = (sample.rows.size, sample.columns.size)
        tests = []
        for matrix in (sample.shuffled(self._random), sample.flipped(self._random)):
            values = all_values(matrix, self._workspace)
            threshold = GavishDonoho().threshold(_Known(shape, float(np.sum(values**2)), values)).value
            tests.append(_bulk(check_bulk(values, shape, threshold)) if threshold > 1e-7 * values[0] else None)
        return Controls(shape=shape, shuffled=tests[0], flipped=tests[1])

    def _rounding(self, found: SpectralFilter, floor: float) -> Rounding:
        """What the stored dtype explains, and what the written one will do; measured as a repair measures it."""
        written = self._question.written
        norms = write_merged(
            self._delta, spectral_result(found), self._sides, _Discard(written), self._question.name, self._buffers
        )
        return Rounding(
            stored=str(self._sides[1].dtype),
            floor=floor,
            share=(floor / found.noise) ** 2 if found.noise else None,
            written=str(written),
            lost=math.sqrt(norms.lost / norms.kept) if norms.kept else None,
            unmoved=(norms.unmoved or 0) / math.prod(self._delta.shape),
        )


def _against_base(found: SpectralFilter, inside: float, base: Leading | None, finetuned: Leading | None) -> AgainstBase:
    """Overlap, intruders and sizes.

    Args:
        found: the filter of Δ.
        inside: ‖Δ‖² inside the base's top subspace, where Δ* = Δ.
        base: leading directions of W_base; none where it is 0.
        finetuned: those of W_ft.
    """
    p = min(found.shape)
    directions = _directions(found.shape)
    if base is not None and found.basis is not None:
        inside = float(np.sum(((base.vectors[:, :directions].T @ found.basis) * found.singular_values) ** 2))
    intruders = None
    if base is not None and finetuned is not None:
        cosines = np.abs(base.vectors.T @ finetuned.vectors).max(axis=0)
        intruders = int(np.count_nonzero(cosines < _RESEMBLES))
    return AgainstBase(
        relative_norm=None if base is None else math.sqrt(found.energy) / base.norm,
        relative_largest=None if base is None else found.largest / float(base.values[0]),
        directions=directions,
        overlap=None if base is None or found.kept_energy == 0.0 else inside / found.kept_energy,
        by_chance=directions / p,
        examined=min(_EXAMINED, p),
        intruders=intruders,
    )


def module_of(name: str) -> str:
    """The name without the layer it belongs to and without `.weight`."""
    inner = name.removesuffix(".weight")
    return re.split(r"(?:^|\.)\d+\.", inner, maxsplit=1)[-1]


def _directions(shape: tuple[int, int]) -> int:
    """How many leading directions make the base's top subspace: a tenth of all."""
    return max(1, min(shape) // _TOP_SHARE)


def _chunks(values: FloatArray) -> Iterator[tuple[int, int]]:
    return row_chunks((values.shape[0], values.shape[1]))


def _spectrum_facts(spectrum: _Known, found: SpectralFilter, floor: float, whole: bool) -> SpectrumFacts:
    values = spectrum.values()
    measurable = found.outcome != "no-noise-floor"
    numerical = _numerical_rank(spectrum, floor)
    tail = power_law_tail(values[:numerical] ** 2)
    return SpectrumFacts(
        largest=found.largest,
        median=float(np.median(values)),
        smallest=float(values[-1]),
        stable_rank=found.energy / found.largest**2,
        threshold=found.threshold if measurable else None,
        noise=found.noise if measurable else None,
        rank=found.rank,
        energy=found.kept_energy / found.energy,
        ranks=_ranks(spectrum, floor) if measurable else {},
        numerical_rank=numerical,
        residue=float(np.sum(values[numerical:] ** 2)) / found.energy,
        tail=None if tail is None else Tail(**vars(tail)),
        histogram=_histogram(values, found.threshold or float(values[0])),
        values=tuple(float(value) for value in values) if whole else None,
        route=found.route,
    )


def _numerical_rank(spectrum: _Known, floor: float) -> int:
    """How many singular values rounding does not explain."""
    try:
        return nonzero_part(spectrum, rounding=floor).singular_values.size
    except ValueError:  # none is above the floor
        return 0


def _ranks(spectrum: _Known, floor: float) -> dict[str, int]:
    """How many singular values exceed each rule."""
    rules: dict[str, ThresholdRule] = {
        "dg-hard": GavishDonoho(MedianNoise()),
        "q25": GavishDonoho(QuartileNoise()),
        "bulk-fit": GavishDonoho(BulkFitNoise()),
        "edge": MarchenkoPasturEdge(),
        "tracy-widom": TracyWidomEdge(),
        "screenot": ScreeNOT(),
        "rounding-floor": KnownNoise(floor),
    }
    values = spectrum.values()
    return {name: int(np.count_nonzero(values > rule.threshold(spectrum).value)) for name, rule in rules.items()}


def _histogram(values: FloatArray, threshold: float) -> Histogram:
    """Bins up to a quarter above τ, where the law, its edge and τ can be seen."""
    high = 1.25 * threshold
    counts, _ = np.histogram(values, bins=_BINS, range=(0.0, high))
    return Histogram(
        high=high, counts=tuple(int(count) for count in counts), above=int(np.count_nonzero(values > high))
    )


def _bulk(test: BulkTest | None) -> Bulk | None:
    if test is None:
        return None
    return Bulk(
        size=test.size,
        noise=test.noise,
        edges=test.edges,
        ks=test.distances.ks,
        ks_p=test.ks_p,
        ad=test.distances.ad,
        ad_p=test.ad_p,
        beyond_edge=test.beyond_edge,
        quantiles=tuple((float(law), float(found)) for law, found in test.quantiles),
    )


def _entries(found: EntryTests) -> Entries:
    def spread(variances: VarianceTest, neighbours: NeighbourTest) -> Spread:
        return Spread(
            variation=variances.variation,
            variation_p=variances.p,
            correlation=neighbours.correlation,
            correlation_p=neighbours.p,
            quantiles=tuple(float(value) for value in variances.quantiles),
        )

    return Entries(
        rows=spread(found.rows, found.neighbouring_rows),
        columns=spread(found.columns, found.neighbouring_columns),
        kurtosis=found.kurtosis,
        kurtosis_p=found.kurtosis_p,
        zeros=found.zeros,
    )
