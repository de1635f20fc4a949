"""Products of matrices of either order."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from deltamend.spectrum import blas
from tests.spectrum.matrices import DTYPES


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("order", ["C", "F"])
def test_products_of_either_order(dtype: type[Any], order: Any) -> None:
    rng = np.random.default_rng(0)
    a, b = (np.array(rng.standard_normal(shape), dtype, order=order) for shape in ((5, 7), (7, 3)))
    for target in ("C", "F"):
        c = np.ones((5, 3), dtype, order=target)
        blas.gemm(a, b, c, alpha=2.0, beta=3.0)
        np.testing.assert_allclose(c, 2.0 * a @ b + 3.0, rtol=1e-5, atol=1e-5)
    square = np.zeros((5, 5), dtype, order="F")
    blas.syrk(a, square)
    np.testing.assert_allclose(np.tril(square), np.tril(a @ a.T), rtol=1e-5, atol=1e-5)
    assert not np.triu(square, 1).any()
