from __future__ import annotations

import itertools
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.stats import ks_2samp, kstest

from deltamend.spectrum import goodness_of_fit
from deltamend.spectrum.goodness_of_fit import (
    Array,
    check_bulk,
    distances,
    noise_spectrum,
    null_distances,
    p_value,
)
from deltamend.spectrum.marchenko_pastur import MarchenkoPasturSingular, singular_value_law
from deltamend.spectrum.thresholds import median_coefficient

SHAPE = (60, 150)


def dg_hard(values: Array, shape: tuple[int, int]) -> float:
    return median_coefficient(min(shape) / max(shape)) * float(np.median(values))


def svd(matrix: Array) -> Array:
    return np.asarray(np.linalg.svd(matrix, compute_uv=False), np.float64)


def test_drawn_spectra_have_the_law_of_a_gaussian_matrix() -> None:
    random = np.random.default_rng(0)
    drawn = np.array([noise_spectrum((8, 20), random) for _ in range(600)])
    real = np.array([svd(random.standard_normal((8, 20)))[::-1] for _ in range(600)])
    for index in (0, 3, 7):
        assert ks_2samp(drawn[:, index], real[:, index]).pvalue > 0.01


@pytest.mark.slow
def test_p_values_of_noise_are_uniform() -> None:
    random = np.random.default_rng(1)
    tests = []
    for _ in range(300):
        values = svd(random.standard_normal(SHAPE))
        tests.append(check_bulk(values, SHAPE, dg_hard(values, SHAPE)))
    assert kstest([test.ks_p for test in tests if test], "uniform").pvalue > 0.01
    assert kstest([test.ad_p for test in tests if test], "uniform").pvalue > 0.01


@pytest.mark.slow
def test_a_signal_above_the_threshold_is_left_out() -> None:
    random = np.random.default_rng(2)
    signal = 400.0 * random.standard_normal((60, 3)) @ random.standard_normal((3, 150))
    values = svd(random.standard_normal(SHAPE) + signal)
    test = check_bulk(values, SHAPE, dg_hard(values, SHAPE))
    assert test is not None
    assert (test.size, test.shape) == (57, (57, 147))
    assert test.noise == pytest.approx(1.0, abs=0.03)
    assert test.edges == pytest.approx((147**0.5 - 57**0.5, 147**0.5 + 57**0.5), rel=0.03)
    assert min(test.ks_p, test.ad_p) > 0.01
    assert test.beyond_edge == 3


@pytest.mark.slow
@pytest.mark.parametrize("transposed", [False, True])
def test_unequal_rows_and_correlated_rows_are_seen(transposed: bool) -> None:
    random = np.random.default_rng(3)
    uneven = random.standard_normal(SHAPE) * np.exp(0.5 * random.standard_normal((60, 1)))
    smooth = random.standard_normal(SHAPE)
    for index in range(1, 60):
        smooth[index] = 0.6 * smooth[index - 1] + 0.8 * smooth[index]
    for matrix in (uneven, smooth):
        shape = SHAPE[::-1] if transposed else SHAPE
        values = svd(matrix.T if transposed else matrix)
        test = check_bulk(values, shape, dg_hard(values, shape))
        assert test is not None
        assert max(test.ks_p, test.ad_p) < 0.01


def test_distances_are_those_of_their_definitions() -> None:
    law = singular_value_law(SHAPE, 1.0)
    values = np.sort(law.ppf(np.random.default_rng(4).uniform(0.02, 0.98, 40)))
    found = distances(values, law)
    assert found.ks == pytest.approx(kstest(values, law.cdf).statistic)
    mass = law.cdf(values)

    def integrand(f: float) -> float:
        return float((np.searchsorted(mass, f, side="right") / 40 - f) ** 2 / (f * (1 - f)))

    ends = [0.0, *mass, 1.0]
    integral = sum(quad(integrand, a, b)[0] for a, b in itertools.pairwise(ends))
    assert found.ad == pytest.approx(40 * integral, rel=1e-6)


def test_the_law_is_truncated_at_the_threshold() -> None:
    law = MarchenkoPasturSingular(0.4)
    threshold = float(law.ppf(0.7))
    values = law.ppf((np.arange(500) + 0.5) / 500 * 0.7)
    assert distances(values, law, threshold).ks == pytest.approx(0.001, abs=1e-6)
    assert distances(values, law).ks == pytest.approx(0.3, abs=0.01)


def test_too_few_values_are_not_tested() -> None:
    values = np.linspace(2.0, 1.0, 15)
    assert check_bulk(values, (15, 40), 10.0) is None
    assert check_bulk(np.concatenate([[1.0], np.zeros(39)]), (40, 40), 2.0) is None


def test_the_smallest_p_value_is_one_in_the_draws() -> None:
    assert p_value(9.0, np.zeros(99)) == 0.01
    assert p_value(0.0, np.zeros(99)) == 1.0


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(320, 320), (320, 900)])
def test_distances_of_larger_noise_are_scaled_to_within_a_few_percent(shape: tuple[int, int]) -> None:
    random = np.random.default_rng(5)
    law = MarchenkoPasturSingular(shape[0] / shape[1])
    drawn = []
    for _ in range(250):
        values = noise_spectrum(shape, random)
        drawn.append(distances(values, MarchenkoPasturSingular(law.beta, float(np.median(values)) / law.median())))
    scaled = null_distances(shape, exact=True)
    for column in (0, 1):
        ratio = np.median(np.array(drawn)[:, column]) / np.median(scaled[:, column])
        assert ratio == pytest.approx(1.0, abs=0.07)


def test_threads_share_one_simulation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(goodness_of_fit, "SIMULATIONS", 50)
    with ThreadPoolExecutor(4) as executor:
        found = list(executor.map(lambda _: null_distances((31, 77), exact=True), range(8)))
    assert all(one is found[0] for one in found)
