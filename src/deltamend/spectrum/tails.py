"""Fit a power law to the upper tail of a set of values."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from deltamend.spectrum.blocks import FloatArray

_CANDIDATES = 200
_FEWEST = 10


@dataclass(frozen=True)
class PowerLaw:
    """A density ∝ x^(−exponent) from `start` on, fitted to the `count` values there; `distance` is their KS distance to it."""

    exponent: float
    start: float
    count: int
    distance: float


def power_law_tail(values: FloatArray) -> PowerLaw | None:
    """The power law that the upper tail follows best.

    α = 1 + N/Σ ln(xᵢ/x_min) for every x_min among the values, and the x_min whose fit has the least Kolmogorov–Smirnov
    distance (Clauset, Shalizi & Newman 2009, arXiv 0706.1062, eq. 3.1 and section 3.3). At most 200 x_min are tried,
    evenly by rank, and each leaves at least ten values. That some law fits best says nothing of how well it fits.

    Args:
        values: at least 0, in any order; zeros are left out.

    Returns:
        The fit, or None where fewer than ten values are positive or the tail has no spread.
    """
    ascending = np.sort(values[values > 0.0].astype(np.float64))
    if ascending.size < _FEWEST:
        return None
    logs = np.log(ascending)
    sums = np.cumsum(logs[::-1])[::-1]
    best: PowerLaw | None = None
    for first in np.unique(np.linspace(0, ascending.size - _FEWEST, _CANDIDATES).astype(int)):
        count = ascending.size - int(first)
        spread = float(sums[first]) - count * float(logs[first])
        if spread <= 0.0:
            continue
        exponent = 1.0 + count / spread
        mass = -np.expm1((1.0 - exponent) * (logs[first:] - logs[first]))
        index = np.arange(count)
        distance = float(max(np.max(mass - index / count), np.max((index + 1) / count - mass)))
        if best is None or distance < best.distance:
            best = PowerLaw(exponent, float(ascending[first]), count, distance)
    return best
