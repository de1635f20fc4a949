import math
from collections.abc import Callable, Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import brentq
from threadpoolctl import threadpool_limits

from deltamend.spectrum.blocks import FloatArray
from deltamend.spectrum.noise import BulkFitNoise, FixedNoise, MedianNoise, NoiseEstimator, NonzeroPart, QuartileNoise
from deltamend.spectrum.thresholds import (
    EnergyFraction,
    FixedRank,
    GavishDonoho,
    KnownNoise,
    MarchenkoPasturEdge,
    ScreeNOT,
    ThresholdRule,
    TracyWidomEdge,
    median_coefficient,
    optimal_coefficient,
)


@pytest.fixture(autouse=True)
def _one_blas_thread() -> Iterator[None]:
    with threadpool_limits(1):
        yield


def spectrum_of(matrix: FloatArray) -> NonzeroPart:
    m, n = matrix.shape
    return NonzeroPart(np.linalg.svd(matrix, compute_uv=False), (m, n))


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
    found = GavishDonoho().threshold(NonzeroPart(np.array([2.0, 0.0, 0.0, 0.0]), (4, 9)))
    assert (found.value, found.noise) == (0.0, 0.0)


@pytest.mark.parametrize("noise", [-1.0, math.nan, math.inf])
def test_a_noise_level_outside_its_range_is_refused(noise: float) -> None:
    with pytest.raises(ValueError, match="noise"):
        KnownNoise(noise)


RULES: list[ThresholdRule] = [
    GavishDonoho(),
    GavishDonoho(QuartileNoise()),
    GavishDonoho(BulkFitNoise()),
    MarchenkoPasturEdge(),
    TracyWidomEdge(),
    ScreeNOT(),
    ScreeNOT(5),
]
descending = st.lists(st.floats(0.0, 1e3), min_size=1, max_size=30).map(lambda x: np.array(sorted(x, reverse=True)))


@settings(deadline=None)
@given(descending, st.integers(0, 40), st.floats(1e-6, 1e6), st.sampled_from(RULES))
def test_noise_rules_scale_with_the_matrix(values: FloatArray, longer: int, scale: float, rule: ThresholdRule) -> None:
    shape = (values.size, values.size + longer)
    once = rule.threshold(NonzeroPart(values, shape))
    scaled = rule.threshold(NonzeroPart(scale * values, shape[::-1]))
    assert 0.0 <= once.value < math.inf
    assert scaled.value == pytest.approx(scale * once.value, rel=1e-9, abs=1e-300)
    assert (once.noise is None) == isinstance(rule, ScreeNOT)


def test_the_rules_are_ordered_as_the_theory_says() -> None:
    spectrum = spectrum_of(np.random.default_rng(2).standard_normal((200, 300)))
    noise = MedianNoise().noise(spectrum)
    edge, tail, hard = (r.threshold(spectrum) for r in (MarchenkoPasturEdge(), TracyWidomEdge(), GavishDonoho()))
    assert edge.value == pytest.approx(noise * (math.sqrt(200) + math.sqrt(300)))
    assert edge.value < tail.value < hard.value
    assert ScreeNOT().threshold(spectrum).value == pytest.approx(hard.value, rel=0.03)
    assert edge.noise == tail.noise == hard.noise == noise
    known = TracyWidomEdge(0.5, FixedNoise(1.0)).threshold(spectrum)
    assert known.noise == 1.0
    assert known.value == pytest.approx(spectrum.largest(), rel=0.02)


def test_the_tracy_widom_edge_is_crossed_as_often_as_it_says() -> None:
    rule = TracyWidomEdge(0.9, FixedNoise(1.0))
    grams = (x @ x.T for x in np.random.default_rng(3).standard_normal((1000, 30, 60)))
    spectra = (NonzeroPart(np.sqrt(np.linalg.eigvalsh(gram)[::-1]), (30, 60)) for gram in grams)
    crossed = np.mean([spectrum.largest() > rule.threshold(spectrum).value for spectrum in spectra])
    assert crossed == pytest.approx(0.1, abs=0.035)


@given(descending, st.integers(0, 40))
def test_fixed_rank_keeps_at_most_that_many(values: FloatArray, rank: int) -> None:
    threshold = FixedRank(rank).threshold(NonzeroPart(values, (values.size, 50))).value
    kept = int(np.sum(values > threshold))
    distinct = rank == 0 or rank >= values.size or values[rank - 1] > values[rank]
    if distinct:
        assert kept == min(rank, np.count_nonzero(values))
    else:
        assert kept == np.sum(values > values[rank])


def test_fixed_rank_stays_clear_of_both_neighbours() -> None:
    spectrum = NonzeroPart(np.array([4.0, 3.0, 1.0, 1.0]), (4, 6))
    assert FixedRank(2).threshold(spectrum).value == 2.0
    assert FixedRank(3).threshold(spectrum).value == 2.0  # σ₃ = σ₄: both are dropped
    assert FixedRank(0).threshold(spectrum).value == 8.0
    assert FixedRank(9).threshold(spectrum).value == 0.0
    neighbours = NonzeroPart(np.array([np.nextafter(1.0, 2.0), 1.0]), (2, 2))
    assert FixedRank(1).threshold(neighbours).value == 1.0


@given(descending, st.floats(0.0, 1.0))
def test_energy_fraction_keeps_the_fewest_that_suffice(values: FloatArray, fraction: float) -> None:
    energies = values**2
    threshold = EnergyFraction(fraction).threshold(NonzeroPart(values, (values.size, 50))).value
    kept = int(np.sum(values > threshold))
    assert energies[:kept].sum() >= (fraction - 1e-12) * energies.sum()
    if kept > 0:
        assert energies[values > values[kept - 1]].sum() <= (fraction + 1e-12) * energies.sum()


def test_energy_fraction_by_hand() -> None:
    spectrum = NonzeroPart(np.array([2.0, 1.0, 1.0, 1e-9, 0.0]), (5, 5))
    kept = [int(np.sum(spectrum.values() > EnergyFraction(f).threshold(spectrum).value)) for f in (0, 0.5, 0.7, 0.9, 1)]
    assert kept == [0, 1, 3, 3, 4]


@pytest.mark.parametrize("estimator", [MedianNoise(), QuartileNoise(), BulkFitNoise(), FixedNoise(0.5)])
def test_a_rule_takes_any_noise_estimator(estimator: NoiseEstimator) -> None:
    spectrum = spectrum_of(np.random.default_rng(4).standard_normal((40, 50)))
    for rule in (GavishDonoho(estimator), MarchenkoPasturEdge(estimator), TracyWidomEdge(0.95, estimator)):
        assert rule.threshold(spectrum).noise == estimator.noise(spectrum)


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: TracyWidomEdge(1.0), "level"),
        (lambda: FixedRank(-1), "rank"),
        (lambda: ScreeNOT(-1), "rank"),
        (lambda: EnergyFraction(1.1), "fraction"),
        (lambda: EnergyFraction(math.nan), "fraction"),
        (lambda: optimal_coefficient(0.0), "beta"),
    ],
)
def test_parameters_outside_their_range_are_refused(make: Callable[[], object], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        make()


def test_equal_rules_are_equal() -> None:
    assert GavishDonoho() == GavishDonoho(MedianNoise())
    assert repr(FixedRank(3)) == "FixedRank(rank=3)"
