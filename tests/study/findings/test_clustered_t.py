from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import t as student

from deltamend.study.findings.clustered_t import clustered_mean


def test_without_shared_items_it_is_the_t_interval_of_the_cluster_means() -> None:
    values = np.array([0.1, 0.3, 0.2, 0.6])
    found = clustered_mean(values, np.tile(values, (50, 1)), ["a", "a", "b", "c"], 0.95)
    assert found is not None
    means = np.array([0.2, 0.2, 0.6])
    error = means.std(ddof=1) / np.sqrt(3)
    assert found.value == pytest.approx(means.mean())
    assert found.error == pytest.approx(error)
    assert found.freedom == pytest.approx(2)
    assert found.high == pytest.approx(means.mean() + student.ppf(0.975, 2) * error)
    assert (found.cells, found.clusters) == (4, 3)


def test_noise_that_all_clusters_share_widens_it_and_costs_no_freedom() -> None:
    """Clusters that agree to the digit look certain; the items they share say how little that means."""
    random = np.random.default_rng(0)
    shared = random.normal(scale=0.2, size=(4000, 1))
    found = clustered_mean(np.array([0.5, 0.5, 0.5001]), 0.5 + np.tile(shared, (1, 3)), ["a", "b", "c"], 0.95)
    assert found is not None
    assert found.error == pytest.approx(0.2, rel=0.05)
    assert found.freedom is not None
    assert found.freedom > 1e6


def test_few_items_make_what_is_shared_less_certain() -> None:
    random = np.random.default_rng(0)
    draws = 0.5 + np.tile(random.normal(scale=0.2, size=(4000, 1)), (1, 3))
    values = np.array([0.5, 0.5, 0.5001])
    many, few = (clustered_mean(values, draws, ["a", "b", "c"], 0.95, items=items) for items in (None, 12))
    assert many is not None
    assert few is not None
    assert few.freedom == pytest.approx(11, rel=1e-3)
    assert few.error is not None
    assert few.error / (many.error or 1.0) == pytest.approx((12 / 11) ** 0.5)


def test_what_cannot_be_told_is_none() -> None:
    assert clustered_mean(np.array([np.nan]), np.full((5, 1), np.nan), ["a"], 0.95) is None
    one = clustered_mean(np.array([0.4, np.nan]), np.full((5, 2), 0.4), ["a", "b"], 0.95)
    assert one is not None
    assert one.value == pytest.approx(0.4)
    assert one.low is None
    assert one.cells == 1
