"""Breadcrumbs drops the largest and the smallest entries."""

from __future__ import annotations

import numpy as np

from tests.methods.deltas import kept, matrices


def test_breadcrumbs_drops_both_ends() -> None:
    base, update = matrices()
    out = kept("breadcrumbs", base, update, density=0.5, gamma=0.1)
    size = np.abs(update.numpy())
    ranks = size.ravel().argsort().argsort().reshape(size.shape)  # 0 is the smallest of 2400
    mask = (ranks < 2400 - 240) & (ranks >= 2400 - 240 - 1200)
    np.testing.assert_allclose(out, update.numpy() * mask, atol=1e-15)
