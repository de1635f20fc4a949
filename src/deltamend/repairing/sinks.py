"""The protocol of sinks, which receive a repaired matrix, and the norms that are measured while it is written."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from deltamend.inputs.row_spans import RowSpans
from deltamend.matrices.buffers import Array
from deltamend.matrices.delta import DeltaBlocks
from deltamend.methods.method import KeptDelta


class Sink(Protocol):
    """Receives a repaired matrix, piece by piece, in the output dtype."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """The output dtype."""

    def write_rows(self, start: int, values: Array) -> None:
        """Store whole rows, the first of which is row `start`; `values` is contiguous and of the output dtype."""

    def write_columns(self, start: int, values: Array, row: int = 0) -> None:
        """Store a piece whose first entry is in row `row` and column `start`; `values` is of the output dtype."""


@dataclass
class Norms:
    """Running sums over the entries of one matrix.

    Attributes:
        delta: ‖Δ‖².
        kept: ‖Δ*‖².
        removed: ‖Δ − Δ*‖²; None if low-rank factors are written in place of the entries.
        realised: ‖cast(W*) − W_base‖², the update that the written weights hold.
        lost: ‖cast(W*) − W_base − Δ*‖², the part of it that is due to rounding.
        unmoved: number of entries in which the written weight equals the base; None as for `removed`.
    """

    delta: float = 0.0
    kept: float = 0.0
    removed: float | None = 0.0
    realised: float = 0.0
    lost: float = 0.0
    unmoved: int | None = 0


class FactorSink(Sink, Protocol):
    """A sink that can store the factors of a low-rank Δ* in place of the matrix, and nothing at all if Δ* = 0."""

    def take_factors(self, delta: DeltaBlocks, kept: KeptDelta, update_rank: int | None = None) -> Norms | None:
        """Store the factors and return their norms; return None if the sink needs the matrix itself after all.

        Args:
            delta: Δ of the matrix.
            kept: what the method keeps of it.
            update_rank: the rank of Δ, where it is an adapter's, and the method does not raise it.
        """


class PartOfSink:
    """A sink for one part of a tensor, which writes to the part's rows and columns in the sink of the whole tensor.

    Args:
        sink: the sink of the whole tensor.
        spans: the spans of rows (start, stop) that make up the part.
        columns: the span of its columns; None for all of them.
    """

    def __init__(self, sink: Sink, spans: tuple[tuple[int, int], ...], columns: tuple[int, int] | None) -> None:
        self._sink, self._spans, self._columns = sink, RowSpans(spans), columns
        self.dtype = sink.dtype

    def write_rows(self, start: int, values: Array) -> None:
        """See `Sink.write_rows`."""
        for piece in self._spans.pieces(start, start + values.shape[0]):
            part = values[piece.start : piece.stop]
            if self._columns is None:
                self._sink.write_rows(piece.source[0], part)
            else:
                self._sink.write_columns(self._columns[0], part, piece.source[0])

    def write_columns(self, start: int, values: Array, row: int = 0) -> None:
        """See `Sink.write_columns`."""
        first = start if self._columns is None else start + self._columns[0]
        for piece in self._spans.pieces(row, row + values.shape[0]):
            self._sink.write_columns(first, values[piece.start : piece.stop], piece.source[0])
