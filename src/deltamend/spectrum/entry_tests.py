"""Test whether the entries of a matrix look independent and identically distributed (iid).

The departures that are looked for: rows or columns of unequal variance, correlated neighbours, heavy tails and exact zeros.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from deltamend.spectrum.blocks import FloatArray

Array = npt.NDArray[np.float64]

_PICTURE = 33
_LARGE_FACTOR = 1e30  # beyond which float32 would overflow


class VarianceTest(NamedTuple):
    """Test of whether all rows (or all columns) have the same variance.

    Attributes:
        variation: coefficient of variation of the rows' variances beyond what chance gives; 0 where there is none.
        p: p-value.
        quantiles: (33,) quantiles 1/66, 3/66, … of the rows' variances, relative to their mean.
    """

    variation: float
    p: float
    quantiles: Array


class NeighbourTest(NamedTuple):
    """Test of whether neighbouring rows (or columns) are uncorrelated: their mean correlation, and its p-value."""

    correlation: float
    p: float


class EntryTests(NamedTuple):
    """All tests of one matrix; `kurtosis` is the excess over the normal law, 0, and `zeros` the share of exact zeros."""

    rows: VarianceTest
    columns: VarianceTest
    neighbouring_rows: NeighbourTest
    neighbouring_columns: NeighbourTest
    kurtosis: float
    kurtosis_p: float
    zeros: float


class EntrySums:
    """Running sums over the entries of an m×n matrix, part by part.

    Args:
        shape: (m, n).
        scale: the size of an entry, such as its root mean square, by which entries are divided; positive.
    """

    def __init__(self, shape: tuple[int, int], scale: float) -> None:
        self._shape, self._factor = shape, 1.0 / scale
        self._rows, self._columns = np.zeros(shape[0]), np.zeros(shape[1])
        self._fourth = 0.0
        self._zeros = 0
        self._neighbours = np.zeros((2, 3))

    def add(self, values: FloatArray, row: int, column: int) -> None:
        """Take in a part whose first entry is (row, column); each entry once. A part of about 2^18 entries is fastest."""
        scaled = (values if self._factor < _LARGE_FACTOR else values.astype(np.float64)) * self._factor
        squares = scaled * scaled
        self._rows[row : row + values.shape[0]] += squares.sum(axis=1)
        self._columns[column : column + values.shape[1]] += squares.sum(axis=0)
        self._fourth += float(np.vdot(squares, squares))
        self._zeros += values.size - int(np.count_nonzero(values))
        for sums, part, energies in zip(self._neighbours, (scaled, scaled.T), (squares, squares.T), strict=True):
            products = part[1:] * part[:-1]
            sums += products.sum(dtype=np.float64), np.vdot(products, products), energies[1:].sum(dtype=np.float64)

    def tests(self) -> EntryTests:
        """The tests, once every entry is in.

        - Variances: Σ(Sᵢ − S̄)²/((m₄ − m₂²)/n) over the rows' mean squares Sᵢ, which is χ² with m − 1 degrees of freedom
          whatever the law of the entries, as far as that has a fourth moment.
        - Neighbours: Σxy/√Σ(xy)² over the pairs within a part, which is normal where signs are independent.
        - Kurtosis: m₄/m₂² − 3 over √(24/N).

        Ours, from textbook parts; entries are taken to have mean 0, as updates do.
        """
        m, n = self._shape
        second = float(self._rows.sum()) / (m * n)
        fourth = self._fourth / (m * n)
        kurtosis = fourth / second**2 - 3.0
        return EntryTests(
            rows=_variances(self._rows / n, n, second, fourth),
            columns=_variances(self._columns / m, m, second, fourth),
            neighbouring_rows=_neighbours(self._neighbours[0]),
            neighbouring_columns=_neighbours(self._neighbours[1]),
            kurtosis=kurtosis,
            kurtosis_p=_two_sided(kurtosis * math.sqrt(m * n / 24.0)),
            zeros=self._zeros / (m * n),
        )


def _variances(means: Array, across: int, second: float, fourth: float) -> VarianceTest:
    from scipy.special import gammaincc  # late, as in tracy_widom

    levels = (np.arange(_PICTURE) + 0.5) / _PICTURE
    quantiles = np.quantile(means / second, levels)
    by_chance = (fourth - second**2) / across
    freedom = means.size - 1
    if freedom == 0 or by_chance <= 0.0:  # one row, or entries that differ in sign alone
        return VarianceTest(0.0, 1.0, quantiles)
    total = float(np.sum((means - second) ** 2))
    p = float(gammaincc(freedom / 2.0, total / by_chance / 2.0))
    return VarianceTest(math.sqrt(max(0.0, total / freedom - by_chance)) / second, p, quantiles)


def _neighbours(sums: Array) -> NeighbourTest:
    products, squares, energy = (float(value) for value in sums)
    if squares == 0.0:
        return NeighbourTest(0.0, 1.0)
    return NeighbourTest(products / energy, _two_sided(products / math.sqrt(squares)))


def _two_sided(z: float) -> float:
    return math.erfc(abs(z) / math.sqrt(2.0))
