"""The delta of two matrices, W_ft − W_base, read in blocks, and the base weights beside it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from deltamend.matrices.buffers import Array, Buffers, row_chunks, same_bytes
from deltamend.matrices.views import Matrix
from deltamend.spectrum.blocks import Block, FloatArray

BLOCK_ELEMENTS = 1 << 24
"""Entries of a delta held in memory at a time: 64 MiB in fp32. Larger matrices are read in blocks, twice."""

_ReadPart = Callable[[Matrix], Array]
"""Reads the same part of any matrix."""


class DeltaBlocks:
    """Δ = W_ft − W_base over the first `rows` rows, as `spectrum.Blocks`.

    Subtracted in fp32, or in fp64 when a side is stored in fp64. A delta of at most `block_elements` entries
    (None: `BLOCK_ELEMENTS`, as it stands when the delta is opened) is read once and held; a larger one is read again at every iteration, in blocks along its longer side, or of whole rows if
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

    def _block(self, start: int, stop: int, use: str, fill: Callable[[_ReadPart, Array], None]) -> FloatArray:
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

    def _subtract(self, part: _ReadPart, out: Array) -> None:
        np.copyto(out, part(self._finetuned))
        base = part(self._base)
        for first, last in row_chunks((out.shape[0], out.shape[1])):
            subtrahend = self._buffers.get("subtrahend", (last - first, out.shape[1]), self.dtype)
            np.copyto(subtrahend, base[first:last])
            with np.errstate(over="ignore", invalid="ignore"):  # whoever sums it up sees it, and says it in our words
                out[first:last] -= subtrahend

    def _copy_base(self, part: _ReadPart, out: Array) -> None:
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
