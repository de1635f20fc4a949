import math
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import quad
from threadpoolctl import threadpool_limits

from deltamend.spectrum import tracy_widom


@pytest.fixture(autouse=True)
def _one_blas_thread() -> Iterator[None]:
    with threadpool_limits(1):
        yield


def test_published_quantiles() -> None:
    # Bejan, "Largest eigenvalues and sample covariance matrices" (2005), and every table since.
    assert tracy_widom.quantile(0.90) == pytest.approx(0.4501, abs=5e-5)
    assert tracy_widom.quantile(0.95) == pytest.approx(0.9793, abs=5e-5)
    assert tracy_widom.quantile(0.99) == pytest.approx(2.0234, abs=5e-5)


def test_published_value_at_zero() -> None:
    # Bornemann, arXiv 0904.1581: F₁(0) = 0.83190 80662 02950.
    assert float(tracy_widom.cdf(0.0)) == pytest.approx(0.8319080662029, abs=1e-12)


@pytest.mark.slow
def test_published_moments() -> None:
    # Bornemann, arXiv 0904.1581: mean −1.20653 35745 82, variance 1.60778 10345 81.
    low, high = -10.0, 14.0
    mass = quad(lambda s: float(tracy_widom.cdf(s)), low, high, epsabs=1e-10)[0]
    first = quad(lambda s: s * float(tracy_widom.cdf(s)), low, high, epsabs=1e-10)[0]
    mean = high - mass
    second = high**2 - 2 * first
    assert mean == pytest.approx(-1.206533574582, abs=1e-8)
    assert second - mean**2 == pytest.approx(1.607781034581, abs=1e-7)


@pytest.mark.slow
@settings(deadline=None, max_examples=25)
@given(st.floats(1e-6, 1 - 1e-6))
def test_quantile_inverts_the_cdf(level: float) -> None:
    assert float(tracy_widom.cdf(tracy_widom.quantile(level))) == pytest.approx(level, abs=1e-11)


def test_cdf_takes_arrays_and_far_values() -> None:
    values = tracy_widom.cdf(np.array([[-np.inf, -50.0], [50.0, np.inf]]))
    np.testing.assert_allclose(values, [[0, 0], [1, 1]], atol=1e-14)
    assert np.isnan(tracy_widom.cdf(np.nan))


@pytest.mark.parametrize("level", [0.0, 1.0, -0.5, math.nan])
def test_a_level_outside_its_range_is_refused(level: float) -> None:
    with pytest.raises(ValueError, match="level"):
        tracy_widom.quantile(level)


def test_location_and_scale_agree_with_johnstone() -> None:
    n, p = 40_000, 10_000
    location = (math.sqrt(n - 1) + math.sqrt(p)) ** 2
    scale = (math.sqrt(n - 1) + math.sqrt(p)) * (1 / math.sqrt(n - 1) + 1 / math.sqrt(p)) ** (1 / 3)
    mine = tracy_widom.location_scale((p, n))
    assert abs(mine[0] - location) < 0.02 * scale
    assert mine[1] == pytest.approx(scale, rel=1e-4)
    assert tracy_widom.location_scale((n, p)) == pytest.approx(mine, rel=1e-15)


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(20, 50), (50, 20), (5, 20)])
def test_it_is_the_law_of_the_largest_singular_value(shape: tuple[int, int]) -> None:
    noise, samples = 0.3, 10_000
    matrices = noise * np.random.default_rng(0).standard_normal((samples, *shape))
    gram = matrices @ matrices.swapaxes(1, 2) if shape[0] < shape[1] else matrices.swapaxes(1, 2) @ matrices
    largest = np.sqrt(np.linalg.eigvalsh(gram)[:, -1])
    for level in (0.9, 0.95, 0.99):
        below = np.mean(largest <= tracy_widom.largest_singular_value(shape, noise, level))
        # Ma's error term, and three standard errors of the simulation.
        assert below == pytest.approx(level, abs=0.006 + 3 * math.sqrt(level * (1 - level) / samples))


def test_smallest_and_empty_matrices() -> None:
    assert tracy_widom.largest_singular_value((1, 1), 1.0, 0.99) > 0
    assert tracy_widom.largest_singular_value((1, 1), 1.0, 1e-12) == 0.0
    with pytest.raises(ValueError, match="empty"):
        tracy_widom.location_scale((0, 4))
