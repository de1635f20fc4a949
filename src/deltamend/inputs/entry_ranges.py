"""Runs of a matrix's entries, counted row by row, as rectangles."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple


class Rectangle(NamedTuple):
    """Rows and columns of a matrix, both half open."""

    first_row: int
    last_row: int
    first_column: int
    last_column: int

    @property
    def shape(self) -> tuple[int, int]:
        """(rows, columns)."""
        return self.last_row - self.first_row, self.last_column - self.first_column


def cut_into_rectangles(start: int, stop: int, columns: int) -> Iterator[Rectangle]:
    """Cut entries [start, stop) of a matrix of `columns` columns into parts of single rows and blocks of whole rows."""
    while start < stop:
        row, column = divmod(start, columns)
        if column or stop - start < columns:
            width = min(columns - column, stop - start)
            yield Rectangle(row, row + 1, column, column + width)
            start += width
        else:
            rows = (stop - start) // columns
            yield Rectangle(row, row + rows, 0, columns)
            start += rows * columns
