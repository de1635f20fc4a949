"""Numbers for every entry of every matrix, from a safetensors file beside the checkpoints: Fisher information, masks."""

from __future__ import annotations

import math
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from deltamend.checkpoint.dtypes import NUMPY_DTYPES
from deltamend.checkpoint.safetensors_header import Header, HeaderEntry, read_header
from deltamend.errors import CheckpointError, FilterError, MethodError
from deltamend.inputs.row_spans import RowSpans
from deltamend.methods.method import Place, TensorContext


class EntryTensor:
    """What one tensor of such a file says of a delta, mapped.

    Args:
        path: of the file.
        context: of the delta; says of which rows and columns of which tensor it is.
        shape: (m, n) of the delta; anything that is no matrix is seen as one column.
        dtypes: the dtypes it may be stored in, by their safetensors names.

    Raises:
        MethodError: the file cannot be read.
        FilterError: it does not hold the tensor, or in another shape or dtype.
    """

    def __init__(self, path: Path, context: TensorContext, shape: tuple[int, int], dtypes: frozenset[str]) -> None:
        place = context.place or Place(context.name, ((0, shape[0]),), None)
        entry = _entry(path, place.tensor)
        # Some axes of the tensor, the last ones, are its columns as a matrix: all, none or in between, as the delta is wide.
        columns = shape[1] if place.columns is None else entry.shape[-1]
        widths = {math.prod(entry.shape[axis:]) for axis in range(len(entry.shape) + 1)}
        stored = (math.prod(entry.shape) // max(columns, 1), columns)
        first, last = place.columns or (0, columns)
        fits = columns in widths and max(stop for _, stop in place.rows) <= stored[0] and last - first == shape[1]
        fits = fits and last <= columns
        if entry.dtype not in dtypes or not fits:
            raise FilterError(f"{path.name} holds it as {entry.dtype} {list(entry.shape)}; compute it for this model")
        self.file = path.name
        self.shape = shape
        self._spans, self._first = RowSpans(place.rows), first
        self._values = np.memmap(path, NUMPY_DTYPES[entry.dtype], "r", entry.start, stored)

    def read(self, row: int, column: int, shape: tuple[int, int]) -> np.ndarray[Any, np.dtype[Any]]:
        """The part of `shape` whose first entry is (row, column), as stored."""
        columns = slice(self._first + column, self._first + column + shape[1])
        pieces = [self._values[slice(*piece.source), columns] for piece in self._spans.pieces(row, row + shape[0])]
        return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)


def _entry(path: Path, name: str) -> HeaderEntry:
    for entry in _header(path, path.stat().st_mtime_ns if path.exists() else 0).entries:
        if entry.name == name:
            return entry
    raise FilterError(f"{path.name} holds no tensor of this name; compute it for this model")


@lru_cache(maxsize=4)
def _header(path: Path, mtime_ns: int) -> Header:  # noqa: ARG001 - read again when the file changes
    try:
        return read_header(path)
    except CheckpointError as error:
        raise MethodError(str(error)) from error
