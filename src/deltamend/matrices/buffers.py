"""Memory that a worker uses again and again, and the few operations on rows and bytes that every reader of matrices shares."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from deltamend.spectrum.blocks import FloatArray
from deltamend.spectrum.decompositions import Workspace

CHUNK_ELEMENTS = 1 << 18
"""Entries handled at a time by elementwise work: 1 MiB in fp32, which stays in a core's second-level cache."""

Array = np.ndarray[Any, np.dtype[Any]]

_LINE = 64


class Buffers:
    """Memory that one thread uses again and again; the first touch of fresh memory costs more than the arithmetic."""

    def __init__(self) -> None:
        self.workspace = Workspace()
        self._held: dict[str, Array] = {}

    def get(self, use: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
        """A contiguous array with undefined content, valid until `use` is asked for again.

        It begins on a cache line, so that vectorised sums add up in the same order in every run.
        """
        nbytes = math.prod(shape) * dtype.itemsize
        held = self._held.get(use)
        if held is None or held.size < nbytes:
            fresh = np.empty(nbytes + _LINE, np.uint8)
            start = -fresh.ctypes.data % _LINE
            held = self._held[use] = fresh[start : start + nbytes]
        return held[:nbytes].view(dtype).reshape(shape)


def row_chunks(shape: tuple[int, int]) -> Iterator[tuple[int, int]]:
    """Spans of rows of about CHUNK_ELEMENTS entries, covering the matrix once."""
    rows, columns = shape
    if not columns:  # however many rows a header claims for nothing
        return
    step = max(1, CHUNK_ELEMENTS // columns)
    for start in range(0, rows, step):
        yield start, min(rows, start + step)


def bytes_of(array: Array) -> memoryview:
    """The bytes of a contiguous array, without a copy."""
    return array.reshape(-1).view(np.uint8).data


def same_bytes(first: Array, second: Array) -> bool:
    """Whether two contiguous arrays of one dtype hold the same bytes; NaN equals itself, and 0 differs from −0."""
    # 30 times faster than comparing memoryviews.
    return np.array_equal(first.reshape(-1).view(np.uint8), second.reshape(-1).view(np.uint8))


def norm_squared(values: FloatArray) -> float:
    """Sum of squares of a chunk in its own precision; good to about 1e-6 up to CHUNK_ELEMENTS entries in fp32."""
    flat = values.reshape(-1)
    return float(np.dot(flat, flat))
