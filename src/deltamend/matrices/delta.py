"""The delta of two matrices, W_ft − W_base, read in blocks, and the base weights in the same blocks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from deltamend.matrices.buffers import Array, Buffers, row_chunks, same_bytes
from deltamend.matrices.views import Matrix
from deltamend.spectrum.blocks import Block, FloatArray

BLOCK_ELEMENTS = 1 << 24
"""The most entries of a delta that are held in memory at a time: 64 MiB in fp32. Larger matrices are read in blocks, twice."""

_ReadPart = Callable[[Matrix], Array]
"""Reads one particular part of any matrix that it is given."""


class DeltaBlocks:
    """Δ = W_ft − W_base over the first rows of two matrices; an implementation of `spectrum.Blocks`.

    The difference is formed in fp32, or in fp64 if one of the matrices is stored in fp64. A small delta is read once and kept
    in memory; its block may then be overwritten by the last reader. A larger one is read again in every iteration.

    Args:
        base: shape (≥ rows, n).
        finetuned: shape (≥ rows, n).
        rows: how many rows to compare.
        buffers: memory to read into.
        whole_rows: cut a large delta into blocks of whole rows; otherwise it is cut along its longer side.
        block_elements: the most entries of a block; None for `BLOCK_ELEMENTS`.
    """

    def __init__(
        self,
        base: Matrix,
        finetuned: Matrix,
        rows: int,
        buffers: Buffers,
        *,
        whole_rows: bool = False,
        block_elements: int | None = None,
    ) -> None:
        self.shape = (rows, base.shape[1])
        self.dtype: np.dtype[Any] = np.result_type(
            np.float32, *(dtype for dtype in (base.dtype, finetuned.dtype) if dtype == np.float64)
        )
        self._base, self._finetuned, self._buffers = base, finetuned, buffers
        self._by_rows = whole_rows or rows > base.shape[1]
        self._length, across = self.shape if self._by_rows else self.shape[::-1]
        self._width = max(1, (block_elements or BLOCK_ELEMENTS) // across)
        self._held: FloatArray | None = None

    @property
    def in_one_block(self) -> bool:
        """Whether the delta is read once and kept in memory."""
        return self._width >= self._length

    def is_zero(self) -> bool:
        """Whether both matrices hold the same bytes. Reading ends at the first difference."""
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
        """The part of W_base at the place of `Block(start, stop, …)`, in the dtype of Δ. The next call overwrites it."""
        return self._block(start, stop, "base-block", self._copy_base)

    def _block(self, start: int, stop: int, use: str, fill: Callable[[_ReadPart, Array], None]) -> FloatArray:
        """Form one block; if it is made of whole rows, a few rows at a time."""
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

    def _subtract(self, part: _ReadPart, out: Array) -> None:
        np.copyto(out, part(self._finetuned))
        base = part(self._base)
        for first, last in row_chunks((out.shape[0], out.shape[1])):
            subtrahend = self._buffers.get("subtrahend", (last - first, out.shape[1]), self.dtype)
            np.copyto(subtrahend, base[first:last])
            with np.errstate(over="ignore", invalid="ignore"):  # the norm of Δ shows an overflow, and is checked
                out[first:last] -= subtrahend

    def _copy_base(self, part: _ReadPart, out: Array) -> None:
        np.copyto(out, part(self._base))


@dataclass(frozen=True)
class BaseBlocks:
    """The base weights of a delta; an implementation of `methods.Weights`."""

    delta: DeltaBlocks

    @property
    def shape(self) -> tuple[int, int]:
        """The shape of the delta."""
        return self.delta.shape

    def read(self, start: int, stop: int) -> FloatArray:
        """See `Weights.read`."""
        return self.delta.base_block(start, stop)
