"""A quantised matrix whose codes are stored transposed; GPT-2's Conv1D, which bitsandbytes turns round before it packs."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from deltamend.checkpoint.checkpoint_folder import Array, QuantisedTensor

_ENTRIES_AT_ONCE = 1 << 20


@dataclass(frozen=True, eq=False)
class Transposed:
    """The transpose of a quantised matrix; an implementation of `MatrixRows`. All of it is dequantised for every read.

    Attributes:
        values: the matrix as it is stored.
        stored_shape: its (rows, columns).
    """

    values: QuantisedTensor
    stored_shape: tuple[int, int]

    @property
    def shape(self) -> tuple[int, int]:
        """See `MatrixRows.shape`."""
        return self.stored_shape[1], self.stored_shape[0]

    def rows(self, first: int, last: int) -> Array:
        """See `MatrixRows.rows`."""
        return self._columns_of_stored(first, last, errors=False)

    def squared_error_rows(self, first: int, last: int) -> Array:
        """See `MatrixRows.squared_error_rows`."""
        return self._columns_of_stored(first, last, errors=True)

    def _columns_of_stored(self, first: int, last: int, *, errors: bool) -> Array:
        rows, columns = self.stored_shape
        out = np.empty((last - first, rows), np.float32)
        step = max(1, _ENTRIES_AT_ONCE // columns)
        buffer = np.empty(min(step, rows) * columns, np.float32)
        for start in range(0, rows, step):
            stop = min(rows, start + step)
            span = (start * columns, stop * columns)
            if errors:
                values = self.values.squared_errors(*span)
            else:
                values = buffer[: span[1] - span[0]]
                self.values.read_into(*span, values)
            out[:, start:stop] = values.reshape(stop - start, columns)[:, first:last].T
        return out
