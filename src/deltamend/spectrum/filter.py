"""The spectral filter: keep the singular values of a delta that a rule calls signal, without a full SVD.

DG-Hard (arXiv 2605.20296) keeps Δ* = Σ_{σᵢ > τ} σᵢ uᵢ vᵢᵀ. Only the median (or what else the rule asks for), the number
of singular values above τ and the vectors of those are needed, and Δ* = U_k(U_kᵀΔ) is a projection that can be done
block by block. The route and its safeguards are ours:

1. The Gram matrix on the shorter side p in float32, reduced to tridiagonal or band form. Squaring costs accuracy, so the
   answer counts only if ε₃₂·(σ₁/level)² ≤ 2.5e-3·min(1, p/1024), `level` being the median (or τ, where the rule did not
   ask for the median), if no singular value lies within 1e-5 of τ, and if the estimated rotation of the kept subspace is
   small.
2. Else the same in float64. A singular value within 1e-6 of τ is a tie there, and reported.
3. Else, or where LAPACK fails or a check of the vectors fails, a float64 SVD that squares nothing.
4. A median below ε·σ₁ (ε of the delta's dtype) cannot be measured by any algorithm, because the delta itself is only
   known to that: the outcome is "no-noise-floor" and Δ is kept.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np

from deltamend.errors import FilterError
from deltamend.spectrum.band import Band
from deltamend.spectrum.blocks import ArrayBlocks, Block, Blocks, FloatArray
from deltamend.spectrum.eigen import Decomposition, Gram, Tridiagonal, UnsureError, Workspace, by_svd, by_torch, gram
from deltamend.spectrum.lapack import LapackError, column_major, gemm
from deltamend.spectrum.shrinkers import Shrinker
from deltamend.spectrum.thresholds import Threshold, ThresholdRule

Outcome = Literal["zero", "filtered", "all-kept", "none-kept", "no-noise-floor"]

_DTYPES = (np.dtype(np.float32), np.dtype(np.float64))
_SINGLE = float(np.finfo(np.float32).eps)
# Errors of G in units of ε·σ₁², seen from its eigenvectors, are below 8/p (measured for p from 10 to 2048): the first
# limit keeps the relative error of σ at the level that decides below 1e-5, the second that of Δ* below 1e-5.
_SQUARING_LIMIT, _FULL_SQUARING_LIMIT_FROM = 2.5e-3, 1024
_GRAM_ERROR, _ROTATION_LIMIT = 12.0, 3e-6
_NEAR_TAU_SINGLE, _NEAR_TAU_DOUBLE = 1e-5, 1e-6
# Energies of which no part that matters underflows or overflows when squared again.
_SAFE_ENERGY = {np.dtype(np.float32): (1e-20, 1e35), np.dtype(np.float64): (1e-260, 1e260)}
_PROJECTION_STEP = 4096
_BAND_FROM = 2304  # shorter side from which the band route is faster, measured on an AMD Zen 4 with OpenBLAS
_NO_THRESHOLD = Threshold(0.0, None)


@dataclass(frozen=True)
class SpectralFilter:
    """What the filter found, and the map from blocks of Δ to blocks of Δ*.

    Attributes:
        shape: (m, n) of the delta.
        outcome: "zero": Δ is exactly 0. "filtered": a part of Δ is kept. "all-kept": every singular value that is not
            zero to rounding is above τ, so Δ* = Δ. "none-kept": Δ ≠ 0 and nothing is above τ, so Δ* = 0.
            "no-noise-floor": the median is too small to be measured, Δ* = Δ.
        rank: number of singular values kept; min(m, n) where Δ is kept whole.
        threshold: τ; 0 where no threshold was found.
        noise: standard deviation of one entry of the noise, or None.
        median: median singular value, None if the rule did not ask for it.
        largest: σ₁.
        singular_values: the kept ones, float64 (rank,), descending; empty for outcomes without a basis.
        gains: η(σ)/σ, float64 (rank,); ones for hard thresholding.
        energy: ‖Δ‖_F².
        kept_energy: ‖Δ*‖_F².
        basis: (min(m, n), rank), orthonormal, column-major, in the dtype of the delta; None where Δ* is Δ or 0.
        route: how it was computed, such as "tridiagonal-float64".
        tie: a singular value is so near τ that two exact SVD libraries may differ on it.
        reason: one sentence where there is something to say: why a slower route was taken, why Δ was kept. Else "".
    """

    shape: tuple[int, int]
    outcome: Outcome
    rank: int
    threshold: float
    noise: float | None
    median: float | None
    largest: float
    singular_values: FloatArray
    gains: FloatArray
    energy: float
    kept_energy: float
    basis: FloatArray | None
    route: str
    tie: bool
    reason: str

    @property
    def wide(self) -> bool:
        """Whether blocks are columns (m ≤ n) and the basis holds left vectors; else rows, and right vectors."""
        return self.shape[0] <= self.shape[1]

    def apply(self, block: FloatArray, out: FloatArray | None = None) -> FloatArray:
        """The block of Δ* that belongs to a block of Δ.

        Args:
            block: columns (m, any) of Δ where m ≤ n, rows (any, n) where m > n; float32 or float64.
            out: where to put it, same shape and dtype, row- or column-major; may be `block` itself.

        Returns:
            `out` if given; else `block` itself where Δ* = Δ, else a new array.

        Raises:
            ValueError: a shape or dtype does not fit.
        """
        self._check_block(block, out)
        if self.outcome in ("all-kept", "no-noise-floor"):
            if out is None:
                return block
            np.copyto(out, block)
            return out
        if out is None:
            out = np.empty(block.shape, block.dtype)
        if self.basis is None:
            out.fill(0)
        elif self.wide:
            _project(self.basis, self.gains, block, out)
        else:
            _project(self.basis, self.gains, block.T, out.T)
        return out

    def _check_block(self, block: FloatArray, out: FloatArray | None) -> None:
        axis = 0 if self.wide else 1
        if block.ndim != 2 or block.shape[axis] != self.shape[axis]:
            raise ValueError(f"a block of shape {block.shape} does not belong to a delta of shape {self.shape}")
        if out is not None and (out.shape != block.shape or out.dtype != block.dtype):
            raise ValueError(f"out is {out.dtype} {out.shape}, but the block is {block.dtype} {block.shape}")

    def dense(self, delta: FloatArray) -> FloatArray:
        """Δ* for a delta (m, n) in memory; `delta` itself where Δ* = Δ.

        Raises:
            ValueError: the shape does not fit.
        """
        if delta.shape != self.shape:
            raise ValueError(f"a delta of shape {delta.shape} was given to a filter of shape {self.shape}")
        return self.apply(delta)

    def coefficients(self, block: FloatArray) -> FloatArray:
        """The kept vectors' share of a block: U_kᵀ·block where m ≤ n, V_kᵀ·blockᵀ where m > n.

        Args:
            block: as `apply` takes it.

        Returns:
            Shape (rank, length of the block), in the dtype of the basis.

        Raises:
            ValueError: the shape does not fit, or there is no basis.
        """
        self._check_block(block, None)
        if self.basis is None:
            raise ValueError(f"the outcome is {self.outcome}: there is no basis")
        values = block if self.wide else block.T
        found = np.empty((self.rank, values.shape[1]), self.basis.dtype)
        gemm(self.basis.T, _usable(values, self.basis.dtype), found)
        return found

    def factors(self, delta: FloatArray | Blocks) -> tuple[FloatArray, FloatArray, FloatArray]:
        """Δ* = U_k·diag(s_k)·Vt_k, for storing it as an adapter.

        The vectors of the longer side are Δᵀu/σ, which squaring leaves orthogonal to about ε·(σ₁/σ_k)².

        Args:
            delta: the delta (m, n) that was filtered.

        Returns:
            U (m, rank), singular values after shrinking (rank,) float64, Vt (rank, n); vectors in the dtype of the delta.

        Raises:
            ValueError: Δ* = Δ is not low-rank by this filter (outcome "all-kept" or "no-noise-floor").
        """
        if self.outcome in ("all-kept", "no-noise-floor"):
            raise ValueError(f"the outcome is {self.outcome}: Δ is kept whole and has no factors")
        blocks = _as_blocks(delta)
        m, n = self.shape
        if blocks.shape != self.shape:
            raise ValueError(f"a delta of shape {blocks.shape} was given to a filter of shape {self.shape}")
        if self.basis is None:
            return np.zeros((m, 0), np.float32), np.zeros(0), np.zeros((0, n), np.float32)
        long = np.empty((self.rank, max(m, n)), self.basis.dtype)
        for block in blocks:
            long[:, block.start : block.stop] = self.coefficients(block.values)
        long /= self.singular_values[:, None].astype(long.dtype)
        strengths = self.singular_values * self.gains
        return (self.basis, strengths, long) if self.wide else (long.T, strengths, self.basis.T)


def filter_delta(
    delta: FloatArray | Blocks,
    rule: ThresholdRule,
    *,
    shrinker: Shrinker | None = None,
    device: str = "cpu",
    workspace: Workspace | None = None,
    _route: str | None = None,
) -> SpectralFilter:
    """Find the rank, threshold and kept subspace of a delta; see the module for the route.

    The same delta gives the same bytes at every call and from any number of threads at once, as long as BLAS runs one
    thread in each (the caller's business: `threadpoolctl.threadpool_limits(1)`). Beyond the delta it needs two p×p
    squares, p = min(m, n), and one block.

    Args:
        delta: shape (m, n), both at least 1, float32 or float64, finite; or blocks of such a matrix, which are read one
            to four times.
        rule: says from which singular value on it is signal.
        shrinker: how to shrink what is kept; None keeps it as it is (hard thresholding). It needs a rule that gives a
            noise level.
        device: "cpu", or a torch device such as "cuda", where G and all of its eigenvectors are computed in float64.
            The CUDA route has not been measured; its code is tested on the CPU.
        workspace: scratch memory to reuse from call to call, one for each thread.

    Returns:
        The filter, to be applied to the delta or to blocks of it.

    Raises:
        FilterError: the delta holds NaN or infinity, is empty or of another dtype, or its entries are so large or small
            that they cannot be squared in float64; the rule gives a threshold that is not a number, or no noise level
            for the shrinker; or no route gave a checked answer.
    """
    blocks = _as_blocks(delta)
    job = _Job(blocks, rule, shrinker, workspace or Workspace())
    given_up: list[str] = []
    for route in _routes(blocks.shape, device) if _route is None else [_ALL_ROUTES[_route]]:
        try:
            return _attempt(job, route, " ".join(given_up))
        except (UnsureError, LapackError) as error:
            given_up.append(f"{route.name}: {error}.")
    raise FilterError(f"no route gave a checked answer: {' '.join(given_up)}")


@dataclass(frozen=True)
class _Job:
    """What `filter_delta` was asked."""

    blocks: _CheckedBlocks
    rule: ThresholdRule
    shrinker: Shrinker | None
    workspace: Workspace


class _CheckedBlocks:
    """Blocks that are as the contract says, or a `FilterError`; remembers the roundoff of their dtype."""

    def __init__(self, inner: Blocks) -> None:
        self._inner = inner
        self.shape = inner.shape
        self.roundoff = 0.0

    def __iter__(self) -> Iterator[Block]:
        m, n = self.shape
        position = 0
        for block in self._inner:
            expected = (m, block.stop - block.start) if m <= n else (block.stop - block.start, n)
            if block.start != position or block.values.shape != expected:
                raise FilterError(
                    f"a block of shape {block.values.shape} at {block.start}:{block.stop} does not follow"
                )
            if block.values.dtype not in _DTYPES:
                raise FilterError(f"expected float32 or float64 in native byte order; got {block.values.dtype}")
            self.roundoff = max(self.roundoff, float(np.finfo(block.values.dtype).eps))
            position = block.stop
            yield block
        if position != max(m, n):
            raise FilterError(f"the blocks end at {position} of {max(m, n)}")


def _as_blocks(delta: FloatArray | Blocks) -> _CheckedBlocks:
    if isinstance(delta, np.ndarray) and delta.ndim != 2:
        raise FilterError(f"expected a matrix; got an array of shape {delta.shape}")
    blocks = _CheckedBlocks(ArrayBlocks(delta) if isinstance(delta, np.ndarray) else delta)
    if min(blocks.shape) < 1:
        raise FilterError(f"expected a non-empty matrix; got shape {blocks.shape}")
    return blocks


class _ZeroDelta(Exception):  # noqa: N818 - an outcome, not an error
    """Every entry is exactly 0."""


class _NoNoiseFloor(Exception):  # noqa: N818 - an outcome, not an error
    """The median cannot be measured."""


@dataclass(frozen=True)
class _Route:
    """A way to decompose: `run` gives the decomposition and ‖Δ‖_F²."""

    name: str
    run: Callable[[_CheckedBlocks, Workspace], tuple[Decomposition, float]]


def _by_gram(
    blocks: _CheckedBlocks,
    workspace: Workspace,
    dtype: type[np.float32 | np.float64],
    decompose: Callable[[Gram, Workspace], Decomposition],
) -> tuple[Decomposition, float]:
    square = gram(blocks, dtype, workspace)
    _check_energy(square.energy, blocks, np.dtype(dtype))
    return decompose(square, workspace), square.energy


def _svd(blocks: _CheckedBlocks, _: Workspace) -> tuple[Decomposition, float]:
    decomposition = by_svd(blocks)
    energy = float(np.sum(decomposition.values() ** 2))
    _check_energy(energy, blocks, np.dtype(np.float64))
    return decomposition, energy


def _torch(blocks: _CheckedBlocks, _: Workspace, device: str) -> tuple[Decomposition, float]:
    decomposition, energy = by_torch(blocks, device)
    _check_energy(energy, blocks, np.dtype(np.float64))
    return decomposition, energy


_ALL_ROUTES = {
    route.name: route
    for route in (
        _Route("band-float32", partial(_by_gram, dtype=np.float32, decompose=Band)),
        _Route("band-float64", partial(_by_gram, dtype=np.float64, decompose=Band)),
        _Route("tridiagonal-float32", partial(_by_gram, dtype=np.float32, decompose=Tridiagonal)),
        _Route("tridiagonal-float64", partial(_by_gram, dtype=np.float64, decompose=Tridiagonal)),
        _Route("svd-float64", _svd),
        _Route("torch-eigh", partial(_torch, device="cpu")),
    )
}


def _routes(shape: tuple[int, int], device: str) -> list[_Route]:
    """The routes to try, in order."""
    if device != "cpu":
        return [_Route("torch-eigh", partial(_torch, device=device)), _ALL_ROUTES["svd-float64"]]
    reduction = "band" if min(shape) >= _BAND_FROM else "tridiagonal"
    return [_ALL_ROUTES[name] for name in (f"{reduction}-float32", f"{reduction}-float64", "svd-float64")]


def _check_energy(energy: float, blocks: _CheckedBlocks, dtype: np.dtype[np.floating]) -> None:
    """Refuse what is not finite, see a zero delta, and refuse squares that underflow or overflow.

    Raises:
        FilterError: NaN or infinity, or entries beyond what float64 can square.
        UnsureError: entries beyond what float32 can square.
    """
    low, high = _SAFE_ENERGY[dtype]
    if low <= energy <= high:
        return
    largest = 0.0
    for start, _, values in blocks:
        bad = np.argwhere(~np.isfinite(values))
        if bad.size:
            offset = (0, start) if blocks.shape[0] <= blocks.shape[1] else (start, 0)
            row, column = (int(index) + add for index, add in zip(bad[0], offset, strict=True))
            raise FilterError(f"the delta holds {values[tuple(bad[0])]} at row {row}, column {column}")
        largest = max(largest, float(np.max(np.abs(values))))
    if largest == 0.0:
        raise _ZeroDelta
    if dtype == np.dtype(np.float32):
        raise UnsureError(f"squares of entries up to {largest:.3g} leave the range of float32")
    raise FilterError(f"squares of entries up to {largest:.3g} leave the range of float64; scale the delta first")


class _LazySpectrum:
    """A `Spectrum` that computes what a rule asks for and refuses what the decomposition cannot tell."""

    def __init__(self, shape: tuple[int, int], energy: float, decomposition: Decomposition, roundoff: float) -> None:
        self.shape = shape
        self.energy = energy
        self.measured_median: float | None = None
        self._decomposition = decomposition
        # What the delta's dtype leaves of σ₁; a float64 delta is only known to what an SVD can resolve, a few ε₆₄.
        self._relative_floor = max(roundoff, 16.0 * float(np.finfo(np.float64).eps))

    def largest(self) -> float:
        return self._decomposition.value(0)

    def values(self) -> FloatArray:
        return self._decomposition.values()

    def median(self) -> float:
        p = min(self.shape)
        self.measured_median = (self._decomposition.value((p - 1) // 2) + self._decomposition.value(p // 2)) / 2.0
        if self.below_floor(self.measured_median):
            raise _NoNoiseFloor
        return self.measured_median

    def below_floor(self, level: float) -> bool:
        """Whether singular values of this size are nothing but the roundoff of the delta.

        Raises:
            UnsureError: this decomposition cannot tell.
        """
        largest, precision = self.largest(), self._decomposition.precision
        floor = self._relative_floor * largest
        limit = _SQUARING_LIMIT * min(1.0, min(self.shape) / _FULL_SQUARING_LIMIT_FROM)
        if self._decomposition.squares and precision * largest**2 > limit * level**2:
            # Eigenvalues good to ε·σ₁² leave σ good to √ε·σ₁: in float64 enough to see that a float32 delta has no floor.
            if level < 0.8 * floor and math.sqrt(precision) < 0.2 * self._relative_floor:
                return True
            raise UnsureError(
                f"σ₁ is {largest / level if level else math.inf:.3g} times the singular value that decides"
            )
        return level <= floor


def _attempt(job: _Job, route: _Route, given_up: str) -> SpectralFilter:
    """The filter by one route.

    Raises:
        UnsureError: the route's answer may be wrong.
        LapackError: LAPACK failed.
    """
    try:
        decomposition, energy = route.run(job.blocks, job.workspace)
    except _ZeroDelta:
        return _Draft(job.blocks.shape, 0.0, None, 0.0, route.name).without_basis("zero", "Δ is exactly 0.")
    spectrum = _LazySpectrum(job.blocks.shape, energy, decomposition, job.blocks.roundoff)
    try:
        threshold = _threshold(job.rule, spectrum)
    except _NoNoiseFloor:
        reason = (
            f"The median singular value, {spectrum.measured_median:.3g}, is below the roundoff of a delta whose largest is "
            f"{spectrum.largest():.3g}: there is no noise floor to measure, as in a low-rank update. Δ is kept."
        )
        draft = _Draft(job.blocks.shape, energy, spectrum.measured_median, spectrum.largest(), decomposition.route)
        return draft.without_basis("no-noise-floor", reason)
    return _filtered(job, spectrum, decomposition, threshold, given_up)


def _threshold(rule: ThresholdRule, spectrum: _LazySpectrum) -> Threshold:
    threshold = rule.threshold(spectrum)
    if not threshold.value >= 0.0:
        raise FilterError(f"the rule {rule!r} gave the threshold {threshold.value}; it must be a number of at least 0")
    return threshold


@dataclass(frozen=True)
class _Draft:
    """The fields of a `SpectralFilter` that are known before the rank is."""

    shape: tuple[int, int]
    energy: float
    median: float | None
    largest: float
    route: str
    threshold: Threshold = _NO_THRESHOLD
    given_up: str = ""

    def without_basis(self, outcome: Outcome, reason: str = "", tie: bool = False) -> SpectralFilter:
        """Δ* is Δ or 0."""
        keeps = outcome in ("all-kept", "no-noise-floor")
        rank = min(self.shape) if keeps else 0
        kept_energy = self.energy if keeps else 0.0
        return self._build(outcome, rank, (np.zeros(0), np.zeros(0)), kept_energy, None, tie, reason)

    def with_basis(self, values: FloatArray, gains: FloatArray, basis: FloatArray, tie: bool) -> SpectralFilter:
        """Δ* is a projection of Δ."""
        kept_energy = min(self.energy, float(np.sum((values * gains) ** 2)))
        return self._build("filtered", values.size, (values, gains), kept_energy, basis, tie, "")

    def _build(
        self,
        outcome: Outcome,
        rank: int,
        spectrum: tuple[FloatArray, FloatArray],
        kept_energy: float,
        basis: FloatArray | None,
        tie: bool,
        reason: str,
    ) -> SpectralFilter:
        return SpectralFilter(
            shape=self.shape,
            outcome=outcome,
            rank=rank,
            threshold=self.threshold.value,
            noise=self.threshold.noise,
            median=self.median,
            largest=self.largest,
            singular_values=spectrum[0],
            gains=spectrum[1],
            energy=self.energy,
            kept_energy=kept_energy,
            basis=basis,
            route=self.route,
            tie=tie,
            reason=" ".join(part for part in (self.given_up, reason) if part),
        )


def _filtered(
    job: _Job, spectrum: _LazySpectrum, decomposition: Decomposition, threshold: Threshold, given_up: str
) -> SpectralFilter:
    """From threshold to filter."""
    tau, p, median, largest = threshold.value, min(spectrum.shape), spectrum.measured_median, spectrum.largest()

    def draft() -> _Draft:  # the route may turn to another one until the vectors are there
        return _Draft(spectrum.shape, spectrum.energy, median, largest, decomposition.route, threshold, given_up)

    # Where the median did not decide, τ itself must be measurable.
    unmeasured = median is None and 0.0 < tau < largest and spectrum.below_floor(tau)
    if job.shrinker is None and (tau == 0.0 or unmeasured):
        return draft().without_basis("all-kept")
    rank = decomposition.count_above(tau)
    tie = _near_threshold(decomposition, tau, rank, p)
    if rank == 0:
        return draft().without_basis("none-kept", tie=tie)
    if rank == p and job.shrinker is None:
        return draft().without_basis("all-kept", tie=tie)
    _check_rotation(spectrum, decomposition, rank)
    values, basis = decomposition.leading(rank)
    gains = _gains(job.shrinker, values, spectrum.shape, threshold.noise)
    dtype = np.float32 if job.blocks.roundoff >= _SINGLE else np.float64
    return draft().with_basis(values, gains, np.asfortranarray(basis, dtype=dtype), tie)


def _near_threshold(decomposition: Decomposition, tau: float, rank: int, p: int) -> bool:
    """Whether a singular value is so near τ that its side of it is a matter of rounding.

    Raises:
        UnsureError: it is, and a more exact route could tell.
    """
    neighbours = [decomposition.value(index) for index in (rank - 1, rank) if 0 <= index < p]
    distance = min(abs(value - tau) for value in neighbours)
    single = decomposition.precision >= _SINGLE
    if distance > (_NEAR_TAU_SINGLE if single else _NEAR_TAU_DOUBLE) * tau:
        return False
    if single:
        raise UnsureError("a singular value lies within rounding of τ")
    return True


def _check_rotation(spectrum: _LazySpectrum, decomposition: Decomposition, rank: int) -> None:
    """Refuse a kept subspace that rounding may turn towards the first dropped vector by too much.

    To first order an error E of G turns u_k by u_{k+1}ᵀ·E·u_k/(σ_k² − σ_{k+1}²), and changes Δ* by √2·σ_k times that.

    Raises:
        UnsureError: the estimated relative error of Δ* is beyond the limit, in float32.
    """
    p = min(spectrum.shape)
    if decomposition.precision < _SINGLE or rank == p:
        return
    largest, last, dropped = (decomposition.value(index) for index in (0, rank - 1, rank))
    error = _GRAM_ERROR / p * decomposition.precision * largest**2
    # ‖Δ*‖² from below: all energy but what the dropped values can hold, or what the kept ones hold at least.
    kept = max(spectrum.energy - (p - rank) * dropped**2, largest**2 + (rank - 1) * last**2)
    estimate = math.sqrt(2.0) * last * error / (max(last**2 - dropped**2, 0.0) * math.sqrt(kept) or math.ulp(0.0))
    if estimate > _ROTATION_LIMIT:
        raise UnsureError(f"rounding may change the kept part by {estimate:.1e}")


def _gains(shrinker: Shrinker | None, values: FloatArray, shape: tuple[int, int], noise: float | None) -> FloatArray:
    if shrinker is None:
        return np.ones_like(values)
    if noise is None:
        raise FilterError(f"{shrinker!r} needs a noise level, and the threshold rule gives none")
    gains = np.asarray(shrinker.shrink(values, shape=shape, noise=noise), np.float64) / values
    if gains.shape != values.shape or not np.all(np.isfinite(gains)):
        raise FilterError(f"{shrinker!r} gave singular values that are not finite, or not one for each")
    return gains


def _project(basis: FloatArray, gains: FloatArray, block: FloatArray, out: FloatArray) -> None:
    """Compute out ← U·diag(gains)·Uᵀ·block for block and out of shape (p, length), a piece of the length at a time.

    A piece of `out` is written when the same piece of `block` has been read for the last time, so they may be one array.
    """
    weighted = basis if np.all(gains == 1.0) else basis * gains.astype(basis.dtype)
    for start in range(0, block.shape[1], _PROJECTION_STEP):
        part = slice(start, start + _PROJECTION_STEP)
        source = _usable(block[:, part], basis.dtype)
        coefficients = np.empty((basis.shape[1], source.shape[1]), basis.dtype, order="F")
        gemm(basis.T, source, coefficients)
        if out.dtype == basis.dtype:
            gemm(weighted, coefficients, out[:, part])
        else:
            out[:, part] = weighted @ coefficients


def _usable(values: FloatArray, dtype: np.dtype[np.floating]) -> FloatArray:
    """`values` in `dtype` and row- or column-major; itself where it already is."""
    if values.dtype == dtype and (column_major(values) or column_major(values.T)):
        return values
    return np.array(values, dtype, order="K" if values.dtype != dtype else "F")
