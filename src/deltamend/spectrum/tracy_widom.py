"""The Tracy–Widom law: the distribution of the largest singular value of pure noise around the edge of the bulk."""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]

_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(48)
# The Airy function is below 1e-19 from here on, so the operator is cut off without loss.
_AIRY_END = 16.0
# F₁ is below 1e-22 at the lower end and 1 to rounding at the upper.
_LOWEST, _HIGHEST = -10.0, 16.0


def cdf(s: npt.ArrayLike) -> Array:
    """F₁(s), the Tracy–Widom law for real matrices, any shape; absolute error below 1e-14.

    F₁(s) = det(1 − B_s) on L²(0, ∞) with kernel Ai(x + y + s) (Ferrari & Spohn 2005, J. Phys. A 38 L557), discretised
    by Gauss–Legendre nodes, which converges exponentially (Bornemann, Math. Comp. 79 (2010), arXiv 0804.2543).
    """
    s = np.asarray(s, dtype=np.float64)
    with np.errstate(invalid="ignore"):  # NaN in, NaN out
        values = [_determinant(float(x)) for x in np.clip(s, _LOWEST, _HIGHEST).ravel()]
    return np.asarray(np.clip(np.array(values, dtype=np.float64).reshape(s.shape), 0.0, 1.0))


@lru_cache(maxsize=256)
def quantile(level: float) -> float:
    """The value that a Tracy–Widom variable exceeds with probability 1 − `level`.

    Args:
        level: in [1e-12, 1 − 1e-12].

    Raises:
        ValueError: `level` is out of range.
    """
    if not 1e-12 <= level <= 1.0 - 1e-12:
        raise ValueError(f"level is {level}; pass a probability strictly between 0 and 1, such as 0.99")
    from scipy.optimize import brentq  # late: a third of all start-up time, and DG-Hard does without it

    return float(brentq(lambda s: _determinant(s) - level, _LOWEST, _HIGHEST, xtol=1e-12))


def location_scale(shape: tuple[int, int]) -> tuple[float, float]:
    """μ and σ such that (λ₁ − μ)/σ follows F₁, with λ₁ the largest eigenvalue of XXᵀ for an m×n X of N(0, 1) entries.

    μ = (√(n − ½) + √(m − ½))², σ = (√(n − ½) + √(m − ½))·(1/√(n − ½) + 1/√(m − ½))^{1/3}: Johnstone, Annals of
    Statistics 29 (2001), theorem 1.1, with Ma's centring (Bernoulli 18 (2012), arXiv 1203.0839) in place of Johnstone's
    n − 1 and m. The limit is the same; Ma's is symmetric in m and n and closer for small matrices.

    Args:
        shape: (m, n), in either order.

    Raises:
        ValueError: a side is smaller than 1.
    """
    if min(shape) < 1:
        raise ValueError(f"shape {shape} has an empty side; pass a matrix with at least one row and one column")
    root_m, root_n = math.sqrt(shape[0] - 0.5), math.sqrt(shape[1] - 0.5)
    return (root_m + root_n) ** 2, (root_m + root_n) * math.cbrt(1.0 / root_m + 1.0 / root_n)


def largest_singular_value(shape: tuple[int, int], noise: float, level: float) -> float:
    """The value that the largest singular value of an m×n matrix of iid noise exceeds with probability 1 − `level`.

    s·√(μ + σ·q) with q the Tracy–Widom quantile: the root is monotone, so quantiles go through it unchanged.

    Args:
        shape: (m, n), in either order.
        noise: standard deviation s of one entry, at least 0.
        level: in [1e-12, 1 − 1e-12].

    Raises:
        ValueError: `level` is out of range, or a side is smaller than 1.
    """
    location, scale = location_scale(shape)
    return noise * math.sqrt(max(location + scale * quantile(level), 0.0))


def _determinant(s: float) -> float:
    from scipy.special import airy  # late: a third of all start-up time, and DG-Hard does without it

    length = _AIRY_END - min(s, _AIRY_END - 1.0)
    x = length / 2.0 * (_NODES + 1.0)
    root = np.sqrt(length / 2.0 * _WEIGHTS)
    kernel = np.outer(root, root) * airy(x[:, None] + x[None, :] + s)[0]
    return float(np.linalg.det(np.eye(x.size) - kernel))
