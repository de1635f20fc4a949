"""FAPM is its formula."""

from __future__ import annotations

import numpy as np
import torch

from deltamend.methods.fapm import fapm_score
from tests.methods.deltas import kept, matrices


def test_fapm_is_its_formula() -> None:
    base, update = matrices()
    out = kept("fapm", base, update, density=0.1)
    weights, size = np.abs(base.numpy()), np.abs((base + update - base).numpy())
    score = size - weights.mean() * size / weights
    mask = score >= np.sort(score.ravel())[::-1][240 - 1]
    np.testing.assert_allclose(out, update.numpy() * mask, atol=1e-15)


def test_fapm_where_weight_or_change_is_zero() -> None:
    base = np.array([[0.0, 0.0, 1.0, 4.0]])
    delta = np.array([[0.0, 0.5, 0.0, 0.5]])
    assert fapm_score(delta, base, 1.0).tolist() == [[0.0, -np.inf, 0.0, 0.375]]
    assert fapm_score(delta, np.zeros_like(base), 0.0).tolist() == [[0.0, -np.inf, 0.0, -np.inf]]
    out = kept("fapm", torch.from_numpy(base), torch.from_numpy(delta), density=0.25)
    assert out.tolist() == [[0.0, 0.0, 0.0, 0.5]]
    # A weight of 0 that changed is the last to be kept.
    out = kept("fapm", torch.from_numpy(base), torch.from_numpy(delta), density=0.75)
    assert out.tolist() == [[0.0, 0.0, 0.0, 0.5]]
