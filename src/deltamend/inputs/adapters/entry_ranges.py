"""Cut a range of a matrix's entries, counted row by row, into rectangles of rows and columns."""

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
    """Cut the entries [start, stop) of a matrix of `columns` columns into rectangles, in their order.

    A rectangle is part of one row, at the start and the end of the range, or several whole rows in between.
    """
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
