"""Rules that say from which singular value on a delta is signal."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Protocol

from deltamend.spectrum.blocks import FloatArray
from deltamend.spectrum.marchenko_pastur import aspect_ratio, check_beta, median
from deltamend.spectrum.noise import FixedNoise, MedianNoise, NoiseEstimator


class Spectrum(Protocol):
    """The singular values of one m×n matrix, as far as a rule asks for them."""

    @property
    def shape(self) -> tuple[int, int]:
        """(m, n) of the matrix."""

    @property
    def energy(self) -> float:
        """Sum of the squared singular values, ‖Δ‖_F²."""

    def median(self) -> float:
        """Median of all min(m, n) singular values; the mean of the middle two when their number is even."""

    def largest(self) -> float:
        """The largest singular value."""

    def values(self) -> FloatArray:
        """All min(m, n) singular values, float64, descending. May cost more than the median."""


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
    """λ(β): the optimal hard threshold in units of s√n, for known noise.

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
        """The threshold and the noise; both 0 where the noise is."""
        noise = self.noise.noise(spectrum)
        beta = aspect_ratio(spectrum.shape)
        return Threshold(optimal_coefficient(beta) * math.sqrt(max(spectrum.shape)) * noise, noise)


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
