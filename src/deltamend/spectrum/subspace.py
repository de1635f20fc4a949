"""The leading singular vectors of a weight matrix, for comparing subspaces."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from deltamend.spectrum.blocks import ArrayBlocks, Blocks, FloatArray
from deltamend.spectrum.decompositions import Tridiagonal, UnsureError, Workspace, by_svd, gram
from deltamend.spectrum.fortran_calls import LapackError

# Of which neither the squares nor the squares of their rounding leave the range of the dtype.
_SAFE_ENERGY = {np.dtype(np.float32): (1e-12, 1e15), np.dtype(np.float64): (0.0, 1e150)}


class Leading(NamedTuple):
    """The leading part of a matrix.

    Attributes:
        values: the largest singular values, (count,) float64, descending.
        vectors: theirs on the shorter side, (min(m, n), count), orthonormal.
        norm: the Frobenius norm of the whole matrix.
    """

    values: FloatArray
    vectors: FloatArray
    norm: float


def leading_vectors(blocks: Blocks, count: int, workspace: Workspace) -> Leading | None:
    """The `count` largest singular values and their vectors; None where the matrix is 0.

    From the Gram matrix in float32; in float64, and then by an SVD, where the vectors fail their check. Good to about
    1e-3 of an angle between well separated directions, which is enough to compare subspaces and not to filter.

    Args:
        blocks: of an m×n matrix, finite.
        count: from 1 to min(m, n).
        workspace: scratch memory.

    Raises:
        LapackError: no route gave an answer.
    """
    for dtype in (np.float32, np.float64):
        try:
            square = gram(blocks, dtype, workspace)
            low, high = _SAFE_ENERGY[np.dtype(dtype)]
            if low < square.energy < high:
                values, vectors = Tridiagonal(square, workspace).leading(count)
                return Leading(values, vectors.copy(), math.sqrt(square.energy))
        except (UnsureError, LapackError):
            continue
    decomposition = by_svd(blocks)
    norm = float(np.linalg.norm(decomposition.values()))
    return Leading(*decomposition.leading(count), norm) if norm > 0.0 else None


def all_values(matrix: FloatArray, workspace: Workspace) -> FloatArray:
    """All singular values of a matrix in memory, float64, descending; those below 1.5e-8 of the largest are rounding.

    Args:
        matrix: (m, n), float32 or float64, finite.
        workspace: scratch memory.

    Raises:
        LapackError: the iteration did not converge.
    """
    return Tridiagonal(gram(ArrayBlocks(matrix), np.float64, workspace), workspace).values()
