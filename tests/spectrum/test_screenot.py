import math
from collections.abc import Iterator

import numpy as np
import pytest
import screenot
from hypothesis import given, settings
from hypothesis import strategies as st
from threadpoolctl import threadpool_limits

from deltamend.spectrum.blocks import FloatArray
from deltamend.spectrum.marchenko_pastur import MarchenkoPasturSingular
from deltamend.spectrum.screenot import logarithmic_slope, pseudo_noise, screenot_threshold
from deltamend.spectrum.thresholds import optimal_coefficient


@pytest.fixture(autouse=True)
def _one_blas_thread() -> Iterator[None]:
    with threadpool_limits(1):
        yield


def noise_matrix(m: int, n: int, correlation: float, seed: int = 0) -> FloatArray:
    """Gaussian noise whose rows follow an AR(1) process with the given correlation."""
    rng = np.random.default_rng(seed)
    lags = np.abs(np.subtract.outer(np.arange(n), np.arange(n)))
    colour = np.linalg.cholesky(correlation**lags) if correlation else np.eye(n)
    return np.asarray(rng.standard_normal((m, n)) @ colour.T / math.sqrt(max(m, n)))


def spiked(noise: FloatArray, spikes: tuple[float, ...], seed: int = 1) -> FloatArray:
    rng = np.random.default_rng(seed)
    u, _ = np.linalg.qr(rng.standard_normal((noise.shape[0], len(spikes))))
    v, _ = np.linalg.qr(rng.standard_normal((noise.shape[1], len(spikes))))
    return np.asarray(noise + (u * np.array(spikes)) @ v.T)


@pytest.mark.parametrize(
    ("m", "n", "correlation", "max_rank"),
    [
        pytest.param(1000, 1000, 0.0, 10, marks=pytest.mark.slow),  # the example of the manual of the package
        (200, 200, 0.0, 10),
        (200, 200, 0.5, 10),
        (100, 300, 0.0, 20),
        (300, 100, 0.7, 20),
        (100, 250, 0.3, 1),
        (60, 60, 0.5, 29),
        (60, 80, 0.0, 0),
    ],
)
def test_it_agrees_with_the_authors_package(m: int, n: int, correlation: float, max_rank: int) -> None:
    matrix = spiked(noise_matrix(m, n, correlation), (6.0, 3.0, 1.5))
    estimate, theirs, rank = screenot.adaptiveHardThresholding(matrix, max_rank)
    u, values, vt = np.linalg.svd(matrix, full_matrices=False)
    ours = screenot_threshold(values, min(m, n) / max(m, n), max_rank)
    # The package stops its bisection at about 1e-6.
    assert ours == pytest.approx(theirs, rel=1e-5)
    kept = values > ours
    assert kept.sum() == rank
    np.testing.assert_allclose((u[:, kept] * values[kept]) @ vt[kept], estimate, atol=1e-10)


@pytest.mark.slow
@pytest.mark.parametrize("beta", [0.05, 0.3, 1.0])
def test_white_noise_gives_the_threshold_of_gavish_and_donoho(beta: float) -> None:
    quantiles = (np.arange(10_000) + 0.5) / 10_000
    values = MarchenkoPasturSingular(beta, 3.0).ppf(quantiles)[::-1]
    assert screenot_threshold(values, beta, 0) == pytest.approx(3.0 * optimal_coefficient(beta), rel=1e-5)


def test_it_finds_the_best_threshold_for_correlated_noise() -> None:
    # The paper's claim: no threshold has a smaller error on this very matrix.
    noise = noise_matrix(200, 400, 0.6)
    signal = spiked(np.zeros_like(noise), (8.0, 4.0, 3.0, 2.6, 2.2, 1.8, 1.4))
    u, values, vt = np.linalg.svd(signal + noise, full_matrices=False)
    errors = [float(np.sum(((u[:, :k] * values[:k]) @ vt[:k] - signal) ** 2)) for k in range(30)]
    kept = int(np.sum(values > screenot_threshold(values, 0.5, 40)))
    assert errors[kept] <= 1.02 * min(errors)


@settings(deadline=None)
@given(
    st.lists(st.floats(0.0, 1e3), min_size=1, max_size=40).map(lambda x: np.array(sorted(x, reverse=True))),
    st.floats(0.01, 1.0),
    st.floats(1e-6, 1e6),
    st.data(),
)
def test_it_solves_its_equation_and_scales(values: FloatArray, beta: float, scale: float, data: st.DataObject) -> None:
    max_rank = data.draw(st.integers(0, (values.size - 1) // 2))
    threshold = screenot_threshold(values, beta, max_rank)
    noise = pseudo_noise(values, max_rank)
    assert threshold >= noise.max()
    if noise.max() < 1e-100:
        return
    assert logarithmic_slope(threshold / noise.max(), noise / noise.max(), beta) == pytest.approx(-4, abs=1e-6)
    assert screenot_threshold(scale * values, beta, max_rank) == pytest.approx(scale * threshold, rel=1e-9)


def test_the_largest_values_do_not_matter() -> None:
    values = np.linspace(3.0, 0.5, 50)
    louder = values.copy()
    louder[:10] *= 100
    assert screenot_threshold(values, 0.5, 10) == screenot_threshold(louder, 0.5, 10)


def test_an_exactly_low_rank_matrix_has_no_noise() -> None:
    assert screenot_threshold([5.0, 1.0, 0.0, 0.0, 0.0, 0.0], 0.5, 2) == 0.0


@pytest.mark.parametrize("max_rank", [-1, 3])
def test_a_rank_outside_its_range_is_refused(max_rank: int) -> None:
    with pytest.raises(ValueError, match="max_rank"):
        screenot_threshold([4.0, 3.0, 2.0, 1.0, 0.5], 1.0, max_rank)
    with pytest.raises(ValueError, match="beta"):
        screenot_threshold([4.0, 3.0], 1.5, 0)
