"""95% intervals of a share and of a weighted mean."""

from __future__ import annotations

import math
from collections.abc import Sequence

Z_95 = 1.959964  # the two-sided 95% point of the normal law


def wilson_interval(successes: int, trials: int) -> tuple[float, float]:
    """The 95% Wilson score interval of a proportion, both ends in [0, 1] (Wilson 1927; Brown, Cai & DasGupta 2001)."""
    share, z2 = successes / trials, Z_95**2
    centre = (share + z2 / (2 * trials)) / (1 + z2 / trials)
    half = Z_95 / (1 + z2 / trials) * math.sqrt(share * (1 - share) / trials + z2 / (4 * trials**2))
    return max(0.0, centre - half), min(1.0, centre + half)


def mean_interval(values: Sequence[float], weights: Sequence[float]) -> tuple[float, float, float]:
    """Weighted mean of at least two values and its 95% interval (normal, ratio estimator): (mean, low, high)."""
    total = sum(weights)
    mean = sum(weight * value for weight, value in zip(weights, values, strict=True)) / total
    squares = sum((weight * (value - mean)) ** 2 for weight, value in zip(weights, values, strict=True))
    half = Z_95 * math.sqrt(squares * len(values) / (len(values) - 1)) / total
    return mean, mean - half, mean + half
