"""The delta of two stored matrices, read in blocks: where the checkpoint room meets the spectrum room."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

from deltamend.checkpoint.dtypes import TORCH_DTYPES
from deltamend.checkpoint.open import Checkpoint, StoredTensor
from deltamend.spectrum.blocks import Block, FloatArray
from deltamend.spectrum.eigen import Workspace

CHUNK_ELEMENTS = 1 << 18
"""Entries handled at a time by elementwise work: 1 MiB in fp32, which stays in a core's second-level cache."""

BLOCK_ELEMENTS = 1 << 24
"""Entries of a delta held in memory at a time: 64 MiB in fp32. Larger matrices are read in blocks, twice."""


class Matrix(Protocol):
    """A matrix that can be read in part, in its stored dtype."""

    @property
    def shape(self) -> tuple[int, int]:
        """(rows, columns)."""

    @property
    def dtype(self) -> torch.dtype:
        """The stored dtype."""

    def rows(self, start: int, stop: int) -> torch.Tensor:
        """Rows start:stop, contiguous, shape (stop − start, columns). May be a buffer that the next call overwrites."""

    def columns(self, start: int, stop: int) -> torch.Tensor:
        """Columns start:stop, contiguous, shape (rows, stop − start). May be a buffer that the next call overwrites."""


_Part = Callable[[Matrix], torch.Tensor]
"""Reads the same part of any matrix."""


class Buffers:
    """Memory that one thread uses again and again; the first touch of fresh memory costs more than the arithmetic."""

    def __init__(self) -> None:
        self.workspace = Workspace()
        self._held: dict[str, torch.Tensor] = {}

    def get(self, use: str, elements: int, dtype: torch.dtype) -> torch.Tensor:
        """A flat tensor of `elements` entries with undefined content, valid until `use` is asked for again."""
        nbytes = elements * dtype.itemsize
        held = self._held.get(use)
        if held is None or held.numel() < nbytes:
            held = self._held[use] = torch.empty(nbytes, dtype=torch.uint8)
        return held[:nbytes].view(dtype)


class StoredMatrix:
    """A matrix in a checkpoint file.

    Args:
        checkpoint: where it is.
        tensor: which one; a tensor that is not two-dimensional is seen as one column (see `view_shape`).
        buffers: memory to read into.
        use: the name of the buffer, so that two matrices do not share one.
    """

    def __init__(self, checkpoint: Checkpoint, tensor: StoredTensor, buffers: Buffers, use: str) -> None:
        self.shape = self.view_shape(tensor)
        self.dtype = TORCH_DTYPES[tensor.dtype]
        self._checkpoint, self._tensor, self._buffers, self._use = checkpoint, tensor, buffers, use

    @staticmethod
    def view_shape(tensor: StoredTensor) -> tuple[int, int]:
        """(rows, columns) a stored tensor is read as: a matrix as it is, anything else as one column."""
        return (tensor.shape[0], tensor.shape[1]) if len(tensor.shape) == 2 else (tensor.elements, 1)

    def rows(self, start: int, stop: int) -> torch.Tensor:
        """See `Matrix.rows`."""
        columns = self.shape[1]
        out = self._buffers.get(self._use, (stop - start) * columns, self.dtype)
        self._read(start * columns, out)
        return out.view(stop - start, columns)

    def columns(self, start: int, stop: int) -> torch.Tensor:
        """See `Matrix.columns`; one short read for each row."""
        rows, columns = self.shape
        out = self._buffers.get(self._use, rows * (stop - start), self.dtype).view(rows, stop - start)
        for row in range(rows):
            self._read(row * columns + start, out[row])
        return out

    def _read(self, element: int, out: torch.Tensor) -> None:
        self._checkpoint.read_into(self._tensor, element * self.dtype.itemsize, bytes_of(out))


class MemoryMatrix:
    """A matrix in memory: a contiguous or strided tensor on any device; one that is not a matrix is seen as one column."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self._tensor = tensor if tensor.ndim == 2 else tensor.reshape(-1, 1)
        self.shape = (self._tensor.shape[0], self._tensor.shape[1])
        self.dtype = tensor.dtype

    def rows(self, start: int, stop: int) -> torch.Tensor:
        """See `Matrix.rows`."""
        return self._tensor[start:stop].contiguous().cpu()

    def columns(self, start: int, stop: int) -> torch.Tensor:
        """See `Matrix.columns`."""
        return self._tensor[:, start:stop].contiguous().cpu()


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
        self.dtype = torch.float64 if torch.float64 in (base.dtype, finetuned.dtype) else torch.float32
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

    def _block(self, start: int, stop: int, use: str, fill: Callable[[_Part, torch.Tensor], None]) -> FloatArray:
        """One block, filled a few rows at a time where its rows are whole."""
        rows, columns = self.shape
        if self._by_rows or stop - start == columns:
            first_row, height = (start, stop - start) if self._by_rows else (0, rows)
            out = self._buffers.get(use, height * columns, self.dtype).view(height, columns)
            for first, last in row_chunks((height, columns)):
                span = (first_row + first, first_row + last)
                fill(lambda matrix, span=span: matrix.rows(*span), out[first:last])  # type: ignore[misc]
        else:
            out = self._buffers.get(use, rows * (stop - start), self.dtype).view(rows, stop - start)
            fill(lambda matrix: matrix.columns(start, stop)[:rows], out)
        array: FloatArray = out.numpy()
        return array

    def _subtract(self, part: _Part, out: torch.Tensor) -> None:
        torch.sub(part(self._finetuned).to(self.dtype), part(self._base).to(self.dtype), out=out)

    def _copy_base(self, part: _Part, out: torch.Tensor) -> None:
        out.copy_(part(self._base))


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
    step = max(1, CHUNK_ELEMENTS // max(1, columns))
    for start in range(0, rows, step):
        yield start, min(rows, start + step)


def bytes_of(tensor: torch.Tensor) -> memoryview:
    """The bytes of a contiguous CPU tensor, without a copy."""
    return tensor.reshape(-1).view(torch.uint8).numpy().data


def same_bytes(first: torch.Tensor, second: torch.Tensor) -> bool:
    """Whether two contiguous tensors of one dtype hold the same bytes; NaN equals itself, and 0 differs from −0."""
    # numpy compares bytes 30 times faster than memoryview does, and 3 times faster than torch.equal.
    return np.array_equal(first.reshape(-1).view(torch.uint8).numpy(), second.reshape(-1).view(torch.uint8).numpy())


def all_finite(values: torch.Tensor) -> bool:
    """Whether a tensor holds neither NaN nor Inf; integers always do."""
    if not values.is_floating_point() or values.numel() == 0:
        return True
    # 20 times faster than isfinite().all(): the extremes are NaN when any entry is, and infinite when any entry is.
    return all(math.isfinite(float(extreme)) for extreme in torch.aminmax(values))


def norm_squared(values: torch.Tensor) -> float:
    """Sum of squares of a chunk in its own precision; good to about 1e-6 up to CHUNK_ELEMENTS entries in fp32."""
    flat = values.reshape(-1)
    return float(torch.dot(flat, flat))
