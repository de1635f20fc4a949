"""Means over clusters with intervals by Student's t, where clusters are few and share items."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from pydantic import Field
from scipy.stats import t as student

from deltamend.records import FiniteRecord
from deltamend.scoring.metric import FloatArray


class ClusteredMean(FiniteRecord):
    """A mean over clusters of cells, for other clusters like these and other items like these."""

    value: float
    low: float | None = Field(default=None, description="None where one cluster says nothing about others.")
    high: float | None = None
    error: float | None = Field(default=None, description="Standard error.")
    freedom: float | None = Field(default=None, description="Degrees of freedom.")
    cells: int
    clusters: int


def clustered_mean(
    values: FloatArray, draws: FloatArray, clusters: Sequence[str], confidence: float, *, items: int | None = None
) -> ClusteredMean | None:
    """The mean over clusters of the means of their cells; None where no cell has a figure.

    Its variance is S²/k + c. S² is the variance of the k cluster means: how much clusters differ, with the noise of the items
    of each. Items that clusters share push all their means the same way, which S² cannot see; c is the mean covariance of
    two cluster means over draws of the items, at least 0. With E[S²] = σ² + v − c, where σ² is between clusters and v the
    variance of a cluster mean over items, S²/k + c has the expectation σ²/k + v/k + (k − 1)c/k, which is the variance of the
    mean. Degrees of freedom are Satterthwaite's (1946), with k − 1 for S² and n − 1 for c, where n is the number of items.
    Draws of n items spread (n − 1)/n times as much as the items' mean does; c is divided by that.

    Args:
        values: (C,) of the cells; NaN where there is no figure.
        draws: (D, C) the same in draws of the items, the same draw for all cells that have these items.
        clusters: of each cell.
        confidence: of the interval.
        items: the fewest items that a figure rests on, at least 2; None where they are many.

    Source: ours.
    """
    own = np.flatnonzero(~np.isnan(values))
    if not own.size:
        return None
    names = [clusters[int(index)] for index in own]
    order = list(dict.fromkeys(names))
    weights = np.array([[(name == cluster) / names.count(cluster) for name in names] for cluster in order])
    means = weights @ values[own]
    count, mean = len(order), float(means.mean())
    if count < 2:
        return ClusteredMean(value=mean, cells=len(own), clusters=count)
    drawn = draws[:, own]
    whole = drawn[np.isfinite(drawn).all(axis=1)] @ weights.T
    covariance = np.cov(whole, rowvar=False) if len(whole) > 1 else np.zeros((count, count))
    few = 1.0 if items is None else items / (items - 1)
    shared = max(0.0, few * float(covariance.sum() - np.trace(covariance)) / (count * (count - 1)))
    between = float(means.var(ddof=1)) / count
    variance = between + shared
    lost = between**2 / (count - 1) + (0.0 if items is None else shared**2 / (items - 1))
    freedom = variance**2 / lost if lost > 0 else np.inf
    reach = float(student.ppf((1 + confidence) / 2, min(freedom, 1e9))) * float(np.sqrt(variance))
    return ClusteredMean(
        value=mean,
        low=mean - reach,
        high=mean + reach,
        error=float(np.sqrt(variance)),
        freedom=float(min(freedom, 1e9)),
        cells=len(own),
        clusters=count,
    )
