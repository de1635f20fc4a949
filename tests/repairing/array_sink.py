"""A sink that keeps the repaired matrix, for the tests."""

from __future__ import annotations

from typing import Any

import numpy as np


class ArraySink:
    """Keeps what is written; entries that are never written stay NaN."""

    def __init__(self, shape: tuple[int, int], dtype: Any = np.float32) -> None:
        self.dtype = np.dtype(dtype)
        self.array = np.full(shape, np.nan, self.dtype)

    def write_rows(self, start: int, values: np.ndarray) -> None:
        """See `Sink.write_rows`."""
        self.array[start : start + values.shape[0]] = values

    def write_columns(self, start: int, values: np.ndarray, row: int = 0) -> None:
        """See `Sink.write_columns`."""
        self.array[row : row + values.shape[0], start : start + values.shape[1]] = values
