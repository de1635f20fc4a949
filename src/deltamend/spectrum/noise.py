"""Estimate the noise level of a delta, the standard deviation of one entry, from its singular values or its stored dtype."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from deltamend.spectrum.blocks import FloatArray
from deltamend.spectrum.marchenko_pastur import MarchenkoPasturSingular, aspect_ratio, median
from deltamend.spectrum.singular_values import Spectrum
from deltamend.spectrum.tracy_widom import largest_singular_value

Array = npt.NDArray[np.float64]

_FIT_LEVELS = np.linspace(0.1, 0.6, 11)
_MAX_TRIMS = 30


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


@dataclass(frozen=True)
class QuartileNoise:
    """The lower quartile of the singular values against that of the noise: s = σ_{q25}/(√n·y_{1/4}).

    y_{1/4} is the lower quartile of the Marchenko–Pastur law of singular values. The definition is ours; the name is
    that of the "Q25" estimate in the code of arXiv 2605.20296, which it is meant to be compared with, not to copy. It
    is less biased than the median where the signal fills much of the spectrum, and varies more.
    """

    def noise(self, spectrum: Spectrum) -> float:
        """Standard deviation of one entry; reads the whole spectrum."""
        law = MarchenkoPasturSingular(aspect_ratio(spectrum.shape), math.sqrt(max(spectrum.shape)))
        return float(np.quantile(spectrum.values(), 0.25) / law.ppf(0.25))


class BulkFit(NamedTuple):
    """The Marchenko–Pastur law that the lower part of a spectrum follows.

    `noise` is the standard deviation of one entry. `misfit` is the largest distance, in probability, between the law
    and the fitted quantiles: 0 is a perfect fit, iid noise gives less than 0.02 from a few hundred singular values on.
    `signal` is the number of the largest singular values that were left out as signal.
    """

    noise: float
    misfit: float
    signal: int


def fit_bulk(spectrum: Spectrum) -> BulkFit:
    """Fit the noise to eleven quantiles of the bulk, from 10% to 60%, leaving out what rises above it.

    The scale is the median of the ratios of the measured quantiles to those of the law. Values above the 99%
    Tracy–Widom quantile of the fitted edge are then left out as signal and the rest, k fewer in both dimensions, is
    fitted again until nothing more rises above; never more than half of the spectrum is left out. Ours.

    Args:
        spectrum: its whole list of values is read.

    Returns:
        The fit; noise 0 and misfit 1 where more than half of the fitted quantiles are 0.
    """
    values = spectrum.values()
    m, n = min(spectrum.shape), max(spectrum.shape)
    signal = 0
    for _ in range(_MAX_TRIMS):
        fit = _fit_quantiles(values[signal:], (m - signal, n - signal), signal)
        edge = largest_singular_value((m - signal, n - signal), fit.noise, 0.99)
        above = min(int(np.count_nonzero(values > edge)), m // 2)
        if above <= signal:
            break
        signal = above
    return fit


@dataclass(frozen=True)
class BulkFitNoise:
    """The noise of `fit_bulk`, which the signal biases less than the median."""

    def noise(self, spectrum: Spectrum) -> float:
        """Standard deviation of one entry; reads the whole spectrum."""
        return fit_bulk(spectrum).noise


def _fit_quantiles(values: FloatArray, shape: tuple[int, int], signal: int) -> BulkFit:
    law = MarchenkoPasturSingular(aspect_ratio(shape))
    measured = np.quantile(values, _FIT_LEVELS)
    scale = float(np.median(measured / law.ppf(_FIT_LEVELS)))
    if scale == 0.0:
        return BulkFit(0.0, 1.0, signal)
    misfit = float(np.abs(law.cdf(measured / scale) - _FIT_LEVELS).max())
    return BulkFit(scale / math.sqrt(max(shape)), misfit, signal)


class FloatFormat(NamedTuple):
    """A binary floating-point format: stored fraction bits and the exponent of its smallest normal number."""

    fraction_bits: int
    lowest_exponent: int


# By the name in torch and the name in a safetensors header.
FORMATS = {
    name: FloatFormat(*numbers)
    for names, numbers in {
        ("float64", "F64"): (52, -1022),
        ("float32", "F32"): (23, -126),
        ("bfloat16", "BF16"): (7, -126),
        ("float16", "F16"): (10, -14),
        ("float8_e4m3fn", "F8_E4M3"): (3, -6),
        ("float8_e5m2", "F8_E5M2"): (2, -14),
    }.items()
    for name in names
}


def rounding_variance(values: FloatArray, dtype_name: str) -> Array:
    """Expected squared rounding error of each stored value: ulp²/12, and ulp²/16 at a power of two.

    The cell of a power of two is ulp/2 wide above and ulp/4 below, so its mean square is less; that is one value in 128
    of bfloat16 and one in four of float8_e5m2.

    Assumed: each value was rounded once, to nearest, from a value spread evenly over its rounding cell, the errors of
    different entries are independent, and the base is exact as stored. The mean over W_ft is then the noise variance
    that storage alone adds to Δ = W_ft − W_base. The base lies on the same grid, so the even spread holds where the
    update moves a weight by about an ulp or more; a smaller update is rounded away whole, the error is the update
    itself, and ulp²/12 is more than its square. Scales of a quantised format must be divided out before. Ours; the
    uniform error is Widrow & Kollár, "Quantization Noise" (2008).

    Args:
        values: weights as stored, any shape, float32 or float64, for instance one block of a tensor.
        dtype_name: the stored dtype, by its torch or safetensors name: a key of `FORMATS`.

    Returns:
        float64, the shape of `values`. Zeros and subnormal numbers have the spacing of the subnormal numbers; inf gives
        inf and NaN gives NaN.

    Raises:
        ValueError: `dtype_name` is not known.
    """
    if dtype_name not in FORMATS:
        raise ValueError(f"no floating-point format {dtype_name!r}; pass one of {', '.join(FORMATS)}")
    fraction_bits, lowest_exponent = FORMATS[dtype_name]
    values = np.asarray(values)
    fractions, exponents = np.frexp(np.abs(values))  # |value| = f·2^e with f in [½, 1)
    narrow = (fractions == 0.5) & (exponents - 1 > lowest_exponent)
    exponents = np.where(values == 0.0, lowest_exponent, np.maximum(exponents - 1, lowest_exponent))
    variance = np.ldexp(1.0, exponents - fraction_bits) ** 2 / np.where(narrow, 16.0, 12.0)
    return np.where(np.isfinite(values), variance, np.abs(values))


@dataclass(frozen=True)
class NonzeroPart:
    """The singular values of an exactly low-rank update that are not 0: the `Spectrum` of a rank × n matrix.

    Args:
        singular_values: float64, shape (rank,), descending, positive.
        shape: (rank, n), n the longer side of the update.
    """

    singular_values: FloatArray
    shape: tuple[int, int]

    @property
    def energy(self) -> float:
        """Sum of the squared singular values."""
        return float(np.sum(np.square(self.singular_values)))

    def median(self) -> float:
        """Median of the nonzero singular values."""
        return float(np.median(self.singular_values))

    def largest(self) -> float:
        """The largest singular value."""
        return float(self.singular_values[0])

    def values(self) -> FloatArray:
        """All nonzero singular values, descending."""
        return self.singular_values


def nonzero_part(spectrum: Spectrum, *, rounding: float = 0.0, relative_floor: float = 1e-7) -> NonzeroPart:
    """The part of a spectrum above the numerical floor, as the spectrum of a rank × n matrix.

    For an adapter, Δ = BA has `rank` nonzero singular values and the median of all is 0, so a rule that reads the
    median says nothing. Rotated into its own column space, UᵀΔ is rank × n with the same nonzero singular values. A
    rule applied to that compares them with iid noise in a rank × n matrix. This is a choice, not a theorem: U was
    fitted to the data, and neither B nor A need carry iid noise. With rank ≪ n the law is so narrow (1 ± √(rank/n))
    that DG-Hard keeps what exceeds about √2 times the median of the adapter's own spectrum. Ours.

    Args:
        spectrum: of the whole update; all values are read.
        rounding: standard deviation of the rounding error of one entry, where the adapter was merged and stored; values
            up to the 99% Tracy–Widom quantile of such noise count as 0.
        relative_floor: values up to this times the largest count as 0. A Gram matrix in double precision resolves
            singular values to about 1.5e-8 times the largest.

    Raises:
        ValueError: no value is above the floor; or `relative_floor` is not in [0, 1).
    """
    if not 0.0 <= relative_floor < 1.0:
        raise ValueError(f"relative_floor is {relative_floor}; pass a number from 0 to below 1, such as 1e-7")
    floor = max(relative_floor * spectrum.largest(), largest_singular_value(spectrum.shape, rounding, 0.99))
    values = spectrum.values()
    values = values[values > floor]
    if values.size == 0:
        raise ValueError("no singular value is above the numerical floor; the update is zero, leave it as it is")
    return NonzeroPart(values, (values.size, max(spectrum.shape)))
