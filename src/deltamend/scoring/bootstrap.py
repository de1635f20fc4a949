"""Paired bootstrap over items: every draw takes the same items for every model, and for every cell that has these items.

A draw is a row of counts, how often each item was taken; mean scores are then one matrix product for all models and all
draws of a chunk. `paired_items` brings the items of all models into one order first, and `cell_means` joins models and
cells. Intervals are percentile intervals. BC and BCa intervals would take the bias that the metric's clipping and
partitions cause for a shift of the whole distribution, and cover far less (docs/score.md has the figures).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from deltamend.scoring.metric import FloatArray

_CHUNK = 1 << 18
"""Counts held at a time: 2 MiB, which fit into the processor's cache. Larger chunks are slower."""

_DECIMALS = 12
"""Means are rounded to so many decimals: models with the same scores get the same mean, whatever BLAS does."""


@dataclass(frozen=True)
class Interval:
    """A percentile interval."""

    low: float
    high: float


def mean_scores(scores: FloatArray) -> FloatArray:
    """(M,) mean of each column of (n, M), rounded as `resampled_means` does."""
    means: FloatArray = np.asarray(scores, dtype=np.float64).mean(axis=0)
    return means.round(_DECIMALS)


def resampled_means(scores: FloatArray, *, draws: int, seed: int, key: str) -> FloatArray:
    """Mean of each column in every draw of n rows with replacement.

    The draws depend only on `seed`, `key` and n. So models and cells with the same items are resampled together, and
    adding or removing a model does not change the draws of the others.

    Args:
        scores: (n, M).
        draws: number of bootstrap resamples.
        seed: random seed, not negative.
        key: name of the task.

    Returns:
        (draws, M) float64.
    """
    items = scores.shape[0]
    values = np.ascontiguousarray(scores, dtype=np.float64)
    random = np.random.default_rng([seed, *hashlib.sha256(key.encode()).digest()])
    means = np.empty((draws, values.shape[1]))
    rows = max(1, _CHUNK // items)
    for start in range(0, draws, rows):
        stop = min(start + rows, draws)
        taken = random.integers(items, size=(stop - start, items), dtype=np.int32)
        taken += np.arange(stop - start, dtype=np.int32)[:, None] * np.int32(items)
        counts = np.bincount(taken.ravel(), minlength=taken.size).reshape(taken.shape)
        means[start:stop] = counts.astype(np.float64) @ values
    means /= items
    return np.round(means, _DECIMALS, out=means)


def standard_error(mean: FloatArray, mean_square: FloatArray, items: int) -> FloatArray:
    """Standard error of a mean over items, from the mean and the mean square; 0 for a single item."""
    spread = np.maximum(mean_square - mean**2, 0.0)
    return np.sqrt(spread / (items - 1)) if items > 1 else np.zeros_like(mean)


def percentile_interval(draws: FloatArray, confidence: float) -> Interval:
    """Interval between the tails of (D,) draws, none of them NaN."""
    tail = (1 - confidence) / 2
    low, high = np.quantile(draws, [tail, 1 - tail])
    return Interval(float(low), float(high))


def resample_clusters(values: FloatArray, clusters: Sequence[str], *, seed: int) -> FloatArray:
    """Mean over clusters that are drawn with replacement, anew for every row: how the mean varies over cells like these.

    Args:
        values: (D, cells); each row is one bootstrap draw over items. NaN where undefined; it is left out of its cluster's mean.
        clusters: (cells,) names; cells of one cluster, such as seeds, are averaged and drawn as one.
        seed: not negative.

    Returns:
        (D,), NaN where no cluster that was drawn is defined.
    """
    names = sorted(set(clusters))
    membership = np.array([[cluster == name for name in names] for cluster in clusters], dtype=np.float64)
    by_cluster = weighted_mean(values, membership)
    random = np.random.default_rng([seed, *hashlib.sha256(b"clusters").digest()])
    taken = random.integers(len(names), size=(values.shape[0], len(names)))
    means = np.take_along_axis(by_cluster, taken, axis=1)
    return weighted_mean(means, np.ones((means.shape[1], 1)))[:, 0]


def weighted_mean(values: FloatArray, weights: FloatArray) -> FloatArray:
    """Weighted means of each row of (D, N), one for each column of (N, M) weights: (D, M).

    NaN entries are left out. A mean of nothing but NaN is NaN.
    """
    defined = ~np.isnan(values)
    with np.errstate(invalid="ignore"):
        means: FloatArray = (np.where(defined, values, 0) @ weights) / (defined @ weights)
    return means
