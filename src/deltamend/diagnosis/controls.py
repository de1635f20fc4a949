"""Controls for the test of the bulk: the same entries of Δ in random order, or with random signs."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from deltamend.spectrum.blocks import FloatArray

ENTRIES = 1 << 20
"""The most entries that controls are made from. The sample of a larger matrix has the matrix's proportions."""


@dataclass(frozen=True)
class Sample:
    """The entries of Δ in some rows and columns, collected block by block.

    Attributes:
        rows: the numbers of the rows, ascending.
        columns: the numbers of the columns, ascending.
        values: shape (rows, columns), in the dtype of Δ.
    """

    rows: np.ndarray[tuple[int], np.dtype[np.intp]]
    columns: np.ndarray[tuple[int], np.dtype[np.intp]]
    values: FloatArray

    @classmethod
    def of_shape(cls, shape: tuple[int, int], dtype: np.dtype[Any], random: np.random.Generator) -> Sample:
        """An empty sample of randomly chosen rows and columns; it has all of them if Δ has at most `ENTRIES` entries."""
        factor = min(1.0, math.sqrt(ENTRIES / (shape[0] * shape[1])))
        chosen = [
            np.sort(random.choice(side, max(1, round(side * factor)), replace=False))
            if factor < 1.0
            else np.arange(side)
            for side in shape
        ]
        return cls(chosen[0], chosen[1], np.zeros((chosen[0].size, chosen[1].size), dtype))

    def take(self, values: FloatArray, row: int, column: int) -> None:
        """Collect the sampled entries from a block of Δ whose first entry is in this row and column."""
        spans = []
        for chosen, start, length in ((self.rows, row, values.shape[0]), (self.columns, column, values.shape[1])):
            first, last = np.searchsorted(chosen, (start, start + length))
            spans.append((slice(int(first), int(last)), chosen[first:last] - start))
        (to_rows, rows), (to_columns, columns) = spans
        self.values[to_rows, to_columns] = values[np.ix_(rows, columns)]

    def shuffled(self, random: np.random.Generator) -> FloatArray:
        """The entries in random order."""
        return random.permutation(self.values.ravel()).reshape(self.values.shape)

    def flipped(self, random: np.random.Generator) -> FloatArray:
        """The entries with random signs."""
        signs = random.integers(0, 2, self.values.shape, dtype=np.int8)
        return self.values * (2 * signs - 1).astype(self.values.dtype)
