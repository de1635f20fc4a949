"""The singular values of Δ: their size, the ranks that different rules would keep, and their histogram."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from deltamend.diagnosis.records import Histogram, SpectrumFacts, Tail
from deltamend.spectrum.blocks import FloatArray
from deltamend.spectrum.kept_subspace import SpectralFilter
from deltamend.spectrum.noise import BulkFitNoise, MedianNoise, QuartileNoise, nonzero_part
from deltamend.spectrum.singular_values import Spectrum
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


@dataclass(frozen=True)
class KnownSpectrum:
    """A spectrum whose singular values are all known; an implementation of `spectrum.Spectrum`.

    Attributes:
        shape: the shape of the matrix.
        energy: its squared Frobenius norm.
        descending: the singular values, the largest first.
    """

    shape: tuple[int, int]
    energy: float
    descending: FloatArray

    def median(self) -> float:
        """The median singular value."""
        return float(np.median(self.descending))

    def largest(self) -> float:
        """The largest singular value."""
        return float(self.descending[0])

    def values(self) -> FloatArray:
        """All singular values, the largest first."""
        return self.descending


class RecordingRule:
    """The threshold rule of DG-Hard, which also remembers the singular values that it was given.

    Attributes:
        values: the singular values, the largest first; empty before the rule was used.
    """

    def __init__(self) -> None:
        self.values: FloatArray = np.zeros(0)

    def threshold(self, spectrum: Spectrum) -> Threshold:
        """See `ThresholdRule.threshold`."""
        self.values = spectrum.values()
        return GavishDonoho().threshold(spectrum)


def facts_of_spectrum(
    spectrum: KnownSpectrum, found: SpectralFilter, rounding: float, *, all_values: bool
) -> SpectrumFacts:
    """Describe the spectrum of Δ.

    Args:
        spectrum: the singular values.
        found: the filter of DG-Hard.
        rounding: the standard deviation of the rounding of one entry.
        all_values: whether the record holds every singular value.
    """
    values = spectrum.values()
    measurable = found.outcome != "no-noise-floor"
    numerical = _numerical_rank(spectrum, rounding)
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
        ranks=_ranks(spectrum, rounding) if measurable else {},
        numerical_rank=numerical,
        residue=float(np.sum(values[numerical:] ** 2)) / found.energy,
        tail=None if tail is None else Tail(**vars(tail)),
        histogram=_histogram(values, found.threshold or float(values[0])),
        values=tuple(float(value) for value in values) if all_values else None,
        route=found.route,
    )


def _numerical_rank(spectrum: KnownSpectrum, rounding: float) -> int:
    """The number of singular values that are larger than rounding can make them."""
    try:
        return nonzero_part(spectrum, rounding=rounding).singular_values.size
    except ValueError:  # no value is larger than that
        return 0


def _ranks(spectrum: KnownSpectrum, rounding: float) -> dict[str, int]:
    """The number of singular values above the threshold of each rule."""
    rules: dict[str, ThresholdRule] = {
        "dg-hard": GavishDonoho(MedianNoise()),
        "q25": GavishDonoho(QuartileNoise()),
        "bulk-fit": GavishDonoho(BulkFitNoise()),
        "edge": MarchenkoPasturEdge(),
        "tracy-widom": TracyWidomEdge(),
        "screenot": ScreeNOT(),
        "rounding-floor": KnownNoise(rounding),
    }
    values = spectrum.values()
    return {name: int(np.count_nonzero(values > rule.threshold(spectrum).value)) for name, rule in rules.items()}


def _histogram(values: FloatArray, threshold: float) -> Histogram:
    """Count the singular values in bins up to 1.25·τ, a range that shows the law of noise, its edge and τ."""
    high = 1.25 * threshold
    counts, _ = np.histogram(values, bins=_BINS, range=(0.0, high))
    return Histogram(
        high=high, counts=tuple(int(count) for count in counts), above=int(np.count_nonzero(values > high))
    )
