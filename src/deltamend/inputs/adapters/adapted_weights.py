"""Weights with an adapter merged into them, computed in float64 as they are read; each is a `ComputedTensor`."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np

from deltamend.checkpoint.checkpoint_folder import Array, Checkpoint, StoredTensor
from deltamend.inputs.adapters.entry_ranges import Rectangle, cut_into_rectangles
from deltamend.inputs.adapters.peft_config import Removed

_HELD = 8
_ENTRIES_AT_A_TIME = 1 << 20


@dataclass(eq=False)
class RecentArrays:
    """The arrays that were used last; rows of one matrix are asked for many times in a row."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    held: OrderedDict[tuple[str, str], tuple[Array, ...]] = field(default_factory=OrderedDict)

    def get(self, what: str, of: str, make: Callable[[], tuple[Array, ...]]) -> tuple[Array, ...]:
        """The arrays of a name, made where they are not held."""
        key = what, of
        with self.lock:
            if (found := self.held.get(key)) is not None:
                self.held.move_to_end(key)
                return found
        made = make()
        with self.lock:
            self.held[key] = made
            while sum(name == what for name, _ in self.held) > _HELD:
                del self.held[next(held for held in self.held if held[0] == what)]
        return made


@dataclass(frozen=True, eq=False)
class LowRankUpdate:
    """scaling·B·A, the update of one matrix or of a stack of matrices.

    Attributes:
        adapter: holds the factors.
        a: A, shape (r, inputs), for a convolution (r, inputs, *kernel); of a stack of E matrices (E·r, inputs), matrix by
            matrix.
        b: B, shape (outputs, r), for a convolution (outputs, r, 1, …); of a stack (outputs, r·E), where the columns of one
            matrix are E apart.
        scaling: the factor on the product.
        swapped: whether the weight is stored as (inputs, outputs), so that the update is Aᵀ·Bᵀ.
        experts: E; 1 for a matrix that is no stack.
        expert: the one of them that is meant; None for all.
        outputs: the first and the last of B's rows that are meant, half open; None for all.
        diagonal: a factor for each of the r columns of B, shape (r,); None for 1.
        blocks: how many blocks lie on the diagonal of A and of B, where only the blocks are stored; 1 where it is whole.
    """

    adapter: Checkpoint
    a: StoredTensor
    b: StoredTensor
    scaling: float
    swapped: bool = False
    experts: int = 1
    expert: int | None = None
    outputs: tuple[int, int] | None = None
    diagonal: StoredTensor | None = None
    blocks: tuple[int, int] = (1, 1)

    @property
    def rank(self) -> int:
        """The r of both factors."""
        return self.a.shape[0] // self.experts

    def factors(self, cache: RecentArrays) -> tuple[Array, Array]:
        """Left (count, rows, r) and right (count, r, columns), float64, whose products are the update of each matrix."""
        a = _diagonal_blocks(self._stored(self.a, cache), self.blocks[0])
        b = _diagonal_blocks(self._stored(self.b, cache), self.blocks[1])
        if self.diagonal is not None:
            b = b * self._stored(self.diagonal, cache).reshape(1, -1)
        a = a.reshape(self.experts, self.rank, a.shape[1])
        b = b.reshape(b.shape[0], self.rank, self.experts).transpose(2, 0, 1)
        if self.expert is not None:
            a, b = a[self.expert : self.expert + 1], b[self.expert : self.expert + 1]
        if self.outputs is not None:
            b = b[:, slice(*self.outputs)]
        left, right = (a.transpose(0, 2, 1), b.transpose(0, 2, 1)) if self.swapped else (b, a)
        return np.ascontiguousarray(left) * self.scaling, np.ascontiguousarray(right)

    def _stored(self, factor: StoredTensor, cache: RecentArrays) -> Array:
        """A stored factor as a matrix, float64."""

        def read() -> tuple[Array, ...]:
            values = self.adapter.values(factor, 0, factor.elements).astype(np.float64)
            return (values.reshape(factor.shape[0], -1),)

        # Each matrix of a stack that is stored matrix by matrix needs its part of the same factors.
        return read()[0] if self.expert is None else cache.get("stored", factor.name, read)[0]


def _diagonal_blocks(stored: Array, count: int) -> Array:
    """The block-diagonal matrix whose blocks are stored one below the other."""
    if count == 1:
        return stored
    height, width = stored.shape[0] // count, stored.shape[1]
    whole = np.zeros((stored.shape[0], width * count))
    for number in range(count):
        rows = slice(number * height, (number + 1) * height)
        whole[rows, number * width : (number + 1) * width] = stored[rows]
    return whole


@dataclass(frozen=True, eq=False)
class AdaptedWeight:
    """W + scaling·B·A; with a magnitude m, as in DoRA, m/‖W + scaling·B·A‖ times that. Float64.

    In this order: the update is the product of the factors in float64, with the scaling on the left one; it is added to W;
    norms are those of whole rows (or columns) of the sum; the sum is multiplied by m over its norm. Nothing is rounded
    until the weight is written.

    Attributes:
        checkpoint: holds W.
        weight: W.
        shape: how W is read: (count, rows, columns), where count is 1 for all but a stack of matrices.
        update: scaling·B·A.
        cache: shared by all weights of one adapter.
        removed: what the start of the adapter took out of W, which is taken out before the update is added.
        magnitude: m, one entry for each output; None without DoRA.
    """

    checkpoint: Checkpoint
    weight: StoredTensor
    shape: tuple[int, int, int]
    update: LowRankUpdate
    cache: RecentArrays
    removed: Removed | None = None
    magnitude: StoredTensor | None = None

    @property
    def rank(self) -> int | None:
        """The largest that the rank of the difference to W can be by construction; None where it can be full."""
        if self.magnitude is not None:
            return None
        return self.update.rank * (1 if self.removed is None else 2)

    def read_into(self, start: int, stop: int, out: Array) -> None:
        """See `ComputedTensor.read_into`."""
        self._sum_into(start, stop, out)
        if self.magnitude is None:
            return
        scale = self.cache.get("scale", self.weight.name, self._scale)[0]
        for values, part in self._parts(start, stop, out):
            if self.update.swapped:
                values *= scale[part.first_column : part.last_column]
            else:
                values *= scale[part.first_row : part.last_row, None]

    def _sum_into(self, start: int, stop: int, out: Array) -> None:
        """W + scaling·B·A, without the magnitude."""
        out[:] = self.checkpoint.values(self.weight, start, stop)
        left, right = self.cache.get("factors", self.weight.name, self._factors)
        rows = self.shape[1]
        for values, part in self._parts(start, stop, out):
            matrix, first = divmod(part.first_row, rows)
            inside = slice(first, first + part.shape[0])
            values += left[matrix, inside] @ right[matrix][:, part.first_column : part.last_column]

    def _parts(self, start: int, stop: int, out: Array) -> Iterator[tuple[Array, Rectangle]]:
        """The entries [start, stop) as rectangles that each lie in one matrix, as views of `out`."""
        _, rows, columns = self.shape
        done = 0
        for part in cut_into_rectangles(start, stop, columns):
            row = part.first_row
            while row < part.last_row:
                last = min(part.last_row, (row // rows + 1) * rows)
                inner = part._replace(first_row=row, last_row=last)
                size = inner.shape[0] * inner.shape[1]
                yield out[done : done + size].reshape(inner.shape), inner
                done, row = done + size, last

    def _factors(self) -> tuple[Array, ...]:
        left, right = self.update.factors(self.cache)
        if self.removed is None:
            return left, right
        taken, axes = self._taken_by_start(self.removed)
        return np.concatenate([left, -taken[None]], axis=2), np.concatenate([right, axes[None]], axis=1)

    def _taken_by_start(self, removed: Removed) -> tuple[Array, Array]:
        """The factors of what the start of the adapter took out of W; W is in memory while they are found."""
        from scipy.linalg import eigh, qr

        _, rows, columns = self.shape
        whole = self.checkpoint.values(self.weight, 0, self.weight.elements).astype(np.float64).reshape(rows, columns)
        rank = self.update.rank
        if removed == "first columns":
            basis = qr(whole[:, :rank], mode="economic")[0]
            return basis * self.update.scaling, basis.T @ whole
        wide = rows <= columns
        side = min(rows, columns)
        chosen = (side - rank, side - 1) if removed == "largest" else (0, rank - 1)
        _, vectors = eigh(whole @ whole.T if wide else whole.T @ whole, subset_by_index=chosen)
        return (vectors, vectors.T @ whole) if wide else (whole @ vectors, vectors.T)

    def _scale(self) -> tuple[Array, ...]:
        """The magnitude over the norm of each row of the sum; over the norm of each column where W is stored as (inputs, outputs)."""
        if self.magnitude is None:
            raise AssertionError(f"{self.weight.name} has no magnitude")
        _, rows, columns = self.shape
        squares = np.zeros(columns if self.update.swapped else rows)
        step = max(1, _ENTRIES_AT_A_TIME // max(1, columns))
        for first in range(0, rows, step):
            last = min(rows, first + step)
            block = np.empty((last - first) * columns)
            self._sum_into(first * columns, last * columns, block)
            entries = np.square(block, out=block).reshape(-1, columns)
            if self.update.swapped:
                squares += entries.sum(axis=0)
            else:
                squares[first:last] = entries.sum(axis=1)
        magnitude = self.update.adapter.values(self.magnitude, 0, self.magnitude.elements).astype(np.float64)
        with np.errstate(divide="ignore", invalid="ignore"):  # a row of zeros gives NaN, which is found and named later
            return (magnitude / np.sqrt(squares),)


@dataclass(frozen=True, eq=False)
class AdaptedBias:
    """b + scaling·(the bias of B), float64."""

    checkpoint: Checkpoint
    bias: StoredTensor
    adapter: Checkpoint
    added: StoredTensor
    scaling: float

    def read_into(self, start: int, stop: int, out: Array) -> None:
        """See `ComputedTensor.read_into`."""
        out[:] = self.checkpoint.values(self.bias, start, stop)
        out += self.adapter.values(self.added, start, stop).astype(np.float64) * self.scaling


@dataclass(frozen=True, eq=False)
class WithNewRows:
    """An embedding in which some rows are the adapter's.

    Attributes:
        checkpoint: holds the embedding.
        embedding: shape (vocabulary, width).
        adapter: holds the new rows.
        new: shape (count, width).
        rows: which row of the embedding each of them is; of a row that is named twice, the last counts.
    """

    checkpoint: Checkpoint
    embedding: StoredTensor
    adapter: Checkpoint
    new: StoredTensor
    rows: tuple[int, ...]

    def read_into(self, start: int, stop: int, out: Array) -> None:
        """See `ComputedTensor.read_into`."""
        out[:] = self.checkpoint.values(self.embedding, start, stop)
        width = self.embedding.shape[1]
        for number, row in enumerate(self.rows):
            first, last = max(start, row * width), min(stop, (row + 1) * width)
            if first < last:
                offset = (number - row) * width
                out[first - start : last - start] = self.adapter.values(self.new, first + offset, last + offset)
