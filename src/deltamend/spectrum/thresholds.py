"""Threshold rules: singular values of a delta above the threshold are signal, and the others are noise."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from deltamend.spectrum.blocks import FloatArray
from deltamend.spectrum.marchenko_pastur import aspect_ratio, check_beta, median
from deltamend.spectrum.noise import FixedNoise, MedianNoise, NoiseEstimator
from deltamend.spectrum.screenot import screenot_threshold
from deltamend.spectrum.singular_values import Spectrum
from deltamend.spectrum.tracy_widom import largest_singular_value, quantile


@dataclass(frozen=True)
class Threshold:
    """What a rule found: singular values strictly above `value` are signal.

    `noise` is the standard deviation of one entry of the noise, or None where the rule does not estimate it.
    """

    value: float
    noise: float | None


class ThresholdRule(Protocol):
    """A rule; constructors store parameters only."""

    def threshold(self, spectrum: Spectrum) -> Threshold:
        """The threshold for this spectrum."""


def optimal_coefficient(beta: float) -> float:
    """λ(β): the optimal hard threshold in units of s√n, for known noise of standard deviation s and longer side n.

    λ(β) = √(2(β + 1) + 8β/((β + 1) + √(β² + 14β + 1))), Gavish & Donoho, arXiv 1305.5870, eq. 11. λ(1) = 4/√3.

    Args:
        beta: shorter side divided by longer side, in (0, 1].

    Raises:
        ValueError: `beta` is out of range.
    """
    check_beta(beta)
    return math.sqrt(2.0 * (beta + 1.0) + 8.0 * beta / ((beta + 1.0) + math.sqrt(beta**2 + 14.0 * beta + 1.0)))


def median_coefficient(beta: float) -> float:
    """ω(β) = λ(β)/√μ_β: the optimal hard threshold in units of the median singular value, for unknown noise.

    Gavish & Donoho, arXiv 1305.5870, where eq. 5 approximates it by a cubic in β to within 0.02. Here it is exact:
    ω(1) = 2.85836, which the paper prints as 2.8582.

    Args:
        beta: shorter side divided by longer side, in (0, 1].

    Raises:
        ValueError: `beta` is out of range.
    """
    return optimal_coefficient(beta) / math.sqrt(median(beta))


@dataclass(frozen=True)
class GavishDonoho:
    """The optimal hard threshold for unknown noise, τ = λ(β)·√n·s; with the median noise, τ = ω(β)·median(σ).

    This is the rule of DG-Hard (arXiv 2605.20296), from Gavish & Donoho, arXiv 1305.5870. It minimises the
    asymptotic mean squared error among hard thresholds where the noise is iid.

    Args:
        noise: how the standard deviation s of one entry is found.
    """

    noise: NoiseEstimator = field(default_factory=MedianNoise)

    def threshold(self, spectrum: Spectrum) -> Threshold:
        """The threshold and the standard deviation of the noise. Both are 0 where there is no noise."""
        noise = self.noise.noise(spectrum)
        beta = aspect_ratio(spectrum.shape)
        return Threshold(optimal_coefficient(beta) * math.sqrt(max(spectrum.shape)) * noise, noise)


@dataclass(frozen=True)
class OwnSpectrum:
    """Apply another rule to the r nonzero singular values of an update of rank r, as if it were an r×n matrix.

    Most singular values of an adapter's update B·A are exactly 0, and so is their median. The other r are those of the
    factors: if B has orthonormal columns, noise in B·A is noise in the r×n matrix A. Ours.

    Args:
        rule: what to apply to them.
        rank: r, at least 1.
    """

    rule: ThresholdRule
    rank: int

    def threshold(self, spectrum: Spectrum) -> Threshold:
        """The threshold of the rule; the noise is that of the r×n matrix."""
        return self.rule.threshold(_Leading(spectrum, self.rank))


class _Leading:
    """The r largest singular values of a spectrum, as those of an r×n matrix."""

    def __init__(self, spectrum: Spectrum, rank: int) -> None:
        self._spectrum = spectrum
        self.shape = (min(rank, *spectrum.shape), max(spectrum.shape))
        self.energy = spectrum.energy

    def largest(self) -> float:
        return self._spectrum.largest()

    def values(self) -> FloatArray:
        return self._spectrum.values()[: self.shape[0]]

    def median(self) -> float:
        return float(np.median(self.values()))


@dataclass(frozen=True)
class KnownNoise:
    """The optimal hard threshold for known noise, τ = λ(β)·√n·s (Gavish & Donoho, arXiv 1305.5870, eq. 11).

    Args:
        noise: standard deviation s of one entry, at least 0 and finite.

    Raises:
        ValueError: `noise` is negative or not finite.
    """

    noise: float

    def __post_init__(self) -> None:
        FixedNoise(self.noise)

    def threshold(self, spectrum: Spectrum) -> Threshold:
        """The threshold, and the noise that was given."""
        return GavishDonoho(FixedNoise(self.noise)).threshold(spectrum)


@dataclass(frozen=True)
class MarchenkoPasturEdge:
    """The edge of the bulk, τ = s·(√m + √n): what iid noise fills in the limit, and no more (Marchenko & Pastur 1967).

    The largest singular value of noise lies above it in about one matrix of six.

    Args:
        noise: how the standard deviation s of one entry is found.
    """

    noise: NoiseEstimator = field(default_factory=MedianNoise)

    def threshold(self, spectrum: Spectrum) -> Threshold:
        """The threshold and the standard deviation of the noise. Both are 0 where there is no noise."""
        noise = self.noise.noise(spectrum)
        m, n = spectrum.shape
        return Threshold(noise * (math.sqrt(m) + math.sqrt(n)), noise)


@dataclass(frozen=True)
class TracyWidomEdge:
    """The Tracy–Widom quantile of the largest singular value of noise (Johnstone 2001; see `tracy_widom`).

    A matrix of iid noise has a singular value above it with probability 1 − `level`.

    Args:
        level: in [1e-12, 1 − 1e-12].
        noise: how the standard deviation of one entry is found.

    Raises:
        ValueError: `level` is out of range.
    """

    level: float = 0.99
    noise: NoiseEstimator = field(default_factory=MedianNoise)

    def __post_init__(self) -> None:
        quantile(self.level)

    def threshold(self, spectrum: Spectrum) -> Threshold:
        """The threshold and the standard deviation of the noise. Both are 0 where there is no noise."""
        noise = self.noise.noise(spectrum)
        return Threshold(largest_singular_value(spectrum.shape, noise, self.level), noise)


@dataclass(frozen=True)
class ScreeNOT:
    """The optimal hard threshold for correlated noise of unknown law (arXiv 2009.12297; see `screenot`).

    Args:
        max_rank: upper bound, possibly loose, on the rank of the signal; cut to (p − 1)//2 of the p singular values.
            None takes p // 4, which covers the ranks seen in fine-tuning and moves the threshold of iid noise up by
            1 to 2%.

    Raises:
        ValueError: `max_rank` is negative.
    """

    max_rank: int | None = None

    def __post_init__(self) -> None:
        if self.max_rank is not None:
            _check_rank(self.max_rank)

    def threshold(self, spectrum: Spectrum) -> Threshold:
        """The threshold, which is 0 where there is no noise. `noise` is None, as correlated noise has no single level."""
        values = spectrum.values()
        bound = values.size // 4 if self.max_rank is None else self.max_rank
        rank = min(bound, (values.size - 1) // 2)
        return Threshold(screenot_threshold(values, aspect_ratio(spectrum.shape), rank), None)


@dataclass(frozen=True)
class FixedRank:
    """Keeps the `rank` largest singular values (truncated SVD).

    The threshold lies half way between the smallest value kept and the largest dropped, so that rounding cannot move
    either across it; it is twice σ₁ where none is kept. Equal values are kept or dropped together: if σ_rank = σ_{rank+1},
    all values equal to them are dropped, so that the result has rank `rank` or less.

    Args:
        rank: at least 0; a rank of min(m, n) or more keeps everything that is not 0.

    Raises:
        ValueError: `rank` is negative.
    """

    rank: int

    def __post_init__(self) -> None:
        _check_rank(self.rank)

    def threshold(self, spectrum: Spectrum) -> Threshold:
        """The threshold; noise is not estimated."""
        values = spectrum.values()
        if self.rank >= values.size:
            return Threshold(0.0, None)
        below = float(values[self.rank])
        kept = int(np.count_nonzero(values > below))
        if kept == 0:
            return Threshold(2.0 * below, None)
        above = float(values[kept - 1])
        middle = below + (above - below) / 2.0
        return Threshold(middle if middle < above else below, None)


@dataclass(frozen=True)
class EnergyFraction:
    """Keeps the fewest singular values whose squares sum to at least `fraction` of ‖Δ‖_F².

    The threshold is that of `FixedRank`. Equal singular values are kept together, so the share that is kept may lie above
    `fraction`, and never lies below it.

    Args:
        fraction: in [0, 1]; 0 keeps nothing, 1 everything that is not 0.

    Raises:
        ValueError: `fraction` is out of range.
    """

    fraction: float

    def __post_init__(self) -> None:
        if not 0.0 <= self.fraction <= 1.0:
            raise ValueError(f"fraction is {self.fraction}; pass a number from 0 to 1, such as 0.9")

    def threshold(self, spectrum: Spectrum) -> Threshold:
        """The threshold; noise is not estimated."""
        # Summed from the smallest up, so that small values are not lost against the large ones.
        values = spectrum.values()
        tails = np.cumsum(np.square(values, dtype=np.float64)[::-1])
        dropped = int(np.searchsorted(tails, (1.0 - self.fraction) * tails[-1], side="right"))
        if dropped == tails.size:
            return FixedRank(0).threshold(spectrum)
        smallest_kept = values[tails.size - dropped - 1]
        return FixedRank(int(np.count_nonzero(values >= smallest_kept))).threshold(spectrum)


def _check_rank(rank: int) -> None:
    if rank < 0:
        raise ValueError(f"rank is {rank}; pass 0 or a positive integer")
