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
from dataclasses import dataclass

import numpy as np

from deltamend.errors import FilterError
from deltamend.spectrum.blocks import Blocks, FloatArray
from deltamend.spectrum.checked_blocks import CheckedBlocks, checked_blocks_of
from deltamend.spectrum.decompositions import Decomposition, UnsureError, Workspace
from deltamend.spectrum.fortran_calls import LapackError
from deltamend.spectrum.kept_subspace import FilterOutcome, SpectralFilter
from deltamend.spectrum.routes import ALL_ROUTES, Route, ZeroDelta, routes_for
from deltamend.spectrum.shrinkers import Shrinker
from deltamend.spectrum.thresholds import Threshold, ThresholdRule

_SINGLE = float(np.finfo(np.float32).eps)
# Errors of G in units of ε·σ₁², seen from its eigenvectors, are below 8/p (measured for p from 10 to 2048): the first
# limit keeps the relative error of σ at the level that decides below 1e-5, the second that of Δ* below 1e-5.
_SQUARING_LIMIT, _FULL_SQUARING_LIMIT_FROM = 2.5e-3, 1024
_GRAM_ERROR, _ROTATION_LIMIT = 12.0, 3e-6
_NEAR_TAU_SINGLE, _NEAR_TAU_DOUBLE = 1e-5, 1e-6
_NO_THRESHOLD = Threshold(0.0, None)


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

    The same delta gives the same bytes at every call, and in any number of threads at once, if BLAS uses one thread in each;
    the caller has to see to that, with `threadpoolctl.threadpool_limits(1)`. Beyond the delta, the filter needs memory for
    two p×p matrices, p = min(m, n), and for one block.

    Args:
        delta: shape (m, n), both at least 1, float32 or float64, finite; or blocks of such a matrix, which are read one
            to four times.
        rule: gives the threshold above which a singular value is signal.
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
    blocks = checked_blocks_of(delta)
    job = _Job(blocks, rule, shrinker, workspace or Workspace())
    given_up: list[str] = []
    for route in routes_for(blocks.shape, device) if _route is None else [ALL_ROUTES[_route]]:
        try:
            return _attempt(job, route, " ".join(given_up))
        except (UnsureError, LapackError) as error:
            given_up.append(f"{route.name}: {error}.")
    raise FilterError(f"no route gave a checked answer: {' '.join(given_up)}")


@dataclass(frozen=True)
class _Job:
    """The arguments of `filter_delta`."""

    blocks: CheckedBlocks
    rule: ThresholdRule
    shrinker: Shrinker | None
    workspace: Workspace


class _NoNoiseFloor(Exception):  # noqa: N818 - an outcome, not an error
    """The median cannot be measured."""


class _LazySpectrum:
    """A `Spectrum` that computes only what a rule asks for, and raises where the decomposition is not exact enough."""

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


def _attempt(job: _Job, route: Route, given_up: str) -> SpectralFilter:
    """The filter by one route.

    Raises:
        UnsureError: the route's answer may be wrong.
        LapackError: LAPACK failed.
    """
    try:
        decomposition, energy = route.run(job.blocks, job.workspace)
    except ZeroDelta:
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

    def without_basis(self, outcome: FilterOutcome, reason: str = "", tie: bool = False) -> SpectralFilter:
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
        outcome: FilterOutcome,
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
    """The filter, once the threshold is known."""
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
