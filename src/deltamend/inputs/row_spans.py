"""A matrix whose rows are taken from several places of a larger one: spans of its rows, one after another."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from itertools import accumulate
from typing import NamedTuple

Span = tuple[int, int]


class Piece(NamedTuple):
    """Rows that are neighbours in the larger matrix, where they are the rows `source`; start:stop among the rows asked for."""

    source: Span
    start: int
    stop: int


class RowSpans:
    """Spans of rows, half open; a vocabulary matched by token can have as many as rows."""

    def __init__(self, spans: tuple[Span, ...]) -> None:
        self._spans = spans
        self._starts = [0, *accumulate(stop - start for start, stop in spans)]

    @property
    def rows(self) -> int:
        """How many rows they are."""
        return self._starts[-1]

    def pieces(self, start: int, stop: int) -> Iterator[Piece]:
        """The rows start:stop, as pieces that are neighbours in the larger matrix, in their order."""
        number, row = bisect_right(self._starts, start) - 1, start
        while row < stop:
            first = self._spans[number][0] + row - self._starts[number]
            length = min(stop, self._starts[number + 1]) - row
            if length:
                yield Piece((first, first + length), row - start, row - start + length)
            row, number = row + length, number + 1
