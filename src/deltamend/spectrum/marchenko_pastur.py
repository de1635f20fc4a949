"""The Marchenko–Pastur law: the distribution of the eigenvalues and singular values of pure noise.

Let X be m×n (m ≤ n, β = m/n) with iid entries of variance s². The eigenvalues of XXᵀ/n follow, as m and n grow,
the law of Marchenko & Pastur (1967) with ratio β and scale s²; the singular values of X follow its square root with
scale s√n. Both laws are written here in the angle θ ∈ [0, π] of

    x = 1 + β − 2√β·cos θ,    F(θ) = (2/π) ∫₀^θ sin²t / (1 + β − 2√β·cos t) dt,

in which the square-root edges disappear and the integral is elementary.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]

_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(24)
_MAX_NEWTON = 200


def aspect_ratio(shape: tuple[int, int]) -> float:
    """β = min(m, n) / max(m, n) of an m×n matrix.

    Raises:
        ValueError: a side is smaller than 1.
    """
    if min(shape) < 1:
        raise ValueError(f"shape {shape} has an empty side; pass a matrix with at least one row and one column")
    return min(shape) / max(shape)


def check_beta(beta: float) -> None:
    """Refuse a ratio outside (0, 1].

    Raises:
        ValueError: `beta` is not in (0, 1].
    """
    if not 0.0 < beta <= 1.0:
        raise ValueError(f"beta is {beta}, not in (0, 1]; pass the shorter side divided by the longer side")


@dataclass(frozen=True)
class MarchenkoPastur:
    """The law of the eigenvalues of XXᵀ/n, with the method names of `scipy.stats` distributions.

    Density for unit scale (Marchenko & Pastur 1967; Bai & Silverstein 2010, eq. 3.1.1):
    f(x) = √((b − x)(x − a)) / (2πβx) on [a, b] = [(1 − √β)², (1 + √β)²]. For β = 1 it is infinite at x = 0.

    Args:
        beta: shorter side divided by longer side, in (0, 1].
        scale: variance s² of one entry, positive.

    Raises:
        ValueError: `beta` or `scale` is out of range.
    """

    beta: float
    scale: float = 1.0

    def __post_init__(self) -> None:
        check_beta(self.beta)
        _check_scale(self.scale)

    def support(self) -> tuple[float, float]:
        """The two edges, s²(1 ∓ √β)²."""
        low, high = _unit_edges(self.beta)
        return self.scale * low**2, self.scale * high**2

    def mean(self) -> float:
        """The mean, s²."""
        return self.scale

    def var(self) -> float:
        """The variance, β·s⁴."""
        return self.beta * self.scale**2

    def pdf(self, x: npt.ArrayLike) -> Array:
        """Density at `x`, any shape; 0 outside the support."""
        unit = _divide(x, self.scale)
        low, high = _unit_edges(self.beta)
        outside = (unit < low**2) | (unit > high**2)
        y = np.sqrt(np.where(outside, high**2, unit))
        with np.errstate(divide="ignore"):
            return np.where(outside, 0.0, _singular_pdf(y, self.beta) / (2.0 * y)) / self.scale

    def cdf(self, x: npt.ArrayLike) -> Array:
        """Probability of a value at most `x`, any shape."""
        return _lower_mass(self._angle(x), self.beta)

    def sf(self, x: npt.ArrayLike) -> Array:
        """Probability of a value above `x`, any shape; accurate in relative terms up to the upper edge."""
        return _upper_mass(self._angle(x), self.beta)

    def ppf(self, q: npt.ArrayLike) -> Array:
        """Quantile at probabilities `q` in [0, 1], any shape; NaN elsewhere, as in scipy."""
        return self.scale * _unit_singular(_angle_of_mass(q, self.beta), self.beta) ** 2

    def median(self) -> float:
        """The median, s²·μ_β."""
        return self.scale * median(self.beta)

    def _angle(self, x: npt.ArrayLike) -> Array:
        low, high = _unit_edges(self.beta)
        unit = np.clip(_divide(x, self.scale), low**2, high**2)
        return _angle(unit - low**2, high**2 - unit)


@dataclass(frozen=True)
class MarchenkoPasturSingular:
    """The law of the singular values of X, with the method names of `scipy.stats` distributions.

    The square root of `MarchenkoPastur`: for unit scale f(y) = √((b − y²)(y² − a)) / (πβy) on [1 − √β, 1 + √β]
    (the law that Gavish & Donoho, arXiv 1305.5870, call the generalised quarter circle). For β = 1 it is the quarter circle √(4 − y²)/π.

    Args:
        beta: shorter side divided by longer side, in (0, 1].
        scale: s√n, with s the standard deviation of one entry and n the longer side; positive.

    Raises:
        ValueError: `beta` or `scale` is out of range.
    """

    beta: float
    scale: float = 1.0

    def __post_init__(self) -> None:
        check_beta(self.beta)
        _check_scale(self.scale)

    def support(self) -> tuple[float, float]:
        """The two edges, s√n(1 ∓ √β)."""
        low, high = _unit_edges(self.beta)
        return self.scale * low, self.scale * high

    def pdf(self, x: npt.ArrayLike) -> Array:
        """Density at `x`, any shape; 0 outside the support."""
        return _singular_pdf(_divide(x, self.scale), self.beta) / self.scale

    def cdf(self, x: npt.ArrayLike) -> Array:
        """Probability of a value at most `x`, any shape."""
        return _lower_mass(self._angle(x), self.beta)

    def sf(self, x: npt.ArrayLike) -> Array:
        """Probability of a value above `x`, any shape; accurate in relative terms up to the upper edge."""
        return _upper_mass(self._angle(x), self.beta)

    def ppf(self, q: npt.ArrayLike) -> Array:
        """Quantile at probabilities `q` in [0, 1], any shape; NaN elsewhere, as in scipy."""
        return self.scale * _unit_singular(_angle_of_mass(q, self.beta), self.beta)

    def median(self) -> float:
        """The median, s√n·√μ_β."""
        return self.scale * math.sqrt(median(self.beta))

    def _angle(self, x: npt.ArrayLike) -> Array:
        low, high = _unit_edges(self.beta)
        y = np.clip(_divide(x, self.scale), low, high)
        return _angle((y - low) * (y + low), (high - y) * (high + y))


@lru_cache(maxsize=4096)
def median(beta: float) -> float:
    """μ_β: the median of the Marchenko–Pastur law of the eigenvalues, unit variance.

    Args:
        beta: shorter side divided by longer side, in (0, 1].

    Raises:
        ValueError: `beta` is out of range.
    """
    return float(MarchenkoPastur(beta).ppf(0.5))


def _check_scale(scale: float) -> None:
    if not (scale > 0.0 and math.isfinite(scale)):
        raise ValueError(f"scale is {scale}; pass a positive finite number")


def _divide(x: npt.ArrayLike, scale: float) -> Array:
    with np.errstate(over="ignore"):  # infinite is as far outside the support as it gets
        return np.asarray(np.asarray(x, dtype=np.float64) / scale)


def _unit_edges(beta: float) -> tuple[float, float]:
    """1 ∓ √β. The lower one as a quotient, which does not cancel as β nears 1."""
    root = math.sqrt(beta)
    return (1.0 - beta) / (1.0 + root), 1.0 + root


def _singular_pdf(y: Array, beta: float) -> Array:
    low, high = _unit_edges(beta)
    inside = (y >= low) & (y <= high)
    y = np.where(inside | np.isnan(y), y, high)
    # At β = 1 the lower edge is 0 and the factor is 1 for every y, 0 included.
    rise = np.sqrt((y - low) * (y + low)) / y if low > 0.0 else np.ones_like(y)
    return rise * np.sqrt((high - y) * (high + y)) / (math.pi * beta)


def _angle(above_low: Array, below_high: Array) -> Array:
    """θ of a point from its distances to the two edges, which keeps the relative accuracy near either."""
    return 2.0 * np.arctan2(np.sqrt(above_low), np.sqrt(below_high))


def _unit_singular(theta: Array, beta: float) -> Array:
    low, _ = _unit_edges(beta)
    return np.asarray(np.hypot(low, 2.0 * beta**0.25 * np.sin(theta / 2.0)))


def _angular_density(theta: Array, beta: float) -> Array:
    """dF/dθ. At β = 1 it is (2/π)·cos²(θ/2), also at θ = 0."""
    if beta == 1.0:
        return np.asarray(2.0 / math.pi * np.cos(theta / 2.0) ** 2)
    return np.asarray(2.0 / math.pi * np.sin(theta) ** 2 / _unit_singular(theta, beta) ** 2)


def _quadrature(low: Array, high: Array, beta: float) -> Array:
    half = (high - low)[..., None] / 2.0
    middle = (high + low)[..., None] / 2.0
    return np.asarray((half * _WEIGHTS * _angular_density(middle + half * _NODES, beta)).sum(axis=-1))


def _closed_form(theta: Array, beta: float) -> Array:
    """F(θ) = [θ + sin θ/√β − ((1 − β)/β)·atan2(√β·sin θ, 1 − √β·cos θ)] / π.

    From Σ r^k·sin kθ = r·sin θ/(1 + r² − 2r·cos θ) with r = √β, integrated term by term.
    """
    root = math.sqrt(beta)
    low, _ = _unit_edges(beta)
    phase = np.arctan2(root * np.sin(theta), low + 2.0 * root * np.sin(theta / 2.0) ** 2)
    return np.asarray((theta + np.sin(theta) / root - (1.0 - beta) / beta * phase) / math.pi)


def _lower_mass(theta: Array, beta: float) -> Array:
    # The terms of the closed form cancel where θ is small against −ln √β, the distance of the integrand's pole from the
    # real axis. There 24 Gauss–Legendre nodes are exact to rounding; elsewhere the closed form is.
    theta = np.asarray(theta, dtype=np.float64)
    near_edge = theta <= -math.log(beta)
    mass = np.where(near_edge, _quadrature(np.zeros_like(theta), theta, beta), _closed_form(theta, beta))
    return np.clip(mass, 0.0, 1.0)


def _upper_mass(theta: Array, beta: float) -> Array:
    theta = np.asarray(theta, dtype=np.float64)
    tail = _quadrature(np.maximum(theta, math.pi / 2.0), np.full_like(theta, math.pi), beta)
    return np.where(theta >= math.pi / 2.0, tail, 1.0 - _lower_mass(theta, beta))


def _angle_of_mass(q: npt.ArrayLike, beta: float) -> Array:
    """The angle below which the law has mass `q`: Newton's method, kept inside a shrinking bracket."""
    q = np.asarray(q, dtype=np.float64)
    target = np.where((q >= 0.0) & (q <= 1.0), q, np.nan)
    low, high = np.zeros_like(target), np.full_like(target, math.pi)
    theta = np.full_like(target, math.pi / 2.0)
    for _ in range(_MAX_NEWTON):
        excess = _lower_mass(theta, beta) - target
        low, high = np.where(excess <= 0.0, theta, low), np.where(excess >= 0.0, theta, high)
        with np.errstate(divide="ignore", invalid="ignore"):
            proposal = theta - excess / _angular_density(theta, beta)
        inside = (proposal > low) & (proposal < high)
        following = np.where(inside, proposal, (low + high) / 2.0)
        step = np.abs(following - theta)
        theta = following
        if not np.any(step > 4.0 * np.finfo(np.float64).eps * theta):
            break
    return np.where(target == 0.0, 0.0, np.where(target == 1.0, math.pi, np.where(np.isnan(target), np.nan, theta)))


def singular_value_law(shape: tuple[int, int], noise: float) -> MarchenkoPasturSingular:
    """The law of the singular values of an m×n matrix of iid noise.

    Args:
        shape: (m, n), in either order.
        noise: standard deviation s of one entry, positive.

    Raises:
        ValueError: a side is smaller than 1, or `noise` is not positive and finite.
    """
    return MarchenkoPasturSingular(aspect_ratio(shape), noise * math.sqrt(max(shape)))
