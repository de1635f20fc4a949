"""How far the quantisation of two matrices moves the entries of their difference."""

from __future__ import annotations

import numpy as np

from deltamend.matrices.buffers import row_chunks
from deltamend.matrices.views import Matrix


def quantisation_variance(sides: tuple[Matrix, Matrix], rows: int) -> float:
    """The mean variance that quantisation adds to an entry of Δ = W_ft − W_base; 0 where neither side is quantised.

    Assumed: the two sides were rounded independently. Where FINETUNED was trained on the quantised BASE itself, as QLoRA does,
    there is no such noise in Δ. Ours.

    Args:
        sides: the base and the fine-tuned matrix, shape (≥ rows, n) each.
        rows: how many rows are compared.
    """
    total, columns = 0.0, sides[0].shape[1]
    for side in sides:
        for first, last in row_chunks((rows, columns)):
            errors = side.squared_errors(first, last)
            if errors is None:
                break
            total += float(np.sum(errors, dtype=np.float64))
    return total / (rows * columns)
