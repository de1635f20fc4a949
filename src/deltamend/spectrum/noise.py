"""The standard deviation of one entry of the noise in a delta, from its spectrum or from how it was stored."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from deltamend.spectrum.marchenko_pastur import aspect_ratio, median

if TYPE_CHECKING:
    from deltamend.spectrum.thresholds import Spectrum


class NoiseEstimator(Protocol):
    """Estimates the noise of a spectrum; constructors store parameters only."""

    def noise(self, spectrum: Spectrum) -> float:
        """Standard deviation of one entry of the noise, at least 0, in the units of the matrix."""


@dataclass(frozen=True)
class MedianNoise:
    """The median singular value against the median of the noise: s = median(σ)/√(n·μ_β), n the longer side.

    Gavish & Donoho, arXiv 1305.5870, the case of an unknown noise level. Right as long as the signal has small rank. It reads only the median, so
    it never asks for the whole spectrum.
    """

    def noise(self, spectrum: Spectrum) -> float:
        """Standard deviation of one entry; 0 when half of the singular values are 0."""
        beta = aspect_ratio(spectrum.shape)
        return spectrum.median() / math.sqrt(max(spectrum.shape) * median(beta))


@dataclass(frozen=True)
class FixedNoise:
    """A noise level known beforehand, for instance the rounding floor of the stored dtype.

    Args:
        value: standard deviation of one entry, at least 0 and finite.

    Raises:
        ValueError: `value` is negative or not finite.
    """

    value: float

    def __post_init__(self) -> None:
        if not (self.value >= 0.0 and math.isfinite(self.value)):
            raise ValueError(f"noise is {self.value}; pass a standard deviation that is finite and not negative")

    def noise(self, spectrum: Spectrum) -> float:  # noqa: ARG002  (the contract passes the spectrum)
        """`value`, whatever the spectrum."""
        return self.value
