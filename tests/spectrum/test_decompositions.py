"""The routes to singular values, each against numpy, and the wrappers of LAPACK, which must never see a wrong size."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
from scipy.linalg import cython_blas
from threadpoolctl import threadpool_limits

from deltamend.spectrum import band, blas, decompositions, fortran_calls, lapack, routes
from deltamend.spectrum.band import Band, BlockTridiagonal, reduce_to_band
from deltamend.spectrum.blocks import ArrayBlocks, FloatArray
from deltamend.spectrum.decompositions import Gram, Tridiagonal, UnsureError, Workspace, gram
from deltamend.spectrum.filter import filter_delta
from deltamend.spectrum.fortran_calls import LapackError
from deltamend.spectrum.thresholds import EnergyFraction, GavishDonoho

DTYPES = [np.float32, np.float64]


@pytest.fixture(autouse=True)
def _one_blas_thread() -> Iterator[None]:
    with threadpool_limits(1):
        yield


def spiked(shape: tuple[int, int], rank: int, seed: int = 0, strength: float = 3.0) -> FloatArray:
    """Unit noise with `rank` spikes above its edge, float32."""
    rng = np.random.default_rng(seed)
    left, right = (np.linalg.qr(rng.standard_normal((side, max(1, rank))))[0][:, :rank] for side in shape)
    edge = np.sqrt(shape[0]) + np.sqrt(shape[1])
    values = strength * edge * (np.arange(1, rank + 1) / max(1, rank)) ** -0.7
    return np.asarray((left * values) @ right.T + rng.standard_normal(shape), np.float32)


def gram_of(delta: FloatArray, dtype: type[Any]) -> Gram:
    return gram(ArrayBlocks(delta), dtype, Workspace())


def singular_values(delta: FloatArray) -> FloatArray:
    return np.asarray(np.linalg.svd(delta.astype(np.float64), compute_uv=False))


@pytest.fixture(scope="module")
def delta() -> FloatArray:
    return spiked((901, 1000), 12)  # 901 is no multiple of the band width


@pytest.fixture(scope="module")
def exact(delta: FloatArray) -> FloatArray:
    return singular_values(delta)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("route", [Tridiagonal, Band])
def test_values_counts_and_vectors_match_an_svd(
    delta: FloatArray, exact: FloatArray, dtype: type[Any], route: Callable[[Gram, Workspace], Any]
) -> None:
    square = gram_of(delta, dtype)
    found = route(square, Workspace())
    assert found.route == f"{route.__name__.lower()}-{np.dtype(dtype)}"
    for index in (0, 450):
        assert found.value(index) == pytest.approx(exact[index], rel=2e-6)
    for bound in (exact[3] * 1.001, exact[3] * 0.999, exact[450] * 1.0001, 0.0, 1e300):
        assert found.count_above(bound) == np.count_nonzero(exact > bound)
    threshold = (exact[11] + exact[12]) / 2.0
    assert found.count_above(threshold) == 12
    assert found.value(11) == pytest.approx(exact[11], rel=2e-6)
    assert exact[12] * (1 - 1e-6) <= found.value(12) <= exact[12] * 1.021
    values, basis = found.leading(12)
    np.testing.assert_allclose(values, exact[:12], rtol=2e-6)
    np.testing.assert_allclose(basis.T @ basis, np.eye(12), atol=1e-5)
    u = np.linalg.svd(delta.astype(np.float64), full_matrices=False)[0][:, :12]
    np.testing.assert_allclose(np.linalg.svd(u.T @ basis, compute_uv=False), 1.0, rtol=1e-6)
    assert found.route.startswith(route.__name__.lower())
    np.testing.assert_allclose(found.values()[:600], exact[:600], rtol=2e-5)
    assert found.route == f"tridiagonal-{np.dtype(dtype)}"
    assert found.value(5) == pytest.approx(exact[5], rel=2e-6)


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


def test_large_shorter_sides_take_the_band_route(monkeypatch: pytest.MonkeyPatch, delta: FloatArray) -> None:
    monkeypatch.setattr(routes, "_BAND_FROM", 700)
    for source in (delta, np.ascontiguousarray(delta.T)):
        found = filter_delta(source, GavishDonoho())
        assert (found.route, found.rank, found.reason) == ("band-float32", 12, "")


def test_a_workspace_keeps_aligned_buffers() -> None:
    workspace = Workspace()
    first = workspace.array("a", (5, 3), np.float32)
    again = workspace.array("a", (2, 3), np.float64)
    assert first.flags.f_contiguous
    assert first.ctypes.data % 64 == again.ctypes.data % 64 == 0
    assert np.shares_memory(first, again)
    assert not np.shares_memory(first, workspace.array("b", (5, 3), np.float32))


def test_float64_blocks_are_not_squared_in_float32() -> None:
    with pytest.raises(UnsureError, match="float64"):
        gram_of(np.eye(3), np.float32)


# LAPACK wrappers: what does not fit is refused before it is called.

F4 = np.zeros((4, 4), np.float32, order="F")
F8 = np.zeros((4, 4), np.float64, order="F")
V8 = np.zeros(4)
WORK = np.zeros(1000)


@pytest.mark.parametrize(
    "call",
    [
        lambda: blas.gemm(F4, F8, F8),
        lambda: blas.gemm(F8, np.zeros((3, 4), order="F"), F8),
        lambda: blas.gemm(F8, F8, np.zeros((4, 3), order="F")),
        lambda: blas.gemm(F8[::2, ::2], F8[:2, :2], F8[:2, :2]),
        lambda: blas.gemm(F8, F8, np.broadcast_to(np.zeros(4), (4, 4))),
        lambda: blas.syrk(F8, np.zeros((3, 3), order="F")),
        lambda: blas.syrk(F8, np.zeros((4, 4), order="C")[::-1]),
        lambda: blas.symm(F8, np.zeros((3, 2), order="F"), np.zeros((3, 2), order="F")),
        lambda: blas.syr2k(F8, F8, np.zeros((5, 5), order="F"), alpha=1.0),
        lambda: blas.trmm(F8, np.zeros((4, 3), order="F")),
        lambda: lapack.sytrd(F8[:, :3], WORK),
        lambda: lapack.sytrd(F8.copy(order="F"), np.zeros(3)),
        lambda: lapack.ormtr(F8, np.zeros(2), F8, WORK),
        lambda: lapack.sterf(V8, V8),
        lambda: lapack.sterf(np.zeros(0), np.zeros(0)),
        lambda: lapack.bisect(V8, np.zeros(3), 4),
        lambda: lapack.bisect(V8, V8, 0),
        lambda: lapack.bisect(V8.astype(np.float32), np.zeros(3, np.float32), 0),
        lambda: lapack.stemr(V8, np.zeros(3), 5),
        lambda: lapack.stemr(V8, np.zeros(3), 0),
        lambda: lapack.qr(np.zeros((4, 4)), WORK[::2]),
        lambda: lapack.qr(np.zeros((4, 0), order="F"), WORK),
        lambda: lapack.generate_q(np.zeros((2, 4), order="F"), V8, WORK),
        lambda: lapack.generate_q(F8, np.zeros(3), WORK),
        lambda: lapack.sysv(F8, np.zeros((3, 3), order="F"), WORK),
        lambda: lapack.larft(F8, np.zeros(3)),
        lambda: lapack.qr(np.zeros((4, 4), np.complex128, order="F"), WORK),
        lambda: blas.syrk(np.zeros((4, 4), ">f8", order="F"), F8),
    ],
)
def test_wrong_arguments_never_reach_lapack(call: Callable[[], Any]) -> None:
    with pytest.raises(ValueError, match=r"expected|fit"):
        call()


def test_read_only_output_is_refused() -> None:
    frozen, frozen_work = np.zeros((4, 4), order="F"), np.zeros(400)
    frozen.flags.writeable = frozen_work.flags.writeable = False
    with pytest.raises(ValueError, match="writable"):
        lapack.qr(frozen, WORK)
    with pytest.raises(ValueError, match="writable"):
        lapack.qr(np.zeros((4, 4), order="F"), frozen_work)


def test_failure_of_lapack_is_an_error() -> None:
    with pytest.raises(LapackError, match="dsterf failed"):
        lapack.sterf(np.array([1.0, np.nan, 2.0]), np.array([1.0, 1.0]))
    with pytest.raises(LapackError, match="dsysv failed"):
        lapack.sysv(np.zeros((3, 3), order="F"), np.zeros((3, 1), order="F"), WORK)


def test_an_unexpected_signature_is_refused() -> None:
    with pytest.raises(ImportError, match="unexpected signature"):
        fortran_calls._load(cython_blas, "sgemm", 12)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("order", ["C", "F"])
def test_products_of_either_order(dtype: type[Any], order: Any) -> None:
    rng = np.random.default_rng(0)
    a, b = (np.array(rng.standard_normal(shape), dtype, order=order) for shape in ((5, 7), (7, 3)))
    for target in ("C", "F"):
        c = np.ones((5, 3), dtype, order=target)
        blas.gemm(a, b, c, alpha=2.0, beta=3.0)
        np.testing.assert_allclose(c, 2.0 * a @ b + 3.0, rtol=1e-5, atol=1e-5)
    square = np.zeros((5, 5), dtype, order="F")
    blas.syrk(a, square)
    np.testing.assert_allclose(np.tril(square), np.tril(a @ a.T), rtol=1e-5, atol=1e-5)
    assert not np.triu(square, 1).any()


def test_positive_eigenvalues_are_counted_by_the_factorisation() -> None:
    rng = np.random.default_rng(0)
    for size in (1, 2, 5, 64):
        a = rng.standard_normal((size, size))
        a = np.asfortranarray(a + a.T)
        np.fill_diagonal(a, 0.0 if size > 1 else -1.0)  # forces 2×2 pivots
        b = np.asfortranarray(rng.standard_normal((size, 3)))
        x = b.copy(order="F")
        assert lapack.sysv(a.copy(order="F"), x, WORK) == np.count_nonzero(np.linalg.eigvalsh(a) > 0)
        np.testing.assert_allclose(a @ x, b, atol=1e-9)


def test_counting_handles_exact_hits_and_split_matrices() -> None:
    d, e = np.array([4.0, 4.0, 1.0, 0.0]), np.zeros(3)
    assert [lapack.count_above(d, e, x) for x in (-1.0, 0.5, 2.0, 5.0, 1e300)] == [4, 3, 2, 0, 0]
    assert lapack.count_above(np.ones(1), np.zeros(0), 0.5) == 1
    assert lapack.bisect(np.ones(1), np.zeros(0), 0) == 1.0


def test_the_global_lock_is_released() -> None:
    a = np.ones((1500, 1500), np.float32, order="F")
    square = np.empty_like(a, order="F")
    ticks, done = 0, threading.Event()

    def tick() -> None:
        nonlocal ticks
        while not done.is_set():
            ticks += 1
            time.sleep(0.001)

    ticker = threading.Thread(target=tick)
    ticker.start()
    time.sleep(0.01)
    before = ticks
    blas.gemm(a, a, square)
    during = ticks - before
    done.set()
    ticker.join()
    assert during > 3


def test_an_eigh_that_fails_on_the_device_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(_: Any) -> Any:
        raise torch.linalg.LinAlgError("forced")  # type: ignore[attr-defined]

    monkeypatch.setattr(torch.linalg, "eigh", fails)
    with pytest.raises(LapackError, match="forced"):
        decompositions.by_torch(ArrayBlocks(np.eye(3)), "cpu")
