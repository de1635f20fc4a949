"""DARE drops at random and rescales."""

from __future__ import annotations

import math

import numpy as np
import pytest

from tests.methods.deltas import kept, matrices


def test_dare_drops_at_random_and_rescales() -> None:
    base, update = matrices((200, 300))
    out = kept("dare", base, update, density=0.3)
    dropped = np.abs(out) < 1e-12
    assert dropped.mean() == pytest.approx(0.7, abs=0.01)
    np.testing.assert_allclose(out[~dropped], (update.numpy() / 0.3)[~dropped], atol=1e-13)
    # The mask does not look at sizes, and differs by name.
    assert np.abs(update.numpy())[dropped].mean() == pytest.approx(np.abs(update.numpy()).mean(), rel=0.02)
    other = kept("dare", base, update, name="another.weight", density=0.3)
    assert not np.array_equal(np.abs(other) < 1e-12, dropped)
    mean = np.mean([kept("dare", base, update, density=0.5, seed=seed) for seed in range(40)], axis=0)
    assert np.linalg.norm(mean - update.numpy()) < 1.3 / math.sqrt(40) * np.linalg.norm(update.numpy())
    plain = kept("dare", base, update, density=0.3, rescale=False)
    np.testing.assert_allclose(plain[~dropped], update.numpy()[~dropped], atol=1e-14)
