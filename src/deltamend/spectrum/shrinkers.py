"""Shrinkers: how far to shrink a singular value, given the level of the noise.

In all formulas y is the singular value in units of s√n (s the noise of one entry, n the longer side, β = m/n). A spike
x > β^{1/4} of the signal is seen at y = √((x + 1/x)(x + β/x)), above the bulk edge 1 + √β; smaller ones are not seen.
Optimal shrinkers: Gavish & Donoho, "Optimal shrinkage of singular values", IEEE Trans. Inf. Theory 63 (2017),
arXiv 1405.7511.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from deltamend.spectrum.blocks import FloatArray
from deltamend.spectrum.marchenko_pastur import aspect_ratio
from deltamend.spectrum.thresholds import optimal_coefficient

Array = npt.NDArray[np.float64]


class Shrinker(Protocol):
    """A map of singular values; constructors store parameters only."""

    def shrink(self, values: FloatArray, *, shape: tuple[int, int], noise: float) -> FloatArray:
        """The shrunken singular values.

        Args:
            values: singular values of the matrix in its own units, any shape, non-negative.
            shape: (m, n) of the matrix, in either order.
            noise: standard deviation of one entry of the noise, at least 0 and finite.

        Returns:
            float64, the shape of `values`, each in [0, value]; 0 at and below the edge of the bulk of the noise.

        Raises:
            ValueError: `noise` is negative or not finite, or a side of `shape` is smaller than 1.
        """


@dataclass(frozen=True)
class Hard:
    """Keeps what is above λ(β)·s√n as it is: the optimal hard threshold (Gavish & Donoho, arXiv 1305.5870, eq. 11)."""

    def shrink(self, values: FloatArray, *, shape: tuple[int, int], noise: float) -> FloatArray:
        """See `Shrinker.shrink`."""
        return _shrink(_hard, values, shape, noise)


@dataclass(frozen=True)
class Soft:
    """η(y) = (y − (1 + √β))₊: soft thresholding at the edge of the bulk.

    With that threshold pure noise is wiped out and every spike that is seen survives.
    """

    def shrink(self, values: FloatArray, *, shape: tuple[int, int], noise: float) -> FloatArray:
        """See `Shrinker.shrink`."""
        return _shrink(lambda y, beta: y - (1.0 + math.sqrt(beta)), values, shape, noise)


@dataclass(frozen=True)
class OptimalFrobenius:
    """Smallest squared Frobenius error: η(y) = √((y² − β − 1)² − 4β)/y (arXiv 1405.7511, Frobenius loss)."""

    def shrink(self, values: FloatArray, *, shape: tuple[int, int], noise: float) -> FloatArray:
        """See `Shrinker.shrink`."""
        return _shrink(lambda y, beta: _discriminant(y, beta) / y, values, shape, noise)


@dataclass(frozen=True)
class OptimalOperator:
    """Smallest operator norm error: η(y) = x·√((x² + β)/(x² + 1)), x = x(y).

    Leeb, "Optimal singular value shrinkage for operator norm loss", arXiv 2005.11807. Gavish & Donoho (1405.7511) give
    η(y) = x(y), which is this for square matrices (β = 1) and misses the optimum for all others: a spike's left and
    right singular vectors are then found to different accuracy.
    """

    def shrink(self, values: FloatArray, *, shape: tuple[int, int], noise: float) -> FloatArray:
        """See `Shrinker.shrink`."""
        return _shrink(_operator, values, shape, noise)


@dataclass(frozen=True)
class OptimalNuclear:
    """Smallest nuclear norm error: η(y) = (x⁴ − β − √β·x·y)₊/(x²·y), x = x(y) (arXiv 1405.7511, nuclear loss)."""

    def shrink(self, values: FloatArray, *, shape: tuple[int, int], noise: float) -> FloatArray:
        """See `Shrinker.shrink`."""
        return _shrink(_nuclear, values, shape, noise)


def spike(y: Array, beta: float) -> Array:
    """x(y) = √((y² − β − 1 + √((y² − β − 1)² − 4β))/2): the spike that is seen at `y`, above the edge 1 + √β."""
    return np.asarray(np.sqrt((y * y - beta - 1.0 + _discriminant(y, beta)) / 2.0))


def _discriminant(y: Array, beta: float) -> Array:
    """√((y² − β − 1)² − 4β), as a product over the two edges of the bulk, so that nothing cancels there."""
    low, high = 1.0 - math.sqrt(beta), 1.0 + math.sqrt(beta)
    return np.asarray(np.sqrt((y - high) * (y + high)) * np.sqrt((y - low) * (y + low)))


def _hard(y: Array, beta: float) -> Array:
    return np.where(y > optimal_coefficient(beta), y, 0.0)


def _operator(y: Array, beta: float) -> Array:
    x = spike(y, beta)
    return np.asarray(x * np.sqrt((x * x + beta) / (x * x + 1.0)))


def _nuclear(y: Array, beta: float) -> Array:
    x = spike(y, beta)
    return np.asarray(x * x / y - beta / (x * x * y) - math.sqrt(beta) / x)


def _shrink(
    rule: Callable[[Array, float], Array], values: FloatArray, shape: tuple[int, int], noise: float
) -> FloatArray:
    """Apply a rule for y above the bulk edge; with noise 0 every rule is the identity."""
    beta = aspect_ratio(shape)
    if not (noise >= 0.0 and math.isfinite(noise)):
        raise ValueError(f"noise is {noise}; pass a standard deviation that is finite and not negative")
    unit = noise * math.sqrt(max(shape))
    if unit == 0.0:
        return values.astype(np.float64)
    y = np.asarray(values, dtype=np.float64) / unit
    above = y > 1.0 + math.sqrt(beta)
    shrunken = np.zeros_like(y)
    shrunken[above] = unit * np.maximum(rule(y[above], beta), 0.0)
    return shrunken
