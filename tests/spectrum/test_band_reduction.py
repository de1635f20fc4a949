"""The band route against the tridiagonal one."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from deltamend.spectrum import band_reduction as band
from deltamend.spectrum import routes
from deltamend.spectrum.band_reduction import Band, BlockTridiagonal, reduce_to_band
from deltamend.spectrum.blocks import FloatArray
from deltamend.spectrum.decompositions import UnsureError, Workspace
from deltamend.spectrum.filter import filter_delta
from deltamend.spectrum.thresholds import EnergyFraction, GavishDonoho
from tests.spectrum.matrices import DTYPES, gram_of, singular_values, spiked


@pytest.mark.parametrize("size", [257, 320, 500])
def test_the_band_reduction_is_a_similarity(size: int) -> None:
    square = gram_of(spiked((size, size + 20), 4), np.float64).square
    full = np.tril(square) + np.tril(square, -1).T
    reduced = np.array(square, order="F")
    reflectors = reduce_to_band(reduced, Workspace())
    blocks = BlockTridiagonal(reduced)
    dense = blocks.leading(len(blocks.diagonal))[:size, :size]
    np.testing.assert_allclose(np.linalg.eigvalsh(dense), np.linalg.eigvalsh(full), atol=1e-10 * full[0, 0] * size)
    identity = np.eye(size, order="F")
    band.apply_q(reflectors, identity, size)
    np.testing.assert_allclose(identity @ dense @ identity.T, full, atol=1e-9 * np.abs(full).max())


def test_inverse_iteration_finds_the_eigenvalues_around_a_shift(delta: FloatArray, exact: FloatArray) -> None:
    found = Band(gram_of(delta, np.float64), Workspace())
    near = found._near(float(exact[450] ** 2) * 1.0001)
    assert {449, 450, 451} <= near.keys()
    for index, value in near.items():
        assert value == pytest.approx(exact[index] ** 2, rel=1e-6)


def test_an_even_median_is_between_its_two_neighbours() -> None:
    delta = spiked((512, 640), 5)
    found = Band(gram_of(delta, np.float32), Workspace())
    exact = singular_values(delta)
    assert (found.value(255) + found.value(256)) / 2 == pytest.approx(float(np.median(exact)), rel=1e-6)
    assert found.route == "band-float32"


@pytest.mark.parametrize(
    ("where", "replacement"),
    [
        ("_search", "no shift near the median was found"),
        ("_near", "inverse iteration did not reach the median"),
        ("_vectors", "the leading eigenvectors did not converge"),
        ("_leading_pairs", "the leading eigenvectors did not converge"),
    ],
)
def test_the_band_route_turns_tridiagonal_wherever_it_fails(
    monkeypatch: pytest.MonkeyPatch, delta: FloatArray, exact: FloatArray, where: str, replacement: str
) -> None:
    def fails(*_: Any) -> Any:
        raise UnsureError(replacement)

    monkeypatch.setattr(Band, where, fails)
    found = filter_delta(delta, GavishDonoho(), _route="band-float32")
    assert (found.route, found.rank) == ("tridiagonal-float32", 12)
    np.testing.assert_allclose(found.singular_values, exact[:12], rtol=2e-6)


def test_missed_eigenvalues_are_noticed(monkeypatch: pytest.MonkeyPatch, delta: FloatArray, exact: FloatArray) -> None:
    def misses_one(self: Band, shift: float, near: Any = Band._near) -> dict[int, float]:
        found = near(self, shift)
        return {i: found.get(i + 1 if i >= 450 else i - 1, value) for i, value in found.items()}

    monkeypatch.setattr(Band, "_near", misses_one)
    found = Band(gram_of(delta, np.float32), Workspace())
    assert found.value(450) == pytest.approx(exact[450], rel=2e-6)
    assert found.route == "tridiagonal-float32"


@pytest.mark.parametrize(
    "values",
    [
        np.r_[np.linspace(2.0, 1.0, 20), np.zeros(380)],  # rank-deficient
        np.arange(1, 401) ** -1.0,  # heavy-tailed: no bulk
        np.ones(400),  # one cluster
        np.r_[np.full(200, 3.0), np.full(200, 1.0)],  # two
    ],
)
def test_hard_spectra_give_the_same_answer_by_either_reduction(
    monkeypatch: pytest.MonkeyPatch, values: FloatArray
) -> None:
    rng = np.random.default_rng(1)
    left, right = (np.linalg.qr(rng.standard_normal((side, 400)))[0] for side in (400, 500))
    delta = (left * values) @ right.T
    for dtype in DTYPES:
        by_tridiagonal = filter_delta(delta.astype(dtype), GavishDonoho())
        with monkeypatch.context() as patch:
            patch.setattr(routes, "_BAND_FROM", 300)
            by_band = filter_delta(delta.astype(dtype), GavishDonoho())
        assert (by_band.outcome, by_band.rank) == (by_tridiagonal.outcome, by_tridiagonal.rank)


@pytest.mark.slow
def test_the_band_route_gives_the_same_bytes_from_several_threads(delta: FloatArray) -> None:
    def run(seed: int) -> bytes:
        shift = np.empty(seed * 1000 + 1, np.uint8)  # moves later allocations
        found = filter_delta(delta, GavishDonoho(), _route="band-float32")
        assert found.route == "band-float32"
        assert found.basis is not None
        return bytes(shift[:0]) + found.basis.tobytes() + np.float64(found.threshold).tobytes()

    with ThreadPoolExecutor(3) as pool:
        assert len(set(pool.map(run, range(6)))) == 1


def test_a_rule_that_wants_the_whole_spectrum_turns_the_band_route(delta: FloatArray, exact: FloatArray) -> None:
    found = filter_delta(delta, EnergyFraction(0.5), _route="band-float32")
    assert found.route == "tridiagonal-float32"
    assert found.rank == np.searchsorted(np.cumsum(exact**2), 0.5 * np.sum(exact**2)) + 1
