"""Shrinkage is its formula."""

from __future__ import annotations

import numpy as np
import pytest

from tests.methods.spectra import kept, pair, rebuilt


@pytest.mark.parametrize("loss", ["frobenius", "operator", "nuclear", "soft"])
def test_shrinkage_is_its_formula(loss: str) -> None:
    shape = (60, 40)
    base, update = pair(shape)
    unit, beta = 0.01 * np.sqrt(60), 40 / 60
    values = np.linalg.svd(update, compute_uv=False)
    y = values[values > unit * (1 + np.sqrt(beta))] / unit
    square = np.sqrt((y**2 - beta - 1) ** 2 - 4 * beta)
    x = np.sqrt((y**2 - beta - 1 + square) / 2)
    expected = {
        "frobenius": square / y,
        "operator": x * np.sqrt((x**2 + beta) / (x**2 + 1)),
        "nuclear": np.maximum((x**4 - beta - np.sqrt(beta) * x * y) / (x**2 * y), 0),
        "soft": y - (1 + np.sqrt(beta)),
    }[loss]
    shrunken = np.zeros_like(values)
    shrunken[: y.size] = unit * expected
    out = kept("shrink", base, update, loss=loss, noise="known", noise_level=0.01)
    np.testing.assert_allclose(out, rebuilt(update, shrunken), atol=1e-9)
