import math
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from threadpoolctl import threadpool_limits

from deltamend.spectrum.blocks import FloatArray
from deltamend.spectrum.noise import (
    FORMATS,
    BulkFitNoise,
    FixedNoise,
    MedianNoise,
    NoiseEstimator,
    NonzeroPart,
    QuartileNoise,
    fit_bulk,
    nonzero_part,
    rounding_variance,
)
from deltamend.spectrum.thresholds import GavishDonoho, KnownNoise


@pytest.fixture(autouse=True)
def _one_blas_thread() -> Iterator[None]:
    with threadpool_limits(1):
        yield


STORED = {
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float32": torch.float32,
    "float8_e4m3fn": torch.float8_e4m3fn,
    "float8_e5m2": torch.float8_e5m2,
}


def spectrum_of(matrix: FloatArray) -> NonzeroPart:
    m, n = matrix.shape
    return NonzeroPart(np.linalg.svd(matrix, compute_uv=False), (m, n))


def low_rank(m: int, n: int, sizes: FloatArray, seed: int = 0) -> FloatArray:
    rng = np.random.default_rng(seed)
    u, _ = np.linalg.qr(rng.standard_normal((m, len(sizes))))
    v, _ = np.linalg.qr(rng.standard_normal((n, len(sizes))))
    return np.asarray((u * sizes) @ v.T)


@pytest.mark.parametrize("estimator", [MedianNoise(), QuartileNoise(), BulkFitNoise()])
@pytest.mark.parametrize("shape", [(200, 500), (500, 200), (250, 250)])
def test_estimators_find_the_noise_of_white_noise(estimator: NoiseEstimator, shape: tuple[int, int]) -> None:
    spectrum = spectrum_of(0.02 * np.random.default_rng(0).standard_normal(shape))
    assert estimator.noise(spectrum) == pytest.approx(0.02, rel=0.03)


@pytest.mark.slow
@settings(deadline=None)
@given(st.floats(1e-9, 1e9), st.integers(0, 2**32 - 1))
def test_estimators_scale_with_the_matrix(scale: float, seed: int) -> None:
    values = np.sort(np.random.default_rng(seed).exponential(size=24))[::-1]
    spectrum, scaled = NonzeroPart(values, (24, 60)), NonzeroPart(scale * values, (24, 60))
    for estimator in (MedianNoise(), QuartileNoise(), BulkFitNoise()):
        assert estimator.noise(scaled) == pytest.approx(scale * estimator.noise(spectrum), rel=1e-9)


def test_a_signal_of_a_quarter_of_the_rank_biases_the_median_most() -> None:
    noise = np.random.default_rng(1).standard_normal((300, 600))
    spectrum = spectrum_of(noise + low_rank(300, 600, np.linspace(60, 200, 70)))
    median, quartile, fit = (e.noise(spectrum) for e in (MedianNoise(), QuartileNoise(), BulkFitNoise()))
    assert median > quartile > fit
    assert median > 1.1
    assert fit == pytest.approx(1.0, rel=0.03)
    assert fit_bulk(spectrum).signal == pytest.approx(70, abs=3)


def test_the_misfit_tells_noise_from_something_else() -> None:
    rng = np.random.default_rng(2)
    white = fit_bulk(spectrum_of(rng.standard_normal((300, 500))))
    assert white.misfit < 0.02
    assert white.signal <= 1
    power_law = fit_bulk(NonzeroPart(1.0 / np.arange(1, 301), (300, 500)))
    assert power_law.misfit > 0.1


def test_a_spectrum_of_zeros_has_no_noise() -> None:
    empty = NonzeroPart(np.zeros(8), (8, 20))
    assert fit_bulk(empty) == (0.0, 1.0, 0)
    for estimator in (MedianNoise(), QuartileNoise(), BulkFitNoise()):
        assert estimator.noise(empty) == 0.0


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (2, 2), (3, 1)])
def test_estimators_take_the_smallest_matrices(shape: tuple[int, int]) -> None:
    spectrum = NonzeroPart(np.ones(min(shape)), shape)
    for estimator in (MedianNoise(), QuartileNoise(), BulkFitNoise()):
        assert estimator.noise(spectrum) > 0.0


@pytest.mark.parametrize("name", STORED)
def test_the_spacing_is_that_of_torch(name: str) -> None:
    # Every stored number next to its upper neighbour, subnormals included.
    dtype = STORED[name]
    integers = {1: torch.int8, 2: torch.int16, 4: torch.int32}[dtype.itemsize]
    top = torch.finfo(dtype).max
    last = int(torch.tensor(top).to(dtype).view(integers).item())
    codes = torch.linspace(0, last - 1, min(last, 5000), dtype=torch.float64).to(integers)
    here, above = (c.view(dtype).to(torch.float64).numpy() for c in (codes, codes + 1))
    spacing = above - here
    below = here - (codes - 1).clamp(min=0).view(dtype).to(torch.float64).numpy()
    below[here == 0] = spacing[here == 0]
    # The mean square of an error spread evenly over the cell, from half the gap below to half the gap above.
    expected = (spacing**3 + below**3) / (12 * (spacing + below))
    np.testing.assert_allclose(rounding_variance(here, name), expected, rtol=1e-14)
    np.testing.assert_array_equal(rounding_variance(-here, name), rounding_variance(here, name))


@pytest.mark.parametrize("name", STORED)
def test_the_variance_is_that_of_the_rounding_error_of_torch(name: str) -> None:
    exact = 0.02 * np.random.default_rng(3).standard_normal(1_000_000)
    stored = torch.from_numpy(exact).to(STORED[name]).to(torch.float64).numpy()
    # The widest cells of the 8-bit formats are as wide as the density's own structure, so it is not even over them.
    tolerance = {"float8_e4m3fn": 0.02, "float8_e5m2": 0.05}.get(name, 0.01)
    assert rounding_variance(stored, name).mean() == pytest.approx(np.var(stored - exact), rel=tolerance)


def test_rounding_explains_the_bulk_of_a_bfloat16_delta() -> None:
    rng = np.random.default_rng(4)
    base = torch.from_numpy(0.02 * rng.standard_normal((200, 400))).to(torch.bfloat16).to(torch.float64).numpy()
    # Moves of a few ulp: the update has rank 3 and the rest of the delta is rounding.
    exact = base + low_rank(200, 400, np.array([1.0, 0.6, 0.4]))
    stored = torch.from_numpy(exact).to(torch.bfloat16).to(torch.float64).numpy()
    floor = math.sqrt(float(rounding_variance(stored, "bfloat16").mean()))
    spectrum = spectrum_of(stored - base)
    assert MedianNoise().noise(spectrum) == pytest.approx(floor, rel=0.1)
    assert np.sum(spectrum.values() > KnownNoise(floor).threshold(spectrum).value) == 3
    assert nonzero_part(spectrum, rounding=1.1 * floor).shape == (3, 400)


def test_special_values_and_names() -> None:
    odd = rounding_variance(np.array([np.inf, -np.inf, np.nan, 0.0, 1.0], dtype=np.float32), "BF16")
    np.testing.assert_array_equal(odd[:3], [np.inf, np.inf, np.nan])
    assert odd[4] == (2.0**-7) ** 2 / 16
    assert odd[3] == (2.0**-133) ** 2 / 12
    assert rounding_variance(np.ones((2, 0), dtype=np.float32), "F16").shape == (2, 0)
    assert FORMATS["BF16"] == FORMATS["bfloat16"]
    with pytest.raises(ValueError, match="int8"):
        rounding_variance(np.ones(1), "int8")


@given(st.integers(1, 8), st.floats(1e-6, 1e3))
def test_the_nonzero_part_has_the_rank_of_the_adapter(rank: int, size: float) -> None:
    spectrum = spectrum_of(low_rank(20, 50, size * np.linspace(1, 2, rank)))
    part = nonzero_part(spectrum)
    assert part.shape == (rank, 50)
    assert part.energy == pytest.approx(spectrum.energy, rel=1e-12)
    assert part.largest() == spectrum.largest()
    # Turned into its column space the update is a rank × n matrix with these singular values.
    u, values, vt = np.linalg.svd(low_rank(20, 50, size * np.linspace(1, 2, rank)), full_matrices=False)
    turned = u[:, :rank].T @ ((u * values) @ vt)
    np.testing.assert_allclose(np.linalg.svd(turned, compute_uv=False), part.values(), rtol=1e-9)


def test_a_rule_on_the_nonzero_part() -> None:
    sizes = np.array([9.0, 7.0, *np.linspace(1.05, 0.95, 14)])
    spectrum = spectrum_of(low_rank(64, 3000, sizes))
    assert spectrum.median() < 1e-12
    found = GavishDonoho().threshold(nonzero_part(spectrum))
    assert 1.05 < found.value < 7.0


def test_an_update_of_zero_has_no_nonzero_part() -> None:
    with pytest.raises(ValueError, match="zero"):
        nonzero_part(NonzeroPart(np.zeros(4), (4, 4)))
    with pytest.raises(ValueError, match="relative_floor"):
        nonzero_part(NonzeroPart(np.ones(4), (4, 4)), relative_floor=1.0)


@pytest.mark.parametrize("value", [-1.0, math.nan, math.inf])
def test_a_fixed_noise_outside_its_range_is_refused(value: float) -> None:
    with pytest.raises(ValueError, match="noise"):
        FixedNoise(value)
