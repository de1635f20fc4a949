"""LASER reduces the rank of the weight."""

from __future__ import annotations

import numpy as np
import pytest

from tests.methods.spectra import SHAPES, hard, kept, pair


@pytest.mark.parametrize("shape", SHAPES)
def test_laser_reduces_the_weight(shape: tuple[int, int]) -> None:
    base, update = pair(shape)
    values = np.linalg.svd(base + update, compute_uv=False)
    rank = round(0.3 * min(shape))
    expected = hard(base + update, values[rank] * 1.0001) - base
    np.testing.assert_allclose(kept("laser", base, update, share=0.3), expected, atol=1e-9)
