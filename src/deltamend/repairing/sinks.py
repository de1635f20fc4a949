"""Where a repaired matrix goes, and what is measured while it is written."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from deltamend.inputs.row_spans import RowSpans
from deltamend.matrices.buffers import Array
from deltamend.matrices.delta import DeltaBlocks
from deltamend.methods.method import KeptDelta


class Sink(Protocol):
    """Where the repaired matrix goes, in its output dtype."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """The output dtype."""

    def write_rows(self, start: int, values: Array) -> None:
        """Take rows from `start` on, contiguous, in the output dtype."""

    def write_columns(self, start: int, values: Array, row: int = 0) -> None:
        """Take columns from `start` on, of the rows from `row` on, in the output dtype."""


@dataclass
class Norms:
    """Running sums over the entries of one matrix.

    `unmoved` and `removed`, ‖Δ − Δ*‖², are None where the entries themselves are not written.
    """

    delta: float = 0.0
    kept: float = 0.0
    removed: float | None = 0.0
    realised: float = 0.0
    lost: float = 0.0
    unmoved: int | None = 0


class FactorSink(Sink, Protocol):
    """A sink that would rather have the factors of a low-rank Δ*, or nothing where Δ* = 0, than the matrix."""

    def take_factors(self, delta: DeltaBlocks, kept: KeptDelta) -> Norms | None:
        """Write the factors and measure them; None where the rows of the matrix are to be written after all."""


class PartOfSink:
    """The place of one part in the sink of the whole tensor, as `Sink`."""

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
