"""The filter applied to a delta, to its blocks and as factors."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from deltamend.spectrum.filter import filter_delta
from deltamend.spectrum.thresholds import GavishDonoho
from tests.spectrum.filtered import DG_HARD, At, Cut, relative_difference, signal_over_noise


@pytest.mark.parametrize("shape", [(30, 50), (50, 30), (40, 40)])
def test_factors_multiply_to_the_filtered_delta(shape: tuple[int, int]) -> None:
    delta = signal_over_noise(shape, 4)
    found = filter_delta(delta, DG_HARD)
    for source in (delta, Cut(delta, 7)):
        u, s, vt = found.factors(source)
        assert (u.shape, s.shape, vt.shape) == ((shape[0], 4), (4,), (4, shape[1]))
        assert relative_difference((u * s) @ vt, found.dense(delta)) < 1e-6
        for vectors in (u.T @ u, vt @ vt.T):
            np.testing.assert_allclose(vectors, np.eye(4), atol=1e-5)


@pytest.mark.parametrize("shape", [(30, 50), (50, 30)])
@pytest.mark.parametrize("block_dtype", [np.float32, np.float64])
def test_apply_writes_into_out_of_either_order_and_any_float_dtype(
    shape: tuple[int, int], block_dtype: type[Any]
) -> None:
    delta = signal_over_noise(shape, 4)
    found = filter_delta(delta, DG_HARD)
    expected = found.dense(delta)
    source = delta.astype(block_dtype)
    for order in ("C", "F"):
        out = np.full(shape, np.nan, block_dtype, order=order)
        assert found.apply(np.array(source, order=order), out) is out
        np.testing.assert_allclose(out, expected, atol=1e-4)
    strided = np.repeat(np.repeat(source, 2, axis=0), 2, axis=1)[::2, ::2]
    np.testing.assert_allclose(found.apply(strided), expected, atol=1e-4)


@pytest.mark.parametrize("shape", [(40, 9000), (9000, 40)])
def test_apply_writes_into_the_block_itself(shape: tuple[int, int]) -> None:
    delta = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    delta += 3 * np.outer(np.ones(shape[0]), np.ones(shape[1])).astype(np.float32)
    found = filter_delta(delta, GavishDonoho())
    assert found.outcome == "filtered"
    expected = found.apply(delta)
    assert found.apply(delta, out=delta) is delta
    assert np.array_equal(delta, expected)


def test_apply_copies_where_delta_is_kept_and_clears_where_it_is_dropped() -> None:
    delta = signal_over_noise((5, 9), 1)
    kept, dropped = filter_delta(delta, At(0.0)), filter_delta(delta, At(1e9))
    out = np.empty_like(delta)
    assert kept.apply(delta) is delta
    assert np.array_equal(kept.apply(delta, out), delta)
    assert not dropped.apply(delta, out).any()


def test_apply_refuses_what_does_not_fit() -> None:
    found = filter_delta(signal_over_noise((30, 50), 4), DG_HARD)
    with pytest.raises(ValueError, match="does not belong"):
        found.apply(np.zeros((29, 50), np.float32))
    with pytest.raises(ValueError, match="out is"):
        found.apply(np.zeros((30, 50), np.float32), np.zeros((30, 49), np.float32))
    with pytest.raises(ValueError, match="was given to a filter"):
        found.dense(np.zeros((30, 51), np.float32))
    with pytest.raises(ValueError, match="was given to a filter"):
        found.factors(np.zeros((30, 51), np.float32))
    with pytest.raises(ValueError, match="has no factors"):
        filter_delta(np.eye(3), At(0.5)).factors(np.eye(3))
