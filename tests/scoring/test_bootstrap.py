from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from deltamend.scoring.bootstrap import (
    mean_scores,
    percentile_interval,
    resample_clusters,
    resampled_means,
    standard_error,
)


def test_draws_have_the_mean_and_spread_of_the_bootstrap() -> None:
    scores = np.random.default_rng(0).random((50, 3))
    means = resampled_means(scores, draws=20_000, seed=1, key="arc")
    np.testing.assert_allclose(means.mean(axis=0), scores.mean(axis=0), atol=2e-3)
    np.testing.assert_allclose(means.std(axis=0), scores.std(axis=0) / np.sqrt(50), rtol=0.03)


def test_every_model_is_resampled_with_the_same_items() -> None:
    scores = np.random.default_rng(0).random((40, 1))
    means = resampled_means(np.hstack([scores, scores, 1 - scores]), draws=500, seed=0, key="arc")
    assert np.array_equal(means[:, 0], means[:, 1])
    np.testing.assert_allclose(means[:, 0] + means[:, 2], 1, atol=1e-11)


def test_draws_depend_on_seed_task_and_item_count_alone() -> None:
    scores = np.random.default_rng(0).random((40, 4))
    drawn = resampled_means(scores, draws=300, seed=0, key="arc")
    assert np.array_equal(drawn[:, :2], resampled_means(scores[:, :2], draws=300, seed=0, key="arc"))
    assert not np.array_equal(drawn, resampled_means(scores, draws=300, seed=1, key="arc"))
    assert not np.array_equal(drawn, resampled_means(scores, draws=300, seed=0, key="mmlu"))


def test_many_items_are_drawn_in_several_chunks() -> None:
    scores = (np.random.default_rng(0).random((30_000, 2)) < 0.3).astype(float)
    means = resampled_means(scores, draws=150, seed=0, key="arc")
    np.testing.assert_allclose(means.std(axis=0), scores.std(axis=0) / np.sqrt(30_000), rtol=0.25)


def test_the_percentile_interval_of_a_mean_equals_scipys() -> None:
    scores = np.random.default_rng(3).exponential(size=60)
    ours = percentile_interval(resampled_means(scores[:, None], draws=40_000, seed=0, key="x")[:, 0], 0.9)
    theirs = stats.bootstrap(
        (scores,), np.mean, n_resamples=40_000, confidence_level=0.9, method="percentile", rng=0
    ).confidence_interval
    assert ours.low == pytest.approx(theirs.low, abs=0.01)
    assert ours.high == pytest.approx(theirs.high, abs=0.01)


def test_the_standard_error_is_scipys() -> None:
    values = np.random.default_rng(0).random(30)
    ours = standard_error(values.mean(), (values**2).mean(), 30)
    assert ours == pytest.approx(stats.sem(values))
    assert standard_error(values[0], values[0] ** 2, 1) == 0


def test_means_of_equal_columns_are_equal() -> None:
    column = np.random.default_rng(0).random(1001)
    first, second = mean_scores(np.column_stack([column, column[::-1]]))
    assert first == second


def test_seeds_of_one_cluster_are_drawn_together() -> None:
    values = np.tile([0.0, 1.0, 10.0], (2000, 1))
    drawn = resample_clusters(values, ["a", "a", "b"], seed=0)
    assert set(np.round(drawn, 6)) == {0.5, 5.25, 10.0}
