"""Deltas with a known spectrum, rules with a known threshold, and what a filter has to give by an SVD."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from deltamend.spectrum.blocks import Block, FloatArray
from deltamend.spectrum.kept_subspace import SpectralFilter
from deltamend.spectrum.singular_values import Spectrum
from deltamend.spectrum.thresholds import GavishDonoho, Threshold

DG_HARD = GavishDonoho()


@dataclass(frozen=True)
class At:
    """A rule with a fixed threshold."""

    value: float
    noise: float | None = None

    def threshold(self, _: Spectrum) -> Threshold:
        return Threshold(self.value, self.noise)


@dataclass(frozen=True)
class Cut:
    """A fixed array, read `width` columns (or rows, if tall) at a time into a buffer that is used again."""

    array: FloatArray
    width: int

    @property
    def shape(self) -> tuple[int, int]:
        m, n = self.array.shape
        return m, n

    def __iter__(self) -> Iterator[Block]:
        m, n = self.shape
        buffer = np.empty_like(self.array)
        for start in range(0, max(m, n), self.width):
            stop = min(start + self.width, max(m, n))
            source = self.array[:, start:stop] if m <= n else self.array[start:stop]
            values = buffer[:, : stop - start] if m <= n else buffer[: stop - start]
            values[:] = source
            yield Block(start, stop, values)
            buffer.fill(np.nan)


def with_spectrum(shape: tuple[int, int], values: Any, seed: int = 0) -> FloatArray:
    """A float64 matrix with these singular values (the rest 0) and random vectors."""
    rng = np.random.default_rng(seed)
    left, right = (np.linalg.qr(rng.standard_normal((side, len(values))))[0] for side in shape)
    return np.asarray((left * np.asarray(values, np.float64)) @ right.T)


def signal_over_noise(shape: tuple[int, int], rank: int, seed: int = 0) -> FloatArray:
    """A power-law signal of `rank` singular values, all well above a float32 bulk of unit noise."""
    rng = np.random.default_rng(seed)
    edge = math.sqrt(shape[0]) + math.sqrt(shape[1])
    values = 3.0 * edge * (np.arange(1, rank + 1) / rank) ** -0.7
    return (with_spectrum(shape, values, seed) + rng.standard_normal(shape)).astype(np.float32)


def truncated(delta: FloatArray, threshold: float) -> tuple[FloatArray, int]:
    """Δ* and its rank from a float64 SVD."""
    u, s, vt = np.linalg.svd(delta.astype(np.float64), full_matrices=False)
    rank = int(np.count_nonzero(s > threshold))
    return np.asarray((u[:, :rank] * s[:rank]) @ vt[:rank]), rank


def relative_difference(first: FloatArray, second: FloatArray) -> float:
    return float(np.linalg.norm(first - second)) / max(float(np.linalg.norm(second)), 1e-300)


def assert_matches_svd(found: SpectralFilter, delta: FloatArray) -> None:
    expected, rank = truncated(delta, found.threshold)
    assert found.rank == rank
    assert relative_difference(found.dense(delta), expected) < 1e-5
    assert found.kept_energy == pytest.approx(float(np.sum(expected**2)), rel=1e-4)
    assert found.energy == pytest.approx(float(np.sum(delta.astype(np.float64) ** 2)), rel=1e-5)


property_test = settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])


shapes = st.tuples(st.integers(1, 40), st.integers(1, 40))
