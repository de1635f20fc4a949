"""What the spectral filter found in a delta, and the projection of the delta onto it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from deltamend.spectrum.blas import gemm
from deltamend.spectrum.blocks import Blocks, FloatArray
from deltamend.spectrum.checked_blocks import checked_blocks_of
from deltamend.spectrum.fortran_calls import column_major

FilterOutcome = Literal["zero", "filtered", "all-kept", "none-kept", "no-noise-floor"]

_PROJECTION_STEP = 4096


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
    outcome: FilterOutcome
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
        blocks = checked_blocks_of(delta)
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
