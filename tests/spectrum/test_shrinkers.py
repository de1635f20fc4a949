import math
from collections.abc import Callable, Iterator
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import eigh, qr
from scipy.optimize import minimize_scalar
from threadpoolctl import threadpool_limits

from deltamend.spectrum.blocks import FloatArray
from deltamend.spectrum.shrinkers import (
    Hard,
    OptimalFrobenius,
    OptimalNuclear,
    OptimalOperator,
    Shrinker,
    Soft,
    spike,
)
from deltamend.spectrum.thresholds import optimal_coefficient


@pytest.fixture(autouse=True)
def _one_blas_thread() -> Iterator[None]:
    with threadpool_limits(1):
        yield


Loss = Callable[[FloatArray], float]

SHRINKERS: list[Shrinker] = [Hard(), Soft(), OptimalFrobenius(), OptimalOperator(), OptimalNuclear()]
LOSSES: dict[str, Loss] = {
    "frobenius": lambda values: float(np.sum(values**2)),
    "operator": lambda values: float(np.max(values)),
    "nuclear": lambda values: float(np.sum(values)),
}
OPTIMAL: list[tuple[Shrinker, str]] = [
    (OptimalFrobenius(), "frobenius"),
    (OptimalOperator(), "operator"),
    (OptimalNuclear(), "nuclear"),
]


def seen_at(x: float, beta: float) -> float:
    """Where a spike of size x > β^{1/4} is seen, in units of s√n (Benaych-Georges & Nadakuditi 2012)."""
    return math.sqrt((x + 1 / x) * (x + beta / x))


def error_block(x: float, eta: float, beta: float) -> FloatArray:
    """Singular values of the error that one spike leaves, from the angles of its singular vectors in the limit.

    In the plane of the true and the measured singular vectors the error x·uvᵀ − η·u'v'ᵀ is a 2×2 matrix.
    """
    c_left = math.sqrt((x**4 - beta) / (x**4 + beta * x**2))
    c_right = math.sqrt((x**4 - beta) / (x**4 + x**2))
    left = np.array([c_left, math.sqrt(1 - c_left**2)])
    right = np.array([c_right, math.sqrt(1 - c_right**2)])
    return np.linalg.svd(np.diag([x, 0.0]) - eta * np.outer(left, right), compute_uv=False)


def shrink_one(shrinker: Shrinker, y: float, beta: float) -> float:
    """η(y) in units of s√n, read off a 1000-long matrix with entries of noise 0.7."""
    shape = (round(1000 * beta), 1000)
    unit = 0.7 * math.sqrt(1000)
    return float(shrinker.shrink(np.array([y * unit]), shape=shape, noise=0.7)[0]) / unit


@pytest.mark.parametrize("beta", [0.05, 0.5, 1.0])
@pytest.mark.parametrize(("shrinker", "loss"), OPTIMAL)
def test_an_optimal_shrinker_minimises_its_loss(shrinker: Shrinker, loss: str, beta: float) -> None:
    for factor in (1.05, 1.5, 3.0, 10.0):
        x = factor * beta**0.25
        found = minimize_scalar(
            lambda eta, x=x: LOSSES[loss](error_block(x, eta, beta)),
            bounds=(0, 2 * x),
            method="bounded",
            options={"xatol": 1e-9},
        )
        eta = shrink_one(shrinker, seen_at(x, beta), beta)
        assert LOSSES[loss](error_block(x, eta, beta)) <= found.fun * (1 + 1e-9)
        assert eta == pytest.approx(found.x, rel=1e-3, abs=1e-3)


@given(st.floats(1.001, 1e6), st.floats(0.001, 1.0))
def test_the_spike_is_where_it_is_seen(factor: float, beta: float) -> None:
    x = factor * beta**0.25
    assert float(spike(np.array(seen_at(x, beta)), beta)) == pytest.approx(x, rel=1e-6)


def test_the_square_case_of_the_paper() -> None:
    # arXiv 1405.7511, abstract: for square matrices the Frobenius shrinker is √(y² − 4ns²).
    values = np.array([100.0, 25.0, 20.1, 20.0, 3.0])
    shrunken = OptimalFrobenius().shrink(values, shape=(25, 25), noise=2.0)
    np.testing.assert_allclose(shrunken, np.sqrt(np.maximum(values**2 - 400, 0)), rtol=1e-12)


@settings(deadline=None)
@given(
    st.lists(st.floats(0.0, 1e80), max_size=20).map(np.array),
    st.tuples(st.integers(1, 50), st.integers(1, 50)),
    st.floats(1e-6, 1e3),
    st.sampled_from(SHRINKERS),
)
def test_the_contract(values: FloatArray, shape: tuple[int, int], noise: float, shrinker: Shrinker) -> None:
    edge = noise * (math.sqrt(shape[0]) + math.sqrt(shape[1]))
    values = np.concatenate([values, edge * np.array([0.0, 0.5, 1 - 1e-12, 1 + 1e-12, 1.1, 2.0, 100.0])])
    before = values.copy()
    shrunken = shrinker.shrink(values, shape=shape, noise=noise)
    np.testing.assert_array_equal(values, before)
    assert shrunken.shape == values.shape
    assert shrunken.dtype == np.float64
    assert np.all(shrunken[values <= edge * (1 - 1e-13)] == 0.0)
    assert np.all((shrunken >= 0.0) & (shrunken <= values * (1 + 1e-14)))
    by_size = shrunken[np.argsort(values)]
    assert all(a <= b * (1 + 1e-9) for a, b in pairwise(by_size))
    np.testing.assert_allclose(shrinker.shrink(values, shape=shape[::-1], noise=noise), shrunken)
    np.testing.assert_allclose(shrinker.shrink(values * 2, shape=shape, noise=noise * 2), shrunken * 2)


@pytest.mark.parametrize("shrinker", SHRINKERS)
def test_without_noise_nothing_is_shrunk(shrinker: Shrinker) -> None:
    values = np.array([[3.0, 1.0], [0.5, 0.0]], dtype=np.float32)
    shrunken = shrinker.shrink(values, shape=(4, 7), noise=0.0)
    np.testing.assert_array_equal(shrunken, values)
    assert shrunken.dtype == np.float64
    assert shrunken is not values


@pytest.mark.parametrize("shrinker", SHRINKERS)
def test_large_values_are_hardly_shrunk(shrinker: Shrinker) -> None:
    value = np.array([1e6])
    bound = math.sqrt(30) + math.sqrt(20) if isinstance(shrinker, Soft) else 1e-3
    assert value[0] - shrinker.shrink(value, shape=(20, 30), noise=1.0)[0] <= bound * (1 + 1e-9)


def test_hard_and_soft_by_hand() -> None:
    values = np.array([30.0, 24.0, 22.0])
    assert optimal_coefficient(1.0) * 10 == pytest.approx(23.094, abs=1e-3)
    np.testing.assert_array_equal(Hard().shrink(values, shape=(100, 100), noise=1.0), [30.0, 24.0, 0.0])
    np.testing.assert_allclose(Soft().shrink(values, shape=(100, 100), noise=1.0), [10.0, 4.0, 2.0])


@pytest.mark.parametrize("noise", [-1.0, math.nan, math.inf])
def test_a_noise_level_outside_its_range_is_refused(noise: float) -> None:
    with pytest.raises(ValueError, match="noise"):
        Hard().shrink(np.ones(2), shape=(2, 2), noise=noise)


def measured_error(shrinker: Shrinker, spikes: FloatArray, shape: tuple[int, int], seed: int) -> FloatArray:
    """Singular values of (estimate − signal)/(s√n) for a spiked matrix with the signal on the first axes."""
    m, n = shape
    rank, noise = len(spikes), 1 / math.sqrt(n)
    matrix = noise * np.random.default_rng(seed).standard_normal(shape)
    matrix[np.arange(rank), np.arange(rank)] += spikes
    squares, u = eigh(matrix @ matrix.T, subset_by_index=(m - rank, m - 1))
    values = np.sqrt(squares)
    v = matrix.T @ u / values
    shrunken = shrinker.shrink(values, shape=shape, noise=noise)
    # Error = [U, E]·diag(η, −x)·[V, E]ᵀ: rotated into small orthonormal bases of both sides.
    left: FloatArray = qr(np.hstack([u, np.eye(m, rank)]), mode="r")[0][: 2 * rank]
    right: FloatArray = qr(np.hstack([v, np.eye(n, rank)]), mode="r")[0][: 2 * rank]
    return np.linalg.svd((left * np.concatenate([shrunken, -spikes])) @ right.T, compute_uv=False)


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(1000, 1000), (1000, 2000)])
@pytest.mark.parametrize(("shrinker", "loss"), [*OPTIMAL, (Hard(), "frobenius"), (Soft(), "frobenius")])
def test_the_loss_on_spiked_matrices_is_the_predicted_one(
    shape: tuple[int, int], shrinker: Shrinker, loss: str
) -> None:
    beta = shape[0] / shape[1]
    # Of several spikes the operator norm takes the worst; in a square matrix all are equally bad in the limit, and the
    # largest of four fluctuations was 6% above it. So it gets one spike.
    spikes = np.array([3.0]) if loss == "operator" else np.array([4.0, 3.0, 2.0, 1.6])
    blocks = [error_block(x, shrink_one(shrinker, seen_at(x, beta), beta), beta) for x in spikes]
    predicted = LOSSES[loss](np.concatenate(blocks))
    measured = np.mean([LOSSES[loss](measured_error(shrinker, spikes, shape, seed)) for seed in range(4)])
    assert measured == pytest.approx(predicted, rel=0.02)
