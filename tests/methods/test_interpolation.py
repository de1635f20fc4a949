"""WiSE-FT and task arithmetic."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import deltamend
from tests.methods.deltas import NAME, kept, matrices


@pytest.mark.parametrize("factor", [1.5, -0.5])
def test_task_arithmetic_goes_beyond_the_two_models(factor: float) -> None:
    base, update = matrices()
    out = deltamend.repair_state_dict(
        {NAME: base}, {NAME: base + update}, method="task-arithmetic", parameters={"lambda": factor}
    )
    np.testing.assert_allclose((out.tensors[NAME] - base).numpy(), factor * update.numpy(), atol=1e-15)


def test_with_one_model_the_names_coincide() -> None:
    base, update = matrices()
    pairs: list[tuple[tuple[str, dict[str, Any]], tuple[str, dict[str, Any]]]] = [
        (("wise-ft", {"alpha": 0.4}), ("task-arithmetic", {"weight": 0.4})),
        (("ties", {"density": 0.3}), ("magnitude", {"density": 0.3})),
        (("breadcrumbs", {"density": 0.3, "gamma": 0}), ("magnitude", {"density": 0.3})),
        (("graft", {"density": 0.3}), ("magnitude", {"density": 0.3})),
    ]
    for first, second in pairs:
        assert np.array_equal(kept(first[0], base, update, **first[1]), kept(second[0], base, update, **second[1]))
