"""DG-Hard with every noise source and rule."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from deltamend.spectrum.thresholds import optimal_coefficient
from tests.methods.spectra import SHAPES, hard, kept, pair


@pytest.mark.parametrize("shape", SHAPES)
def test_dg_hard_with_known_noise_and_a_scale(shape: tuple[int, int]) -> None:
    base, update = pair(shape)
    tau = optimal_coefficient(min(shape) / max(shape)) * np.sqrt(max(shape)) * 0.01
    out = kept("dg-hard", base, update, noise="known", noise_level=0.01)
    np.testing.assert_allclose(out, hard(update, tau), atol=1e-9)
    assert np.linalg.matrix_rank(out, tol=1e-6) == 2
    out = kept("dg-hard", base, update, noise="known", noise_level=0.01, scale=0.7)
    np.testing.assert_allclose(out, hard(update, 0.7 * tau), atol=1e-9)
    assert np.linalg.matrix_rank(out, tol=1e-6) > 2


@pytest.mark.parametrize(
    "parameters",
    [{"noise": noise} for noise in ("median", "q25", "bulk-fit", "screenot")]
    + [{"rule": "edge"}, {"rule": "tracy-widom"}],
)
def test_every_noise_source_and_rule_finds_the_planted_rank(parameters: dict[str, Any]) -> None:
    base, update = pair((60, 40))
    rank = np.linalg.matrix_rank(kept("dg-hard", base, update, **parameters), tol=1e-6)
    assert rank == 2 or (parameters == {"rule": "edge"} and rank in (2, 3))
