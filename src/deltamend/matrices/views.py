"""Matrices that can be read in parts: from a checkpoint file, from memory, or as rows and columns of a larger matrix."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np

from deltamend.checkpoint.checkpoint_folder import Checkpoint, StoredTensor
from deltamend.checkpoint.dtypes import NUMPY_DTYPES
from deltamend.inputs.model_layout import matrix_view, parameter_by_name
from deltamend.inputs.row_spans import RowSpans
from deltamend.matrices.buffers import Array, Buffers, bytes_of, row_chunks


class Matrix(Protocol):
    """A matrix that can be read in parts, in its stored dtype."""

    @property
    def shape(self) -> tuple[int, int]:
        """(rows, columns)."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """The stored dtype, one of `dtypes.NUMPY_DTYPES`."""

    def rows(self, start: int, stop: int) -> Array:
        """Rows start:stop as a contiguous array of shape (stop − start, columns), which the next call may overwrite."""

    def columns(self, start: int, stop: int, rows: tuple[int, int] | None = None) -> Array:
        """Columns start:stop as a contiguous array, which the next call may overwrite.

        Args:
            start: the first column.
            stop: the column after the last.
            rows: the first row and the row after the last; None for all rows.
        """

    def squared_errors(self, start: int, stop: int) -> Array | None:
        """The expected squared rounding error of each entry of rows start:stop, fp32; None if it is not quantised."""


class StoredMatrix:
    """A matrix in a checkpoint file.

    Args:
        checkpoint: the checkpoint.
        tensor: the tensor in it; `view_shape` says how it is read as a matrix.
        buffers: memory to read into.
        use: the name of the buffer; two matrices that are in use at the same time need different names.
    """

    def __init__(self, checkpoint: Checkpoint, tensor: StoredTensor, buffers: Buffers, use: str) -> None:
        self.shape = self.view_shape(tensor)
        self.dtype = NUMPY_DTYPES[tensor.dtype]
        self._checkpoint, self._tensor, self._buffers, self._use = checkpoint, tensor, buffers, use

    @staticmethod
    def view_shape(tensor: StoredTensor) -> tuple[int, int]:
        """The (rows, columns) that a stored tensor is read as: its `view`, or what its name and shape say; one column if it is no matrix."""
        if tensor.view is not None:
            return tensor.view
        return matrix_view(parameter_by_name(tensor.name, tensor.shape), tensor.shape) or (tensor.elements, 1)

    def rows(self, start: int, stop: int) -> Array:
        """See `Matrix.rows`."""
        columns = self.shape[1]
        out = self._buffers.get(self._use, (stop - start, columns), self.dtype)
        self._read(start * columns, out)
        return out

    def columns(self, start: int, stop: int, rows: tuple[int, int] | None = None) -> Array:
        """See `Matrix.columns`. Each row takes one short read; of a computed tensor, whole rows are computed, many at a time."""
        first, last = rows or (0, self.shape[0])
        out = self._buffers.get(self._use, (last - first, stop - start), self.dtype)
        if self._checkpoint.is_computed(self._tensor):
            for top, bottom in row_chunks((last - first, self.shape[1])):
                whole = self._buffers.get(f"{self._use}-whole-rows", (bottom - top, self.shape[1]), self.dtype)
                self._read((first + top) * self.shape[1], whole)
                out[top:bottom] = whole[:, start:stop]
            return out
        for row in range(first, last):
            self._read(row * self.shape[1] + start, out[row - first])
        return out

    def squared_errors(self, start: int, stop: int) -> Array | None:
        """See `Matrix.squared_errors`."""
        columns = self.shape[1]
        found = self._checkpoint.squared_errors(self._tensor, start * columns, stop * columns)
        return None if found is None else found.reshape(-1, columns)

    def _read(self, element: int, out: Array) -> None:
        self._checkpoint.read_into(self._tensor, element * self.dtype.itemsize, bytes_of(out))


class MemoryMatrix:
    """A matrix in memory. An array that is not two-dimensional is read as one column."""

    def __init__(self, array: Array) -> None:
        self._array = array if array.ndim == 2 else array.reshape(-1, 1)
        self.shape = (self._array.shape[0], self._array.shape[1])
        self.dtype = array.dtype

    def rows(self, start: int, stop: int) -> Array:
        """See `Matrix.rows`."""
        return np.ascontiguousarray(self._array[start:stop])

    def columns(self, start: int, stop: int, rows: tuple[int, int] | None = None) -> Array:
        """See `Matrix.columns`."""
        first, last = rows or (0, self.shape[0])
        return np.ascontiguousarray(self._array[first:last, start:stop])

    def squared_errors(self, start: int, stop: int) -> Array | None:  # noqa: ARG002 - what is in memory is not quantised
        """See `Matrix.squared_errors`."""
        return None


class SubMatrix:
    """A submatrix: some spans of the rows of a matrix, one after another, and a span of its columns.

    Args:
        matrix: the whole matrix.
        spans: spans (start, stop) of its rows; `stop` is not included.
        columns: the span of its columns; None for all of them.
        buffers: memory to gather the values in.
        use: the name of the buffer.
    """

    def __init__(
        self,
        matrix: Matrix,
        spans: tuple[tuple[int, int], ...],
        columns: tuple[int, int] | None,
        buffers: Buffers,
        use: str,
    ) -> None:
        self._matrix, self._spans, self._buffers, self._use = matrix, RowSpans(spans), buffers, use
        self._first, last = columns or (0, matrix.shape[1])
        self._whole_rows = columns is None
        self.shape = (self._spans.rows, last - self._first)
        self.dtype = matrix.dtype

    def rows(self, start: int, stop: int) -> Array:
        """See `Matrix.rows`."""
        pieces = list(self._spans.pieces(start, stop))
        if len(pieces) == 1 and self._whole_rows:
            return self._matrix.rows(*pieces[0].source)
        out = self._buffers.get(self._use, (stop - start, self.shape[1]), self.dtype)
        for piece in pieces:
            values = self._matrix.rows(*piece.source)
            out[piece.start : piece.stop] = values[:, self._first : self._first + self.shape[1]]
        return out

    def columns(self, start: int, stop: int, rows: tuple[int, int] | None = None) -> Array:
        """See `Matrix.columns`."""
        first, last = rows or (0, self.shape[0])
        out = self._buffers.get(self._use, (last - first, stop - start), self.dtype)
        for piece in self._spans.pieces(first, last):
            out[piece.start : piece.stop] = self._matrix.columns(self._first + start, self._first + stop, piece.source)
        return out

    def squared_errors(self, start: int, stop: int) -> Array | None:
        """See `Matrix.squared_errors`."""
        found = [self._matrix.squared_errors(*piece.source) for piece in self._spans.pieces(start, stop)]
        known = [errors[:, self._first : self._first + self.shape[1]] for errors in found if errors is not None]
        return np.concatenate(known) if known else None
