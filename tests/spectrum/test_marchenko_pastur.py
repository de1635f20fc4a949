import math
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mpmath import mp  # type: ignore[import-untyped]
from scipy.integrate import quad
from threadpoolctl import threadpool_limits

from deltamend.spectrum.marchenko_pastur import (
    MarchenkoPastur,
    MarchenkoPasturSingular,
    _lower_mass,
    aspect_ratio,
    median,
    singular_value_law,
)


@pytest.fixture(autouse=True)
def _one_blas_thread() -> Iterator[None]:
    with threadpool_limits(1):
        yield


Law = MarchenkoPastur | MarchenkoPasturSingular
BETAS = [1e-6, 0.01, 0.043, 0.05, 0.25, 0.5, 0.9, 0.9999, 1.0]
LAWS = [MarchenkoPastur, MarchenkoPasturSingular]


def textbook_density(x: float, beta: float) -> float:
    """The eigenvalues' density as the papers print it."""
    a, b = (1 - math.sqrt(beta)) ** 2, (1 + math.sqrt(beta)) ** 2
    return math.sqrt((b - x) * (x - a)) / (2 * math.pi * beta * x)


def quadrature_cdf(x: float, beta: float) -> float:
    """The textbook density integrated by QUADPACK, with the two square-root edges as an algebraic weight."""
    a, b = (1 - math.sqrt(beta)) ** 2, (1 + math.sqrt(beta)) ** 2
    options = {"epsabs": 1e-11, "epsrel": 1e-11, "limit": 200}
    middle = (a + b) / 2
    left = (0.5, 0.0) if a > 0 else (-0.5, 0.0)

    def below(t: float) -> float:
        return math.sqrt(b - t) / (2 * math.pi * beta * (t if a > 0 else 1.0))

    def above(t: float) -> float:
        return math.sqrt(t - a) / (2 * math.pi * beta * t)

    if x <= middle:
        return float(quad(below, a, x, weight="alg", wvar=left, **options)[0])
    return 1 - float(quad(above, x, b, weight="alg", wvar=(0.0, 0.5), **options)[0])


def mass_in_high_precision(theta: float, beta: float) -> float:
    """F in the angle, by mpmath in 30 digits."""
    with mp.workdps(30):
        root = mp.sqrt(mp.mpf(beta))
        if beta == 1.0:
            return float((theta + mp.sin(theta)) / mp.pi)
        density = lambda t: mp.sin(t) ** 2 / (1 + mp.mpf(beta) - 2 * root * mp.cos(t))  # noqa: E731
        knee = min(mp.mpf(theta) / 2, 1 - root)
        return float(2 / mp.pi * mp.quad(density, [0, knee, theta]))


@pytest.mark.parametrize("beta", BETAS)
def test_cdf_agrees_with_quadrature_of_the_textbook_density(beta: float) -> None:
    law = MarchenkoPastur(beta)
    low, high = law.support()
    for fraction in (0.01, 0.1, 0.3, 0.5, 0.7, 0.9, 0.99):
        x = low + fraction * (high - low)
        assert float(law.cdf(x)) == pytest.approx(quadrature_cdf(x, beta), abs=1e-10)
        assert float(law.pdf(x)) == pytest.approx(textbook_density(x, beta), rel=1e-9)


@pytest.mark.parametrize("law_type", LAWS)
@pytest.mark.parametrize("beta", [1e-6, 0.05, 0.5, 0.9999, 1.0])
def test_cdf_is_the_integral_of_the_pdf(law_type: type[Law], beta: float) -> None:
    law = law_type(beta, 2.5)
    low, high = law.support()
    for fraction in (0.25, 0.75):
        x = low + fraction * (high - low)
        # Substituting x = x₁ − t² or x₀ + t² removes the square root at the edge that the integral ends at.
        mass = quad(lambda t: 2 * t * law.pdf(high - t * t), 0, math.sqrt(high - x), epsabs=1e-12, epsrel=1e-12)[0]
        assert float(law.sf(x)) == pytest.approx(mass, abs=1e-10)
        assert float(law.cdf(x)) == pytest.approx(1 - mass, abs=1e-10)


@pytest.mark.slow
@pytest.mark.parametrize("beta", BETAS)
@pytest.mark.parametrize("theta", [1e-6, 1e-3, 0.05, 0.5, 1.0, 2.0, 3.0])
def test_cdf_keeps_its_relative_accuracy_next_to_the_edge(beta: float, theta: float) -> None:
    assert float(_lower_mass(np.array(theta), beta)) == pytest.approx(mass_in_high_precision(theta, beta), rel=1e-13)


@pytest.mark.parametrize("beta", BETAS)
def test_median_in_high_precision(beta: float) -> None:
    with mp.workdps(30):
        root = mp.sqrt(mp.mpf(beta))
        theta = 2 * mp.asin(mp.sqrt((mp.mpf(median(beta)) - (1 - root) ** 2) / (4 * root)))
        density = MarchenkoPastur(beta).pdf(median(beta))
        residual = mass_in_high_precision(float(theta), beta) - 0.5
    assert abs(residual / float(density)) <= 1e-12 * median(beta)


@pytest.mark.slow
@settings(deadline=None)
@given(st.floats(1e-8, 1.0), st.floats(0.0, 1.0), st.floats(1e-12, 1e6), st.sampled_from(LAWS))
def test_quantile_inverts_the_cdf(beta: float, q: float, scale: float, law_type: type[Law]) -> None:
    law = law_type(beta, scale)
    low, high = law.support()
    x = float(law.ppf(q))
    assert low * (1 - 1e-15) <= x <= high * (1 + 1e-15)
    # A value next to an edge is only as well known as its last bit: one bit of x, carried through the density.
    spread = float(law.cdf(x * (1 + 4e-16)) - law.cdf(x * (1 - 4e-16)))
    assert float(law.cdf(x)) == pytest.approx(q, abs=1e-14 + 2 * spread)
    assert float(law.cdf(x) + law.sf(x)) == pytest.approx(1, abs=1e-14)


@settings(deadline=None)
@given(st.floats(1e-8, 1.0), st.floats(0.0, 5.0))
def test_singular_values_are_the_square_roots_of_eigenvalues(beta: float, y: float) -> None:
    eigen, singular = MarchenkoPastur(beta, 4.0), MarchenkoPasturSingular(beta, 2.0)
    assert float(singular.cdf(y)) == pytest.approx(float(eigen.cdf(y * y)), abs=1e-6)
    assert singular.median() == pytest.approx(math.sqrt(eigen.median()), rel=1e-14)
    assert singular.support() == pytest.approx([math.sqrt(edge) for edge in eigen.support()], rel=1e-14)


def test_moments() -> None:
    law = MarchenkoPastur(0.3, 2.0)
    q = (np.arange(4000) + 0.5) / 4000
    values = law.ppf(q)
    assert values.mean() == pytest.approx(law.mean(), rel=1e-5)
    assert values.var() == pytest.approx(law.var(), rel=1e-4)


def test_it_is_the_law_of_random_matrices() -> None:
    m, n, noise = 200, 500, 0.7
    values = np.linalg.svd(noise * np.random.default_rng(0).standard_normal((m, n)), compute_uv=False)
    law = singular_value_law((n, m), noise)
    assert aspect_ratio((n, m)) == 0.4
    steps = (np.arange(m) + 0.5) / m
    assert np.abs(law.cdf(np.sort(values)) - steps).max() < 0.01


def test_outside_the_support_and_odd_input() -> None:
    for law in (MarchenkoPastur(0.5), MarchenkoPasturSingular(0.5), MarchenkoPasturSingular(1.0)):
        low, high = law.support()
        np.testing.assert_array_equal(type(law)(law.beta, 1e-300).cdf([1e300, -1e300]), [1.0, 0.0])
        outside = np.array([-1.0, low - 1e-3, high + 1e-3, np.inf, -np.inf])
        np.testing.assert_array_equal(law.pdf(outside), 0.0)
        np.testing.assert_array_equal(law.cdf(outside), [0, 0, 1, 1, 0])
        np.testing.assert_array_equal(law.sf(outside), [1, 1, 0, 0, 1])
        np.testing.assert_array_equal(law.ppf([0.0, 1.0]), law.support())
        assert np.isnan(law.ppf([-0.1, 1.1, np.nan])).all()
        assert np.isnan(law.cdf(np.nan))
        assert np.isnan(law.pdf(np.nan))
        assert law.cdf(np.zeros((2, 3))).shape == (2, 3)
    assert float(MarchenkoPastur(1.0).pdf(0.0)) == np.inf
    assert float(MarchenkoPasturSingular(1.0).pdf(0.0)) == pytest.approx(2 / math.pi)


@pytest.mark.parametrize("beta", [0.0, -0.5, 1.0001, math.nan, math.inf])
def test_a_ratio_outside_its_range_is_refused(beta: float) -> None:
    with pytest.raises(ValueError, match="beta"):
        MarchenkoPastur(beta)
    with pytest.raises(ValueError, match="beta"):
        median(beta)


@pytest.mark.parametrize("scale", [0.0, -1.0, math.nan, math.inf])
def test_a_scale_outside_its_range_is_refused(scale: float) -> None:
    with pytest.raises(ValueError, match="scale"):
        MarchenkoPasturSingular(0.5, scale)


def test_an_empty_matrix_is_refused() -> None:
    with pytest.raises(ValueError, match="empty"):
        aspect_ratio((0, 3))
