"""Walk over an update: list every matrix that both models hold, and read its base and fine-tuned side in each thread."""

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
    """A matrix of the update: a whole tensor, or one part of a tensor whose parts are repaired separately.

    Attributes:
        pair: the tensor in BASE and in FINETUNED.
        part: the part of it, such as one expert of a stack; None for the whole tensor.
    """

    pair: TensorPair
    part: Submatrix | None = None

    @property
    def name(self) -> str:
        """The name of the tensor, followed by the label of the part if there is one."""
        return self.pair.name if self.part is None else self.pair.name + self.part.label

    @property
    def rows(self) -> int:
        """How many rows both sides have. A tensor that is not a matrix is read as a single column of all its entries."""
        if self.part is not None:
            return self.part.rows
        return self.pair.rows if self.pair.is_matrix else StoredMatrix.view_shape(self.pair.finetuned)[0]


def items_of(pairs: Iterable[TensorPair]) -> list[MatrixItem]:
    """List the matrices of all pairs whose action is "filter", in the order of the pairs."""
    return [MatrixItem(pair, part) for pair in pairs if pair.action == "filter" for part in pair.submatrices or (None,)]


def pair_flops(pair: TensorPair) -> float:
    """How many floating-point operations it takes to filter one tensor: 2·m·n·min(m, n), as for one matrix product."""
    if pair.action != "filter" or not pair.is_matrix:
        return 0.0
    return sum(2.0 * m * n * min(m, n) for m, n in pair.shapes)


def costliest_first(items: Iterable[MatrixItem]) -> list[MatrixItem]:
    """Sort matrices by cost, the largest first, so that no worker begins a large one when the others are nearly done."""
    return sorted(items, key=lambda item: (-pair_flops(item.pair), item.name))


class TensorSource(Protocol):
    """A place from which the tensors of one model are read, such as a checkpoint or a state dict."""

    def matrix(self, tensor: StoredTensor, buffers: Buffers, use: str) -> Matrix:
        """Open a tensor as a matrix, which is read through the buffer named `use`."""


@dataclass(frozen=True)
class CheckpointTensors:
    """The tensors of an open checkpoint; an implementation of `TensorSource`."""

    checkpoint: Checkpoint

    def matrix(self, tensor: StoredTensor, buffers: Buffers, use: str) -> StoredMatrix:
        """See `TensorSource.matrix`."""
        return StoredMatrix(self.checkpoint, tensor, buffers, use)


class SidesReader:
    """Opens the base and the fine-tuned side of a tensor, or of a part of it. Each thread reads into its own memory.

    Args:
        base: the tensors of BASE.
        finetuned: the tensors of FINETUNED.
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
        """The fine-tuned side of a tensor. Every tensor has one, but not every tensor has a base side."""
        return self._finetuned.matrix(pair.finetuned, self.buffers(), "finetuned")

    def sides(self, item: MatrixItem) -> tuple[Matrix, Matrix]:
        """The base and the fine-tuned side of a matrix."""
        pair = item.pair
        if pair.base is None:
            raise AssertionError(f"{pair.name} has no base")
        base = self._base.matrix(pair.base, self.buffers(), "base")
        sides = base, self.finetuned(pair)
        return sides if item.part is None else part_of(sides, item.part, self.buffers())


def part_of(sides: tuple[Matrix, Matrix], part: Submatrix, buffers: Buffers) -> tuple[Matrix, Matrix]:
    """Cut one part out of both sides of a tensor; the base side comes first."""
    return (
        SubMatrix(sides[0], part.base_rows, part.columns, buffers, "base-part"),
        SubMatrix(sides[1], part.finetuned_rows, part.columns, buffers, "finetuned-part"),
    )
