"""Counts of eigenvalues."""

from __future__ import annotations

import numpy as np

from deltamend.spectrum import lapack

WORK = np.zeros(1000)


def test_positive_eigenvalues_are_counted_by_the_factorisation() -> None:
    rng = np.random.default_rng(0)
    for size in (1, 2, 5, 64):
        a = rng.standard_normal((size, size))
        a = np.asfortranarray(a + a.T)
        np.fill_diagonal(a, 0.0 if size > 1 else -1.0)  # forces 2×2 pivots
        b = np.asfortranarray(rng.standard_normal((size, 3)))
        x = b.copy(order="F")
        assert lapack.sysv(a.copy(order="F"), x, WORK) == np.count_nonzero(np.linalg.eigvalsh(a) > 0)
        np.testing.assert_allclose(a @ x, b, atol=1e-9)


def test_counting_handles_exact_hits_and_split_matrices() -> None:
    d, e = np.array([4.0, 4.0, 1.0, 0.0]), np.zeros(3)
    assert [lapack.count_above(d, e, x) for x in (-1.0, 0.5, 2.0, 5.0, 1e300)] == [4, 3, 2, 0, 0]
    assert lapack.count_above(np.ones(1), np.zeros(0), 0.5) == 1
    assert lapack.bisect(np.ones(1), np.zeros(0), 0) == 1.0
