"""Round a matrix to bf16 or fp16 so that the errors of one row make up for each other on the inputs that matter."""

from __future__ import annotations

from typing import Any

import numpy as np

from deltamend.errors import FilterError
from deltamend.matrices.buffers import Array
from deltamend.spectrum.blocks import FloatArray

_COLUMNS_AT_ONCE = 64
"""Errors within so many columns are carried over one by one, and to all further columns together, in one product of matrices."""
_DAMPING = 1e-8
"""Of the mean of its diagonal, added to the metric, so that rounding leaves it positive definite."""


class CompensatedRounding:
    """Rounds column after column, and lets the columns that are still to come make up for the error of each.

    The rounded matrix Q is to be close to W in ‖(Q − W)M^½‖, where M weighs the directions of a row. With M⁻¹ = UᵀU, U upper
    triangular, the best correction of the columns k > j for an error e of column j is −e·U_jk/U_jj: the update of optimal
    brain surgeon in the form of GPTQ (Frantar et al. 2023, arXiv 2210.17323, algorithm 1). Columns with a large diagonal
    entry of M go first, as many others are left to make up for them then. Rounding each entry to nearest is the special case
    of a diagonal M.

    Args:
        metric: M, shape (n, n) float64, symmetric and positive semidefinite.

    Raises:
        FilterError: M is not finite or not positive semidefinite.
    """

    def __init__(self, metric: FloatArray) -> None:
        from scipy.linalg import LinAlgError, cholesky, solve_triangular  # late, as in spectrum.fortran_calls

        width = len(metric)
        self._order = np.argsort(-np.diag(metric), kind="stable")
        backwards = self._order[::-1]
        turned = metric[np.ix_(backwards, backwards)]
        turned[np.diag_indices(width)] += _DAMPING * np.trace(turned) / width
        try:
            # The Cholesky factor of M with rows and columns backwards, turned round, is the R of M = RRᵀ, and U = R⁻¹.
            root = cholesky(turned, lower=True, overwrite_a=True)[::-1, ::-1]
        except (LinAlgError, ValueError) as error:
            raise FilterError(
                f"its metric is not positive definite, so that rounding cannot be compensated ({error})"
            ) from error
        self._upper = solve_triangular(root, np.eye(width), lower=False, overwrite_b=True, check_finite=False)

    def round(self, values: Array, dtype: np.dtype[Any]) -> FloatArray:
        """Round rows of W; each row is rounded by itself.

        Args:
            values: shape (r, n), fp32 or fp64.
            dtype: bf16 or fp16.

        Returns:
            (r, n) float64, every entry exactly a value of `dtype`, or infinite where W overflows in it.
        """
        upper, width = self._upper, values.shape[1]
        left = values[:, self._order].T.astype(np.float64)  # a column of W lies in one piece
        errors = np.empty((_COLUMNS_AT_ONCE, left.shape[1]))
        for start in range(0, width, _COLUMNS_AT_ONCE):
            stop = min(start + _COLUMNS_AT_ONCE, width)
            for column in range(start, stop):
                with np.errstate(over="ignore"):  # whoever casts the result finds it
                    rounded = left[column].astype(np.float32).astype(dtype).astype(np.float64)
                with np.errstate(invalid="ignore"):
                    error = (left[column] - rounded) / upper[column, column]
                error[~np.isfinite(error)] = 0.0
                left[column] = rounded
                errors[column - start] = error
                left[column + 1 : stop] -= upper[column, column + 1 : stop, None] * error
            left[stop:] -= upper[start:stop, stop:].T @ errors[: stop - start]
        found = np.empty((left.shape[1], width))
        found[:, self._order] = left.T
        return found
