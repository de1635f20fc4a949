"""The filter agrees with a float64 SVD by every route, and says where it had to take another."""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deltamend.errors import FilterError
from deltamend.spectrum import fortran_calls, lapack
from deltamend.spectrum.blocks import FloatArray
from deltamend.spectrum.decompositions import Workspace
from deltamend.spectrum.filter import filter_delta
from deltamend.spectrum.routes import routes_for
from deltamend.spectrum.shrinkers import OptimalFrobenius
from deltamend.spectrum.thresholds import KnownNoise
from tests.spectrum.filtered import (
    DG_HARD,
    At,
    Cut,
    assert_matches_svd,
    property_test,
    relative_difference,
    shapes,
    signal_over_noise,
    with_spectrum,
)


@property_test
@given(shape=shapes, dtype=st.sampled_from([np.float32, np.float64]), seed=st.integers(0, 2**16))
def test_noise_matches_a_float64_svd(shape: tuple[int, int], dtype: type[Any], seed: int) -> None:
    delta = np.random.default_rng(seed).standard_normal(shape).astype(dtype)
    found = filter_delta(delta, DG_HARD)
    s = np.linalg.svd(delta.astype(np.float64), compute_uv=False)
    assert found.median == pytest.approx(float(np.median(s)), rel=2e-5)
    assert found.largest == pytest.approx(float(s[0]), rel=1e-5)
    assert_matches_svd(found, delta)


@property_test
@given(
    shape=st.tuples(st.integers(2, 60), st.integers(2, 60)),
    share=st.floats(0.0, 0.6),
    dtype=st.sampled_from([np.float32, np.float64]),
    seed=st.integers(0, 2**16),
    width=st.integers(1, 70),
)
def test_signal_over_noise_matches_a_float64_svd_in_one_block_or_many(
    shape: tuple[int, int], share: float, dtype: type[Any], seed: int, width: int
) -> None:
    delta = signal_over_noise(shape, max(1, int(share * min(shape))), seed).astype(dtype)
    found = filter_delta(delta, DG_HARD)
    assert_matches_svd(found, delta)
    in_blocks = filter_delta(Cut(delta, width), DG_HARD)
    assert (in_blocks.rank, in_blocks.outcome) == (found.rank, found.outcome)
    assert relative_difference(in_blocks.dense(delta), found.dense(delta)) < 1e-5


def test_a_square_delta_is_read_by_columns() -> None:
    delta = signal_over_noise((50, 50), 4)
    found = filter_delta(Cut(delta, 11), DG_HARD)
    assert found.wide
    parts = [found.apply(block.values.copy()) for block in Cut(delta, 11)]
    assert relative_difference(np.concatenate(parts, axis=1), found.dense(delta)) < 1e-6
    assert_matches_svd(found, delta)


@property_test
@given(shape=shapes, rank=st.integers(0, 40), dtype=st.sampled_from([np.float32, np.float64]))
def test_exactly_low_rank_deltas_are_kept_and_the_reason_given(
    shape: tuple[int, int], rank: int, dtype: type[Any]
) -> None:
    rank = min(rank, (min(shape) - 1) // 2)
    delta = with_spectrum(shape, np.linspace(2.0, 1.0, rank)).astype(dtype)
    found = filter_delta(delta, DG_HARD)
    assert found.outcome == ("no-noise-floor" if rank else "zero")
    assert np.array_equal(found.dense(delta), delta)
    assert found.reason
    assert found.kept_energy == found.energy


@property_test
@given(shape=shapes, dtype=st.sampled_from([np.float32, np.float64]), scale=st.sampled_from([1e-6, 1.0, 1e6]))
def test_equal_singular_values_are_all_kept_or_none(shape: tuple[int, int], dtype: type[Any], scale: float) -> None:
    delta = (scale * with_spectrum(shape, np.ones(min(shape)))).astype(dtype)
    below, above = filter_delta(delta, At(0.99 * scale)), filter_delta(delta, At(1.01 * scale))
    assert (below.outcome, below.rank, above.outcome, above.rank) == ("all-kept", min(shape), "none-kept", 0)
    assert below.dense(delta) is delta
    assert not above.dense(delta).any()
    assert above.kept_energy == 0.0
    assert filter_delta(delta, DG_HARD).outcome == "none-kept"


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (9, 1)])
def test_one_row_or_column(shape: tuple[int, int]) -> None:
    delta = np.full(shape, 2.0, np.float32)
    assert filter_delta(delta, DG_HARD).outcome == "none-kept"  # σ is its own median, and τ > median
    assert filter_delta(delta, At(1.0)).outcome == "all-kept"


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_zero_delta(dtype: type[Any]) -> None:
    delta = np.zeros((3, 5), dtype)
    found = filter_delta(delta, DG_HARD)
    assert (found.outcome, found.rank, found.energy, found.basis) == ("zero", 0, 0.0, None)
    assert not found.dense(delta).any()
    u, s, vt = found.factors(delta)
    assert (u.shape, s.shape, vt.shape) == ((3, 0), (0,), (0, 5))


def test_a_threshold_of_zero_keeps_delta() -> None:
    delta = signal_over_noise((20, 30), 3)
    found = filter_delta(delta, At(0.0))
    assert (found.outcome, found.rank, found.kept_energy) == ("all-kept", 20, found.energy)


@pytest.mark.parametrize("shape", [(30, 50), (50, 30)])
def test_shrinking_scales_the_kept_singular_values(shape: tuple[int, int]) -> None:
    delta = signal_over_noise(shape, 4)
    found = filter_delta(delta, KnownNoise(1.0), shrinker=OptimalFrobenius())
    u, s, vt = np.linalg.svd(delta.astype(np.float64), full_matrices=False)
    shrunk = OptimalFrobenius().shrink(s[:4], shape=shape, noise=1.0)
    np.testing.assert_allclose(found.gains, shrunk / s[:4], rtol=1e-5)
    assert relative_difference(found.dense(delta), (u[:, :4] * shrunk) @ vt[:4]) < 1e-5
    assert found.kept_energy == pytest.approx(float(np.sum(shrunk**2)), rel=1e-5)
    left, strengths, right = found.factors(delta)
    assert relative_difference((left * strengths) @ right, found.dense(delta)) < 1e-6


def test_a_wide_range_goes_to_float64() -> None:
    delta = signal_over_noise((80, 120), 1).astype(np.float64)
    delta = (delta + 1e6 * with_spectrum((80, 120), [1.0])).astype(np.float32)
    found = filter_delta(delta, DG_HARD)
    assert found.route == "tridiagonal-float64"
    assert "times the singular value that decides" in found.reason
    assert_matches_svd(found, delta)


def test_a_range_too_wide_to_square_goes_to_the_svd() -> None:
    values = np.concatenate([[1e9, 100.0], np.linspace(1.2, 0.8, 38)])
    delta = with_spectrum((40, 60), values)
    found = filter_delta(delta, DG_HARD)
    assert (found.route, found.rank, found.outcome) == ("svd-float64", 2, "filtered")
    assert found.median == pytest.approx(float(np.median(values)), rel=1e-6)


def test_a_singular_value_within_float32_rounding_of_tau_goes_to_float64() -> None:
    delta = signal_over_noise((80, 120), 6)
    sixth = float(np.linalg.svd(delta.astype(np.float64), compute_uv=False)[5])
    kept = filter_delta(delta, At(sixth * (1 - 3e-6)))
    dropped = filter_delta(delta, At(sixth * (1 + 3e-6)))
    assert (kept.rank, kept.tie, kept.route) == (6, False, "tridiagonal-float64")
    assert (dropped.rank, dropped.tie, dropped.route) == (5, False, "tridiagonal-float64")
    assert "within rounding of τ" in kept.reason


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_tie_in_float64_is_reported(dtype: type[Any]) -> None:
    delta = np.zeros((6, 8), dtype)
    np.fill_diagonal(delta, [9.0, 4.0, 4.0, 1.0, 1.0, 1.0])
    found = filter_delta(delta, At(4.0))
    assert found.tie
    assert found.rank in (1, 2, 3)


def test_a_kept_subspace_that_rounding_may_turn_goes_to_float64() -> None:
    values = np.concatenate([[10.0], [1.0 + 4e-5, 1.0 - 4e-5], np.full(37, 0.9)])
    delta = with_spectrum((40, 60), values).astype(np.float32)
    found = filter_delta(delta, At(1.0))
    assert (found.route, found.rank, found.tie) == ("tridiagonal-float64", 2, False)
    assert "rounding may change the kept part" in found.reason


def test_a_low_rank_float32_delta_has_no_noise_floor() -> None:
    delta = with_spectrum((300, 400), np.linspace(3.0, 1.0, 16)).astype(np.float32)
    found = filter_delta(delta, DG_HARD)
    assert found.outcome == "no-noise-floor"
    assert "no noise floor" in found.reason
    assert found.median is not None
    assert found.median < 1e-6 * found.largest


def test_a_low_rank_delta_can_still_be_cut_where_it_is_measurable() -> None:
    delta = with_spectrum((60, 90), [8.0, 4.0, 2.0, 1.0]).astype(np.float32)
    found = filter_delta(delta, At(3.0))
    assert (found.outcome, found.rank, found.median) == ("filtered", 2, None)
    assert_matches_svd(found, delta)
    assert filter_delta(delta, At(1e-9)).outcome == "all-kept"


@pytest.mark.parametrize("scale", [1e-25, 1e25])
def test_entries_beyond_float32_squares_go_to_float64(scale: float) -> None:
    delta = (signal_over_noise((30, 50), 3).astype(np.float64) * scale).astype(np.float32)
    found = filter_delta(delta, DG_HARD)
    assert (found.route, found.rank) == ("tridiagonal-float64", 3)
    assert "range of float32" in found.reason


@pytest.mark.parametrize("scale", [1e-200, 1e200])
def test_entries_beyond_float64_squares_are_refused(scale: float) -> None:
    with pytest.raises(FilterError, match="scale the delta first"):
        filter_delta(signal_over_noise((30, 50), 3).astype(np.float64) * scale, DG_HARD)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("shape", [(4, 9), (9, 4)])
def test_nan_and_infinity_are_refused_and_located(bad: float, dtype: type[Any], shape: tuple[int, int]) -> None:
    delta = np.ones(shape, dtype)
    delta[2, 3] = bad
    for source in (delta, Cut(delta, 2)):
        with pytest.raises(FilterError, match="row 2, column 3"):
            filter_delta(source, DG_HARD)


def test_failing_lapack_falls_back_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any) -> Any:
        raise fortran_calls.LapackError("forced")

    delta = signal_over_noise((30, 50), 3)
    monkeypatch.setattr(lapack, "stemr", fails)
    found = filter_delta(delta, DG_HARD)
    assert (found.route, found.rank) == ("svd-float64", 3)
    assert found.reason.count("forced") == 2
    assert_matches_svd(found, delta)
    monkeypatch.setattr(np.linalg, "svd", lambda *_, **__: (_ for _ in ()).throw(np.linalg.LinAlgError("forced too")))
    with pytest.raises(FilterError, match="forced too"):
        filter_delta(delta, DG_HARD)


@pytest.mark.parametrize("spoil", ["not eigenvectors", "not orthonormal"])
def test_wrong_vectors_are_caught(monkeypatch: pytest.MonkeyPatch, spoil: str) -> None:
    def wrong(d: FloatArray, e: FloatArray, count: int, stemr: Any = lapack.stemr) -> Any:
        values, vectors = stemr(d, e, count)
        wrong = np.roll(vectors, 1, axis=0) if spoil == "not eigenvectors" else vectors * 1.1
        return values, np.asfortranarray(wrong)

    delta = signal_over_noise((30, 50), 3)
    monkeypatch.setattr(lapack, "stemr", wrong)
    found = filter_delta(delta, DG_HARD)
    assert found.route == "svd-float64"
    assert spoil in found.reason
    assert_matches_svd(found, delta)


def test_wrong_svd_vectors_are_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    svd = np.linalg.svd
    monkeypatch.setattr(np.linalg, "svd", lambda *a, **k: (None, svd(*a, **k)[1], svd(*a, **k)[2] * 1.1))
    with pytest.raises(FilterError, match="not orthonormal"):
        filter_delta(signal_over_noise((30, 50), 3), DG_HARD, _route="svd-float64")


@pytest.mark.parametrize("value", [math.nan, -1.0])
def test_a_threshold_that_is_no_number_is_refused(value: float) -> None:
    with pytest.raises(FilterError, match="gave the threshold"):
        filter_delta(np.eye(3), At(value))


def test_an_infinite_threshold_keeps_nothing() -> None:
    assert filter_delta(np.eye(3), At(math.inf)).outcome == "none-kept"


def test_a_shrinker_needs_a_noise_level_and_must_give_numbers() -> None:
    @dataclass(frozen=True)
    class Broken:
        def shrink(self, values: FloatArray, *, shape: tuple[int, int], noise: float) -> FloatArray:
            del shape, noise
            return values * np.nan

    delta = signal_over_noise((30, 50), 3)
    with pytest.raises(FilterError, match="needs a noise level"):
        filter_delta(delta, At(20.0), shrinker=OptimalFrobenius())
    with pytest.raises(FilterError, match="not finite"):
        filter_delta(delta, KnownNoise(1.0), shrinker=Broken())


def test_the_torch_route_agrees() -> None:
    for shape in ((30, 50), (50, 30)):
        delta = signal_over_noise(shape, 3)
        found = filter_delta(delta, DG_HARD, _route="torch-eigh")
        assert (found.route, found.rank) == ("torch-eigh", 3)
        assert_matches_svd(found, delta)
    assert [route.name for route in routes_for((3, 4), "cuda")] == ["torch-eigh", "svd-float64"]
    with pytest.raises(FilterError, match="row 0, column 0"):
        filter_delta(np.full((3, 4), np.nan), DG_HARD, _route="torch-eigh")


def test_the_same_bytes_from_any_number_of_threads() -> None:
    deltas = [signal_over_noise((150 + 10 * i, 260 - 10 * i), 8, seed=i) for i in range(6)]

    def run(delta: FloatArray) -> bytes:
        found = filter_delta(delta, DG_HARD)
        return found.dense(delta).tobytes() + found.singular_values.tobytes() + np.float64(found.threshold).tobytes()

    alone = [run(delta) for delta in deltas]
    for workers in (2, 5):
        with ThreadPoolExecutor(workers) as pool:
            assert list(pool.map(run, deltas * 3)) == alone * 3


def test_a_workspace_is_reused_and_changes_nothing() -> None:
    workspace = Workspace()
    for shape in ((80, 120), (30, 20), (90, 90), (300, 70)):
        delta = signal_over_noise(shape, 4)
        assert np.array_equal(
            filter_delta(delta, DG_HARD, workspace=workspace).dense(delta), filter_delta(delta, DG_HARD).dense(delta)
        )
