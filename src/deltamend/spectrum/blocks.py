"""A matrix that is read block by block along its longer side, so that memory does not grow with that side."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.floating[Any]]


class Block(NamedTuple):
    """Rows `start:stop` of a tall matrix (m > n), or columns `start:stop` of a wide or square one (m ≤ n).

    `values` has shape (stop − start, n) or (m, stop − start) and dtype float32 or float64. It may be a reused buffer:
    it holds until the next block is asked for.
    """

    start: int
    stop: int
    values: FloatArray


class Blocks(Protocol):
    """An m×n real matrix that can be read any number of times, block by block along its longer side."""

    @property
    def shape(self) -> tuple[int, int]:
        """(m, n), both at least 1."""

    def __iter__(self) -> Iterator[Block]:
        """Blocks in order, covering the longer side exactly once; the same values at every reading."""


@dataclass(frozen=True)
class ArrayBlocks:
    """An array in memory, as one block.

    Args:
        array: shape (m, n), dtype float32 or float64.
    """

    array: FloatArray

    @property
    def shape(self) -> tuple[int, int]:
        """(m, n) of the array."""
        m, n = self.array.shape
        return m, n

    def __iter__(self) -> Iterator[Block]:
        yield Block(0, max(self.array.shape), self.array)
