"""Noise with planted spikes, its Gram matrix and its singular values."""

from __future__ import annotations

from typing import Any

import numpy as np

from deltamend.spectrum.blocks import ArrayBlocks, FloatArray
from deltamend.spectrum.decompositions import Gram, Workspace, gram

DTYPES = [np.float32, np.float64]


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
