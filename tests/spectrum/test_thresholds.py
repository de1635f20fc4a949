import math
from dataclasses import dataclass

import numpy as np
import pytest
from scipy.optimize import brentq

from deltamend.spectrum.blocks import FloatArray
from deltamend.spectrum.noise import FixedNoise
from deltamend.spectrum.thresholds import (
    GavishDonoho,
    KnownNoise,
    median_coefficient,
    optimal_coefficient,
)


@dataclass(frozen=True)
class GivenSpectrum:
    """A spectrum whose singular values are written down."""

    singular_values: FloatArray
    shape: tuple[int, int]

    @property
    def energy(self) -> float:
        return float(np.sum(self.singular_values**2))

    def median(self) -> float:
        return float(np.median(self.singular_values))

    def largest(self) -> float:
        return float(self.singular_values[0])

    def values(self) -> FloatArray:
        return self.singular_values


def spectrum_of(matrix: FloatArray) -> GivenSpectrum:
    m, n = matrix.shape
    return GivenSpectrum(np.linalg.svd(matrix, compute_uv=False), (m, n))


def test_published_coefficients() -> None:
    assert optimal_coefficient(1.0) == pytest.approx(4 / math.sqrt(3), rel=1e-15)
    assert median_coefficient(1.0) == pytest.approx(2.8582, abs=2e-4)
    # For β = 1 the median solves θ + sin θ = π/2 with μ = 2 − 2·cos θ; the paper's fourth decimal is off by 1.6.
    theta = brentq(lambda t: t + math.sin(t) - math.pi / 2, 0, math.pi, xtol=1e-15)
    assert median_coefficient(1.0) == pytest.approx(4 / math.sqrt(3) / math.sqrt(2 - 2 * math.cos(theta)), rel=1e-13)
    # The cubic approximation printed in arXiv 1305.5870, eq. 5, whose error the paper bounds by 0.02.
    for beta in np.linspace(0.001, 1.0, 50):
        cubic = 0.56 * beta**3 - 0.95 * beta**2 + 1.82 * beta + 1.43
        assert median_coefficient(float(beta)) == pytest.approx(cubic, abs=0.02)


@pytest.mark.parametrize("shape", [(200, 500), (500, 200)])
def test_gavish_donoho_separates_spikes_from_noise(shape: tuple[int, int]) -> None:
    rng = np.random.default_rng(1)
    u, _ = np.linalg.qr(rng.standard_normal((shape[0], 3)))
    v, _ = np.linalg.qr(rng.standard_normal((shape[1], 3)))
    noise = 0.3
    signal = noise * math.sqrt(500) * (u * [8.0, 5.0, 3.0]) @ v.T
    spectrum = spectrum_of(signal + noise * rng.standard_normal(shape))
    found = GavishDonoho().threshold(spectrum)
    assert found.value == pytest.approx(median_coefficient(0.4) * spectrum.median(), rel=1e-14)
    assert found.noise == pytest.approx(noise, rel=0.02)
    assert np.sum(spectrum.values() > found.value) == 3
    known = KnownNoise(noise).threshold(spectrum)
    assert known == GavishDonoho(FixedNoise(noise)).threshold(spectrum)
    assert known.value == pytest.approx(optimal_coefficient(0.4) * math.sqrt(500) * noise, rel=1e-14)


def test_a_spectrum_without_a_floor_gives_threshold_zero() -> None:
    found = GavishDonoho().threshold(GivenSpectrum(np.array([2.0, 0.0, 0.0, 0.0]), (4, 9)))
    assert (found.value, found.noise) == (0.0, 0.0)


@pytest.mark.parametrize("noise", [-1.0, math.nan, math.inf])
def test_a_noise_level_outside_its_range_is_refused(noise: float) -> None:
    with pytest.raises(ValueError, match="noise"):
        KnownNoise(noise)
