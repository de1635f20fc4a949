"""DELLA keeps large entries more often."""

from __future__ import annotations

import math

import numpy as np

from tests.methods.deltas import kept, matrices


def test_della_keeps_large_entries_more_often() -> None:
    base, update = matrices((300, 400))
    masks, total = np.zeros((300, 400)), np.zeros((300, 400))
    for seed in range(10):
        out = kept("della", base, update, density=0.5, epsilon=0.3, seed=seed)
        masks += np.abs(out) > 1e-12
        total += out
    share = np.take_along_axis(masks / 10, np.abs(update.numpy()).argsort(axis=1), axis=1).mean(axis=0)
    np.testing.assert_allclose(share, np.linspace(0.2, 0.8, 400), atol=0.04)
    # 1/p in place of 1: the variance of the mean over masks is Δ²(1 − p)/p.
    assert np.linalg.norm(total / 10 - update.numpy()) < 0.6 / math.sqrt(10) * 2 * np.linalg.norm(update.numpy())
    level = kept("della", base, update, density=0.5, epsilon=0, seed=1)
    np.testing.assert_allclose(level, kept("dare", base, update, density=0.5, seed=1), atol=1e-14)
