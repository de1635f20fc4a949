"""The delta of two stored matrices, read in blocks: where the checkpoint room meets the spectrum room."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from deltamend.checkpoint.dtypes import NUMPY_DTYPES
from deltamend.checkpoint.open import Checkpoint, StoredTensor
from deltamend.inputs.pairing import matrix_view
from deltamend.inputs.row_spans import RowSpans
from deltamend.spectrum.blocks import Block, FloatArray
from deltamend.spectrum.eigen import Workspace

CHUNK_ELEMENTS = 1 << 18
"""Entries handled at a time by elementwise work: 1 MiB in fp32, which stays in a core's second-level cache."""

BLOCK_ELEMENTS = 1 << 24
"""Entries of a delta held in memory at a time: 64 MiB in fp32. Larger matrices are read in blocks, twice."""


Array = np.ndarray[Any, np.dtype[Any]]

_LINE = 64


class Matrix(Protocol):
    """A matrix that can be read in part, in its stored dtype."""

    @property
    def shape(self) -> tuple[int, int]:
        """(rows, columns)."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """The stored dtype, one of `dtypes.NUMPY_DTYPES`."""

    def rows(self, start: int, stop: int) -> Array:
        """Rows start:stop, contiguous, shape (stop − start, columns). May be a buffer that the next call overwrites."""

    def columns(self, start: int, stop: int, rows: tuple[int, int] | None = None) -> Array:
        """Columns start:stop of all or some neighbouring rows, contiguous. May be a buffer that the next call overwrites."""


_Part = Callable[[Matrix], Array]
"""Reads the same part of any matrix."""


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


class StoredMatrix:
    """A matrix in a checkpoint file.

    Args:
        checkpoint: where it is.
        tensor: which one, seen as `view_shape` says.
        buffers: memory to read into.
        use: the name of the buffer, so that two matrices do not share one.
    """

    def __init__(self, checkpoint: Checkpoint, tensor: StoredTensor, buffers: Buffers, use: str) -> None:
        self.shape = self.view_shape(tensor)
        self.dtype = NUMPY_DTYPES[tensor.dtype]
        self._checkpoint, self._tensor, self._buffers, self._use = checkpoint, tensor, buffers, use

    @staticmethod
    def view_shape(tensor: StoredTensor) -> tuple[int, int]:
        """(rows, columns) a stored tensor is read as: see `matrix_view`; what is no matrix as one column."""
        return matrix_view(tensor.name, tensor.shape) or (tensor.elements, 1)

    def rows(self, start: int, stop: int) -> Array:
        """See `Matrix.rows`."""
        columns = self.shape[1]
        out = self._buffers.get(self._use, (stop - start, columns), self.dtype)
        self._read(start * columns, out)
        return out

    def columns(self, start: int, stop: int, rows: tuple[int, int] | None = None) -> Array:
        """See `Matrix.columns`; one short read for each row."""
        first, last = rows or (0, self.shape[0])
        out = self._buffers.get(self._use, (last - first, stop - start), self.dtype)
        for row in range(first, last):
            self._read(row * self.shape[1] + start, out[row - first])
        return out

    def _read(self, element: int, out: Array) -> None:
        self._checkpoint.read_into(self._tensor, element * self.dtype.itemsize, bytes_of(out))


class MemoryMatrix:
    """A matrix in memory; an array that is not two-dimensional is seen as one column."""

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


class SubMatrix:
    """Some rows of a matrix, one span after another, and all or some neighbouring columns.

    Args:
        matrix: the whole.
        spans: rows, half open.
        columns: half open; None for all.
        buffers: memory to gather in.
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


class DeltaBlocks:
    """Δ = W_ft − W_base over the first `rows` rows, as `spectrum.Blocks`.

    Subtracted in fp32, or in fp64 when a side is stored in fp64. A delta of at most `block_elements` entries is read
    once and held; a larger one is read again at every iteration, in blocks along its longer side, or of whole rows if
    `whole_rows`. A held block may be overwritten by its reader, once; `Method.apply` only reads.
    """

    def __init__(
        self,
        base: Matrix,
        finetuned: Matrix,
        rows: int,
        buffers: Buffers,
        *,
        whole_rows: bool = False,
        block_elements: int = BLOCK_ELEMENTS,
    ) -> None:
        self.shape = (rows, base.shape[1])
        self.dtype: np.dtype[Any] = np.result_type(
            np.float32, *(dtype for dtype in (base.dtype, finetuned.dtype) if dtype == np.float64)
        )
        self._base, self._finetuned, self._buffers = base, finetuned, buffers
        self._by_rows = whole_rows or rows > base.shape[1]
        self._length, across = self.shape if self._by_rows else self.shape[::-1]
        self._width = max(1, block_elements // across)
        self._held: FloatArray | None = None

    @property
    def in_one_block(self) -> bool:
        """Whether it is read once and held."""
        return self._width >= self._length

    def is_zero(self) -> bool:
        """Whether both sides hold the same bytes; ends at the first difference."""
        if self._base.dtype != self._finetuned.dtype:
            return False
        ours, theirs = self._base, self._finetuned
        return all(same_bytes(ours.rows(*span), theirs.rows(*span)) for span in row_chunks(self.shape))

    def __iter__(self) -> Iterator[Block]:
        if self._held is not None:
            yield Block(0, self._length, self._held)
            return
        for start in range(0, self._length, self._width):
            stop = min(self._length, start + self._width)
            values = self._block(start, stop, "delta", self._subtract)
            if stop - start == self._length:
                self._held = values
            yield Block(start, stop, values)

    def base_block(self, start: int, stop: int) -> FloatArray:
        """W_base where `Block(start, stop, …)` is of Δ, in the dtype of Δ; a buffer that the next call overwrites."""
        return self._block(start, stop, "base-block", self._copy_base)

    def _block(self, start: int, stop: int, use: str, fill: Callable[[_Part, Array], None]) -> FloatArray:
        """One block, filled a few rows at a time where its rows are whole."""
        rows, columns = self.shape
        if self._by_rows or stop - start == columns:
            first_row, height = (start, stop - start) if self._by_rows else (0, rows)
            out = self._buffers.get(use, (height, columns), self.dtype)
            for first, last in row_chunks((height, columns)):
                span = (first_row + first, first_row + last)
                fill(lambda matrix, span=span: matrix.rows(*span), out[first:last])  # type: ignore[misc]
        else:
            out = self._buffers.get(use, (rows, stop - start), self.dtype)
            fill(lambda matrix: matrix.columns(start, stop)[:rows], out)
        return out

    def _subtract(self, part: _Part, out: Array) -> None:
        np.copyto(out, part(self._finetuned))
        base = part(self._base)
        for first, last in row_chunks((out.shape[0], out.shape[1])):
            subtrahend = self._buffers.get("subtrahend", (last - first, out.shape[1]), self.dtype)
            np.copyto(subtrahend, base[first:last])
            with np.errstate(over="ignore", invalid="ignore"):  # whoever sums it up sees it, and says it in our words
                out[first:last] -= subtrahend

    def _copy_base(self, part: _Part, out: Array) -> None:
        np.copyto(out, part(self._base))


@dataclass(frozen=True)
class BaseBlocks:
    """The base weights of a delta, as `methods.Weights`."""

    delta: DeltaBlocks

    @property
    def shape(self) -> tuple[int, int]:
        """That of the delta."""
        return self.delta.shape

    def read(self, start: int, stop: int) -> FloatArray:
        """See `Weights.read`."""
        return self.delta.base_block(start, stop)


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
