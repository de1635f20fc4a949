from __future__ import annotations

import numpy as np
import pytest

from deltamend.spectrum.blocks import ArrayBlocks
from deltamend.spectrum.decompositions import Workspace
from deltamend.spectrum.subspace import all_values, leading_vectors


@pytest.mark.parametrize("shape", [(40, 90), (90, 40), (50, 50)])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_leading_vectors_are_those_of_the_svd(shape: tuple[int, int], dtype: type[np.floating]) -> None:
    matrix = np.random.default_rng(0).standard_normal(shape) @ np.diag(0.9 ** np.arange(shape[1]))
    found = leading_vectors(ArrayBlocks(matrix.astype(dtype)), 5, Workspace())
    left, values, right = np.linalg.svd(matrix, full_matrices=False)
    vectors = left if shape[0] <= shape[1] else right.T
    assert found is not None
    assert found.norm == pytest.approx(np.linalg.norm(matrix), rel=1e-5)
    assert found.values == pytest.approx(values[:5], rel=1e-5)
    assert np.abs(np.diag(vectors[:, :5].T @ found.vectors)) == pytest.approx(np.ones(5), abs=1e-3)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_matrix_of_zeros_has_none(dtype: type[np.floating]) -> None:
    assert leading_vectors(ArrayBlocks(np.zeros((6, 9), dtype)), 2, Workspace()) is None


def test_entries_too_small_for_float32_squares_are_no_hindrance() -> None:
    matrix = 1e-30 * np.random.default_rng(1).standard_normal((20, 30))
    found = leading_vectors(ArrayBlocks(matrix.astype(np.float32)), 3, Workspace())
    assert found is not None
    assert found.values == pytest.approx(np.linalg.svd(matrix, compute_uv=False)[:3], rel=1e-4)


def test_all_values_are_those_of_the_svd() -> None:
    matrix = np.random.default_rng(2).standard_normal((25, 60))
    assert all_values(matrix, Workspace()) == pytest.approx(np.linalg.svd(matrix, compute_uv=False), rel=1e-9)
