"""Memory that a worker reuses, and the small operations on rows and bytes that every reader of matrices needs."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from deltamend.spectrum.blocks import FloatArray
from deltamend.spectrum.decompositions import Workspace

CHUNK_ELEMENTS = 1 << 18
"""How many entries elementwise work handles at a time: 1 MiB in fp32, which fits into the second-level cache of a core."""

Array = np.ndarray[Any, np.dtype[Any]]

_VANISHING = 1e-32
"""A sum of squares below this may have lost terms in fp32: each by up to 1.4e-45, so a chunk by up to 4e-40."""
_CACHE_LINE = 64  # bytes


class Buffers:
    """Memory that one thread reuses, because touching fresh memory for the first time costs more than the arithmetic."""

    def __init__(self) -> None:
        self.workspace = Workspace()
        self._held: dict[str, Array] = {}

    def get(self, use: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
        """Get the buffer of a given name.

        It begins on a cache line, so that vectorised sums add their terms in the same order in every run.

        Args:
            use: the name of the buffer.
            shape: the shape of the array.
            dtype: its dtype.

        Returns:
            A contiguous array with undefined content. The next call with the same `use` may overwrite it.
        """
        nbytes = math.prod(shape) * dtype.itemsize
        held = self._held.get(use)
        if held is None or held.size < nbytes:
            fresh = np.empty(nbytes + _CACHE_LINE, np.uint8)
            start = -fresh.ctypes.data % _CACHE_LINE
            held = self._held[use] = fresh[start : start + nbytes]
        return held[:nbytes].view(dtype).reshape(shape)


def row_chunks(shape: tuple[int, int]) -> Iterator[tuple[int, int]]:
    """Cut the rows of a matrix into spans (start, stop) of about CHUNK_ELEMENTS entries each."""
    rows, columns = shape
    if not columns:  # a damaged header may claim any number of empty rows
        return
    step = max(1, CHUNK_ELEMENTS // columns)
    for start in range(0, rows, step):
        yield start, min(rows, start + step)


def bytes_of(array: Array) -> memoryview:
    """A view of the bytes of a contiguous array, without a copy."""
    return array.reshape(-1).view(np.uint8).data


def same_bytes(first: Array, second: Array) -> bool:
    """Whether two contiguous arrays of one dtype hold the same bytes. A NaN then equals itself, and 0 differs from −0."""
    # This is 30 times faster than comparing memoryviews.
    return np.array_equal(first.reshape(-1).view(np.uint8), second.reshape(-1).view(np.uint8))


def norm_squared(values: FloatArray) -> float:
    """The sum of squares of a chunk, in the chunk's own precision, or in fp64 where that is too coarse.

    For up to CHUNK_ELEMENTS entries in fp32 its relative error is about 1e-6. Squares of entries below 1e-19 vanish in fp32.
    """
    flat = values.reshape(-1)
    with np.errstate(over="ignore", invalid="ignore"):  # callers look whether the sum is finite
        found = float(np.dot(flat, flat))
        if found < _VANISHING and flat.any():
            wide = flat.astype(np.float64)
            found = float(np.dot(wide, wide))
    return found
