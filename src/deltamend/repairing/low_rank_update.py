"""The factors of a kept update whose rank is known, because Δ is an adapter's and the method keeps no more than its rank."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from deltamend.errors import FilterError
from deltamend.matrices.buffers import norm_squared, row_chunks
from deltamend.matrices.delta import DeltaBlocks
from deltamend.methods.method import KeptDelta
from deltamend.spectrum.blocks import Block, FloatArray

_MORE = 8
"""Columns of the sketch beyond the rank, so that no direction of the update is missed by bad luck (Halko et al. 2011)."""
_REMAINDER = 1e-5
"""The part of ‖Δ*‖ that the factors may miss; what they miss is the rounding of fp32."""


@dataclass(frozen=True)
class UpdateFactors:
    """Δ* = left @ right, each side scaled by the square roots of the singular values.

    Attributes:
        left: (m, k) float64.
        right: (k, n) float64.
        delta_energy: ‖Δ‖².
    """

    left: FloatArray
    right: FloatArray
    delta_energy: float


def update_factors(delta: DeltaBlocks, kept: KeptDelta, rank: int, name: str) -> UpdateFactors:
    """Factor Δ* by a randomised range finder, which is exact for a rank that is known (Halko et al. 2011, algorithm 4.1).

    Args:
        delta: Δ, shape (m, n), whose rank is at most `rank`.
        kept: what the method keeps of it, of no higher rank.
        rank: of the adapter.
        name: the name of the tensor, by which the sketch is drawn.

    Raises:
        FilterError: the factors miss a part of Δ*, so its rank is higher than it is said to be.
    """
    (m, n), width = delta.shape, min(rank + _MORE, *delta.shape)
    digest = hashlib.sha256(f"{name}, factors".encode()).digest()
    sketch = np.random.default_rng(list(digest)).standard_normal((n, width))
    reached, delta_energy, energy = np.zeros((m, width)), 0.0, 0.0
    for block, values in _kept_blocks(delta, kept):
        delta_energy += sum(
            norm_squared(block.values[first:last]) for first, last in row_chunks((values.shape[0], values.shape[1]))
        )
        energy += float(np.einsum("ij,ij->", values, values, dtype=np.float64))
        if values.shape[1] == n:
            reached[block.start : block.start + len(values)] = values @ sketch
        else:  # the block holds some columns of a wide matrix
            reached += values @ sketch[block.start : block.stop]
    basis = np.linalg.qr(reached)[0]
    coordinates = np.zeros((basis.shape[1], n))
    for block, values in _kept_blocks(delta, kept):
        if values.shape[1] == n:
            coordinates += basis[block.start : block.start + len(values)].T @ values
        else:
            coordinates[:, block.start : block.stop] = basis.T @ values
    left, singular, right = np.linalg.svd(coordinates, full_matrices=False)
    if energy - float(np.sum(singular[:rank] ** 2)) > _REMAINDER**2 * energy:
        raise FilterError(f"tensor {name!r}: what is kept of the update has a higher rank than its adapter's {rank}")
    roots = np.sqrt(singular[:rank])
    return UpdateFactors((basis @ left[:, :rank]) * roots, roots[:, None] * right[:rank], delta_energy)


def _kept_blocks(delta: DeltaBlocks, kept: KeptDelta) -> Iterator[tuple[Block, FloatArray]]:
    """The blocks of Δ, and the same blocks of Δ* in float64; Δ stays as it is, also where it is kept in memory."""
    for block in delta:
        yield block, kept.block(Block(block.start, block.stop, block.values.copy())).astype(np.float64)
