"""Test whether the lower part of a spectrum looks like noise, by its distance from the Marchenko–Pastur law, with p-values.

The values of one matrix repel each other and the noise level is fitted to them, so no table of the Kolmogorov–Smirnov or
the Anderson–Darling statistic applies: the same statistics are computed for simulated noise. The singular values of an
m×n Gaussian matrix have the law of those of an m×m bidiagonal matrix of χ variables (Dumitriu & Edelman 2002,
arXiv math-ph/0206043, β = 1), so a draw costs O(m²) and no matrix product.
"""

from __future__ import annotations

import math
import threading
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from deltamend.spectrum import lapack
from deltamend.spectrum.blocks import FloatArray
from deltamend.spectrum.marchenko_pastur import MarchenkoPasturSingular, aspect_ratio
from deltamend.spectrum.tracy_widom import largest_singular_value

Array = npt.NDArray[np.float64]

SIMULATIONS = 1999
"""Draws of noise behind a p-value; the smallest p-value is 1/(SIMULATIONS + 1)."""

FEWEST = 16
"""With fewer singular values below the threshold than this, nothing is tested."""

_LARGEST_EXACT = 256
_SIZES = (16, 24, 32, 48, 64, 96, 128)
_ASPECTS = 16
_GROWTH = np.array([[0.25, 0.85], [0.075, 0.2]])
_QUANTILES = 33


class Distances(NamedTuple):
    """How far N values lie from a law: `ks`, sup|F_N − F|, and `ad`, the Anderson–Darling A² = N∫(F_N − F)²/(F(1 − F))dF.

    The law has bounded support, and one value beyond it would make A² infinite: F is clipped to [1/4N, 1 − 1/4N].
    """

    ks: float
    ad: float


@dataclass(frozen=True)
class BulkTest:
    """What lies at or below a threshold against the Marchenko–Pastur law truncated there.

    Attributes:
        size: number of values tested, N.
        shape: (m − k, n − k) of the law, k the number of values above the threshold.
        noise: standard deviation of one entry, fitted by the median of the values tested.
        edges: the two edges of the law.
        distances: between the values and the law.
        ks_p: p-value of the first distance: how often noise of this shape lies as far from its law.
        ad_p: that of the second.
        beyond_edge: how many of all values exceed the 99% Tracy–Widom quantile of the largest of this noise.
        quantiles: (33, 2): quantiles 1/66, 3/66, … of the law, and of the values.
    """

    size: int
    shape: tuple[int, int]
    noise: float
    edges: tuple[float, float]
    distances: Distances
    ks_p: float
    ad_p: float
    beyond_edge: int
    quantiles: Array


def check_bulk(values: FloatArray, shape: tuple[int, int], threshold: float) -> BulkTest | None:
    """Test what a threshold calls noise.

    The k values above the threshold are taken as signal of rank k: what is left of noise then has the law of an
    (m − k)×(n − k) matrix. Its scale is fitted by the median, as Gavish & Donoho fit it (arXiv 1305.5870), and both
    distances are compared with those of simulated Gaussian noise fitted in the same way. Ours.

    Args:
        values: all singular values of an m×n matrix, descending, float64.
        shape: (m, n).
        threshold: τ ≥ 0; values up to it are tested.

    Returns:
        The test, or None where fewer than `FEWEST` values are left or half of them are 0.
    """
    below = values[values <= threshold][::-1]
    signal = values.size - below.size
    bulk_shape = (shape[0] - signal, shape[1] - signal)
    if below.size < FEWEST or np.median(below) == 0.0:
        return None
    law = _fitted(below, bulk_shape)
    found = distances(below, law, threshold)
    null = null_distances(bulk_shape, exact=signal == 0)
    noise = law.scale / math.sqrt(max(bulk_shape))
    levels = (np.arange(_QUANTILES) + 0.5) / _QUANTILES
    return BulkTest(
        size=below.size,
        shape=bulk_shape,
        noise=noise,
        edges=law.support(),
        distances=found,
        ks_p=p_value(found.ks, null[:, 0]),
        ad_p=p_value(found.ad, null[:, 1]),
        beyond_edge=int(np.count_nonzero(values > largest_singular_value(bulk_shape, noise, 0.99))),
        quantiles=np.stack([law.ppf(levels * float(law.cdf(threshold))), np.quantile(below, levels)], axis=1),
    )


def distances(values: FloatArray, law: MarchenkoPasturSingular, threshold: float = math.inf) -> Distances:
    """Both distances of ascending values to a law truncated at `threshold`."""
    count = values.size
    mass = law.cdf(values) / float(law.cdf(threshold))
    index = np.arange(count)
    ks = max(float(np.max(mass - index / count)), float(np.max((index + 1) / count - mass)))
    margin = 0.25 / count
    clipped = np.clip(mass, margin, 1.0 - margin)
    ad = -count - float(np.mean((2 * index + 1) * (np.log(clipped) + np.log1p(-clipped[::-1]))))
    return Distances(ks, ad)


def p_value(found: float, simulated: Array) -> float:
    """Share of the simulated statistics that are at least as large, the found one counted with them."""
    return (1 + int(np.count_nonzero(simulated >= found))) / (1 + simulated.size)


def noise_spectrum(shape: tuple[int, int], random: np.random.Generator) -> Array:
    """Singular values of a Gaussian matrix of unit variance, ascending, drawn without the matrix.

    Args:
        shape: (m, n), in either order.
        random: source of randomness.
    """
    short, long = min(shape), max(shape)
    diagonal = random.chisquare(long - np.arange(short))
    below = random.chisquare(np.arange(short - 1, 0, -1))
    squares = diagonal.copy()
    squares[1:] += below
    return np.asarray(np.sqrt(np.maximum(lapack.sterf(squares, np.sqrt(diagonal[:-1] * below)), 0.0)))


def null_distances(shape: tuple[int, int], *, exact: bool) -> Array:
    """The distances of simulated noise, (SIMULATIONS, 2): Kolmogorov–Smirnov and Anderson–Darling.

    Simulated once for a shape and kept. Above a shorter side of 256 they come from one of side 128 and the nearest of 16
    aspect ratios: x = N·KS grows by 0.25 + 0.075·x, and x = N·A² by 0.85 + 0.2·x, for each e-fold of the side, whatever the
    aspect ratio. The four numbers were fitted to sides of 256 to 1024 (ours; benchmarks/results/diagnosis/calibration.md has the test).

    Args:
        shape: (m, n) of the noise, both at least 2.
        exact: simulate this very shape where its shorter side is at most 256, and not the next of seven sizes below it.
    """
    size = min(shape)
    if size <= _LARGEST_EXACT and exact:
        return _simulated(size, max(shape))
    aspect = max(1, round(_ASPECTS * aspect_ratio(shape))) / _ASPECTS
    reference = max(side for side in _SIZES if side <= max(size, _SIZES[0]))
    simulated = _simulated(reference, round(reference / aspect))
    scaled = simulated * reference
    return np.asarray((scaled + math.log(size / reference) * (_GROWTH[0] + _GROWTH[1] * scaled)) / size)


def _fitted(values: FloatArray, shape: tuple[int, int]) -> MarchenkoPasturSingular:
    """The law whose median is that of the values."""
    unit = MarchenkoPasturSingular(aspect_ratio(shape))
    return MarchenkoPasturSingular(unit.beta, float(np.median(values)) / unit.median())


_simulating: dict[tuple[int, int], threading.Lock] = {}


def _simulated(short: int, long: int) -> Array:
    """Distances of noise of one shape; a second thread that asks waits for the first."""
    with _simulating.setdefault((short, long), threading.Lock()):
        return _simulate(short, long, SIMULATIONS)


@lru_cache(maxsize=256)
def _simulate(short: int, long: int, draws: int) -> Array:
    random = np.random.default_rng([short, long])
    found = np.empty((draws, 2))
    for row in found:
        values = noise_spectrum((short, long), random)
        row[:] = distances(values, _fitted(values, (short, long)))
    found.setflags(write=False)
    return found
