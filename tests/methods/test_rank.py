"""Truncation keeps the rank that is asked for."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.methods.spectra import hard, kept, pair


@pytest.mark.parametrize(
    ("parameters", "rank"), [({"rank": 3}, 3), ({"share": 0.25}, 10), ({}, None), ({"energy": 0.5}, None)]
)
def test_truncation_keeps_the_rank_asked_for(parameters: dict[str, Any], rank: int | None) -> None:
    base, update = pair((60, 40))
    values = np.linalg.svd(update, compute_uv=False)
    if rank is None:
        energies = np.cumsum(values**2) / np.sum(values**2)
        rank = int(np.searchsorted(energies, parameters.get("energy", 0.9))) + 1
    np.testing.assert_allclose(kept("rank", base, update, **parameters), hard(update, values[rank] * 1.0001), atol=1e-9)
