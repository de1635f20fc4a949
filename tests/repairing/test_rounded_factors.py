"""The loss of rounding two factors is what forming both products in float64 gives."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from deltamend.errors import FilterError
from deltamend.repairing.rounded_factors import RoundedProduct
from deltamend.repairing.sinks import Norms


@pytest.mark.parametrize("dtype", [ml_dtypes.bfloat16, np.float16, np.float32], ids=lambda dtype: np.dtype(dtype).name)
@pytest.mark.parametrize("pieces", [1, 7])
def test_the_norms_are_those_of_the_products(dtype: type, pieces: int) -> None:
    drawn = np.random.default_rng(0)
    # The columns of the shorter factor are orthogonal, as those of a singular basis are.
    short, long = np.linalg.qr(drawn.standard_normal((30, 3)))[0] * [1.0, 2.0, 3.0], drawn.standard_normal((3, 70))
    product = RoundedProduct(short, np.dtype(dtype), "w")
    stored = np.concatenate([product.add(part) for part in np.array_split(long, pieces, axis=1)], axis=1)
    assert {product.short.dtype, stored.dtype} == {np.dtype(dtype)}
    norms = Norms()
    product.measure(norms)
    exact, written = short @ long, product.short.astype(np.float64) @ stored.astype(np.float64)
    assert norms.kept == pytest.approx(np.sum(exact**2), rel=1e-6)
    assert norms.realised == pytest.approx(np.sum(written**2), rel=1e-5)
    assert norms.lost == pytest.approx(np.sum((written - exact) ** 2), rel=1e-3)
    assert norms.lost > 0
    assert norms.removed is None


def test_factors_that_can_be_stored_exactly_lose_nothing() -> None:
    product = RoundedProduct(np.array([[1.0], [2.0]]), np.dtype(ml_dtypes.bfloat16), "w")
    product.add(np.array([[0.5, -4.0, 0.25]]))
    norms = Norms()
    product.measure(norms)
    assert norms.lost == 0.0
    assert norms.realised == norms.kept == pytest.approx(5 * (0.25 + 16 + 0.0625))


def test_factors_are_rounded_once() -> None:
    """By way of fp32 the excess over the midpoint of two neighbours is lost, and then the tie goes to the other one."""
    above_the_middle = np.array([[1 + 2.0**-8 + 2.0**-40, -(1 + 2.0**-8 + 2.0**-40)]])
    product = RoundedProduct(above_the_middle.T, np.dtype(ml_dtypes.bfloat16), "w")
    assert product.short.astype(np.float64).ravel().tolist() == [1 + 2.0**-7, -1 - 2.0**-7]
    assert product.add(above_the_middle[:, :1]).astype(np.float64).tolist() == [[1 + 2.0**-7]]


def test_a_factor_that_overflows_is_refused_with_the_remedy() -> None:
    says = r'^tensor \'w\': its factors overflow in float16; write them with out_dtype="fp32"$'
    with pytest.raises(FilterError, match=says):
        RoundedProduct(np.array([[1e6]]), np.dtype(np.float16), "w")
    with pytest.raises(FilterError, match=says):
        RoundedProduct(np.array([[1.0]]), np.dtype(np.float16), "w").add(np.array([[1e6]]))
