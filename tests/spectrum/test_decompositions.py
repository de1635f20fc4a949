"""Values, counts and vectors of every decomposition."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from deltamend.spectrum import decompositions
from deltamend.spectrum.band_reduction import Band
from deltamend.spectrum.blocks import ArrayBlocks, FloatArray
from deltamend.spectrum.decompositions import Gram, Tridiagonal, UnsureError, Workspace
from deltamend.spectrum.fortran_calls import LapackError
from tests.spectrum.matrices import DTYPES, gram_of


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("route", [Tridiagonal, Band])
def test_values_counts_and_vectors_match_an_svd(
    delta: FloatArray, exact: FloatArray, dtype: type[Any], route: Callable[[Gram, Workspace], Any]
) -> None:
    square = gram_of(delta, dtype)
    found = route(square, Workspace())
    assert found.route == f"{route.__name__.lower()}-{np.dtype(dtype)}"
    for index in (0, 450):
        assert found.value(index) == pytest.approx(exact[index], rel=2e-6)
    for bound in (exact[3] * 1.001, exact[3] * 0.999, exact[450] * 1.0001, 0.0, 1e300):
        assert found.count_above(bound) == np.count_nonzero(exact > bound)
    threshold = (exact[11] + exact[12]) / 2.0
    assert found.count_above(threshold) == 12
    assert found.value(11) == pytest.approx(exact[11], rel=2e-6)
    assert exact[12] * (1 - 1e-6) <= found.value(12) <= exact[12] * 1.021
    values, basis = found.leading(12)
    np.testing.assert_allclose(values, exact[:12], rtol=2e-6)
    np.testing.assert_allclose(basis.T @ basis, np.eye(12), atol=1e-5)
    u = np.linalg.svd(delta.astype(np.float64), full_matrices=False)[0][:, :12]
    np.testing.assert_allclose(np.linalg.svd(u.T @ basis, compute_uv=False), 1.0, rtol=1e-6)
    assert found.route.startswith(route.__name__.lower())
    np.testing.assert_allclose(found.values()[:600], exact[:600], rtol=2e-5)
    assert found.route == f"tridiagonal-{np.dtype(dtype)}"
    assert found.value(5) == pytest.approx(exact[5], rel=2e-6)


def test_a_workspace_keeps_aligned_buffers() -> None:
    workspace = Workspace()
    first = workspace.array("a", (5, 3), np.float32)
    again = workspace.array("a", (2, 3), np.float64)
    assert first.flags.f_contiguous
    assert first.ctypes.data % 64 == again.ctypes.data % 64 == 0
    assert np.shares_memory(first, again)
    assert not np.shares_memory(first, workspace.array("b", (5, 3), np.float32))


def test_float64_blocks_are_not_squared_in_float32() -> None:
    with pytest.raises(UnsureError, match="float64"):
        gram_of(np.eye(3), np.float32)


def test_an_eigh_that_fails_on_the_device_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(_: Any) -> Any:
        raise torch.linalg.LinAlgError("forced")  # type: ignore[attr-defined]

    monkeypatch.setattr(torch.linalg, "eigh", fails)
    with pytest.raises(LapackError, match="forced"):
        decompositions.by_torch(ArrayBlocks(np.eye(3)), "cpu")
