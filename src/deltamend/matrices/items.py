"""The one walk over an update: every matrix that both models hold, with both of its sides opened in each thread's own memory."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

from deltamend.checkpoint.checkpoint_folder import Checkpoint, StoredTensor
from deltamend.inputs.pairing import Submatrix, TensorPair
from deltamend.matrices.buffers import Buffers
from deltamend.matrices.views import Matrix, StoredMatrix, SubMatrix


@dataclass(frozen=True)
class MatrixItem:
    """A matrix of the update: a tensor, or one of the parts that are repaired by themselves.

    Attributes:
        pair: the tensor on both sides.
        part: which part of it; None for all of it.
    """

    pair: TensorPair
    part: Submatrix | None = None

    @property
    def name(self) -> str:
        """The name of the tensor, followed by the label of the part."""
        return self.pair.name if self.part is None else self.pair.name + self.part.label

    @property
    def rows(self) -> int:
        """How many rows both sides hold; what is no matrix is read as one column, of all its entries."""
        if self.part is not None:
            return self.part.rows
        return self.pair.rows if self.pair.is_matrix else StoredMatrix.view_shape(self.pair.finetuned)[0]


def items_of(pairs: Iterable[TensorPair]) -> list[MatrixItem]:
    """Every matrix of those pairs that are to be filtered, in their order."""
    return [MatrixItem(pair, part) for pair in pairs if pair.action == "filter" for part in pair.submatrices or (None,)]


def pair_flops(pair: TensorPair) -> float:
    """Floating-point operations of filtering one pair: 2·m·n·min(m, n), one pass as long as a matrix product."""
    if pair.action != "filter" or not pair.is_matrix:
        return 0.0
    return sum(2.0 * m * n * min(m, n) for m, n in pair.shapes)


def costliest_first(items: Iterable[MatrixItem]) -> list[MatrixItem]:
    """The order in which workers take up matrices, so that none of them is left alone with a large one at the end."""
    return sorted(items, key=lambda item: (-pair_flops(item.pair), item.name))


class TensorSource(Protocol):
    """Where the tensors of one model are."""

    def matrix(self, tensor: StoredTensor, buffers: Buffers, use: str) -> Matrix:
        """A tensor as a matrix, read through the buffer of that name."""


@dataclass(frozen=True)
class CheckpointTensors:
    """The tensors of an open checkpoint, as `TensorSource`."""

    checkpoint: Checkpoint

    def matrix(self, tensor: StoredTensor, buffers: Buffers, use: str) -> StoredMatrix:
        """See `TensorSource.matrix`."""
        return StoredMatrix(self.checkpoint, tensor, buffers, use)


class SidesReader:
    """Opens both sides of a tensor, or of a part of it; each thread reads into memory of its own.

    Args:
        base: the tensors of BASE.
        finetuned: those of FINETUNED.
    """

    def __init__(self, base: TensorSource, finetuned: TensorSource) -> None:
        self._base, self._finetuned = base, finetuned
        self._local = threading.local()

    def buffers(self) -> Buffers:
        """The memory of the calling thread."""
        if not hasattr(self._local, "buffers"):
            self._local.buffers = Buffers()
        buffers: Buffers = self._local.buffers
        return buffers

    def finetuned(self, pair: TensorPair) -> Matrix:
        """The fine-tuned side of a tensor, which every tensor of the output has."""
        return self._finetuned.matrix(pair.finetuned, self.buffers(), "finetuned")

    def sides(self, item: MatrixItem) -> tuple[Matrix, Matrix]:
        """Base and fine-tuned side of a matrix."""
        pair = item.pair
        if pair.base is None:
            raise AssertionError(f"{pair.name} has no base")
        base = self._base.matrix(pair.base, self.buffers(), "base")
        sides = base, self.finetuned(pair)
        return sides if item.part is None else part_of(sides, item.part, self.buffers())


def part_of(sides: tuple[Matrix, Matrix], part: Submatrix, buffers: Buffers) -> tuple[Matrix, Matrix]:
    """The rows and columns of a part on both sides of a tensor, base first."""
    return (
        SubMatrix(sides[0], part.base_rows, part.columns, buffers, "base-part"),
        SubMatrix(sides[1], part.finetuned_rows, part.columns, buffers, "finetuned-part"),
    )
