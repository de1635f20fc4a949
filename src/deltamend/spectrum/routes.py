"""The routes from a delta to its singular values, fastest first, and what each of them cannot square; see `filter`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np

from deltamend.errors import FilterError
from deltamend.spectrum.band_reduction import Band
from deltamend.spectrum.checked_blocks import CheckedBlocks
from deltamend.spectrum.decompositions import (
    Decomposition,
    Gram,
    Tridiagonal,
    UnsureError,
    Workspace,
    by_svd,
    by_torch,
    gram,
)

# Energies of which no part that matters underflows or overflows when squared again.
_SAFE_ENERGY = {np.dtype(np.float32): (1e-20, 1e35), np.dtype(np.float64): (1e-260, 1e260)}
_BAND_FROM = 2304  # shorter side from which the band route is faster, measured on an AMD Zen 4 with OpenBLAS


class ZeroDelta(Exception):  # noqa: N818 - an outcome, not an error
    """Every entry is exactly 0."""


@dataclass(frozen=True)
class Route:
    """A way to decompose: `run` gives the decomposition and ‖Δ‖_F²."""

    name: str
    run: Callable[[CheckedBlocks, Workspace], tuple[Decomposition, float]]


def _by_gram(
    blocks: CheckedBlocks,
    workspace: Workspace,
    dtype: type[np.float32 | np.float64],
    decompose: Callable[[Gram, Workspace], Decomposition],
) -> tuple[Decomposition, float]:
    square = gram(blocks, dtype, workspace)
    _check_energy(square.energy, blocks, np.dtype(dtype))
    return decompose(square, workspace), square.energy


def _svd(blocks: CheckedBlocks, _: Workspace) -> tuple[Decomposition, float]:
    decomposition = by_svd(blocks)
    energy = float(np.sum(decomposition.values() ** 2))
    _check_energy(energy, blocks, np.dtype(np.float64))
    return decomposition, energy


def _torch(blocks: CheckedBlocks, _: Workspace, device: str) -> tuple[Decomposition, float]:
    decomposition, energy = by_torch(blocks, device)
    _check_energy(energy, blocks, np.dtype(np.float64))
    return decomposition, energy


ALL_ROUTES = {
    route.name: route
    for route in (
        Route("band-float32", partial(_by_gram, dtype=np.float32, decompose=Band)),
        Route("band-float64", partial(_by_gram, dtype=np.float64, decompose=Band)),
        Route("tridiagonal-float32", partial(_by_gram, dtype=np.float32, decompose=Tridiagonal)),
        Route("tridiagonal-float64", partial(_by_gram, dtype=np.float64, decompose=Tridiagonal)),
        Route("svd-float64", _svd),
        Route("torch-eigh", partial(_torch, device="cpu")),
    )
}


def routes_for(shape: tuple[int, int], device: str) -> list[Route]:
    """The routes to try, in order."""
    if device != "cpu":
        return [Route("torch-eigh", partial(_torch, device=device)), ALL_ROUTES["svd-float64"]]
    reduction = "band" if min(shape) >= _BAND_FROM else "tridiagonal"
    return [ALL_ROUTES[name] for name in (f"{reduction}-float32", f"{reduction}-float64", "svd-float64")]


def _check_energy(energy: float, blocks: CheckedBlocks, dtype: np.dtype[np.floating]) -> None:
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
        raise ZeroDelta
    if dtype == np.dtype(np.float32):
        raise UnsureError(f"squares of entries up to {largest:.3g} leave the range of float32")
    raise FilterError(f"squares of entries up to {largest:.3g} leave the range of float64; scale the delta first")
