from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from deltamend.scoring.bootstrap import standard_error
from deltamend.scoring.metric import FloatArray, Means, combine, partition, parts_of

BENCHMARKS = 5
METHODS = 3

score_lists = hnp.arrays(np.float64, BENCHMARKS, elements=st.integers(0, 50).map(lambda right: right / 50))
repaired_lists = hnp.arrays(
    np.float64, (METHODS, BENCHMARKS), elements=st.integers(0, 50).map(lambda right: right / 50)
)
margins = hnp.arrays(np.float64, BENCHMARKS, elements=st.floats(0, 0.2))
share = st.floats(0, 1)


def means(
    base: FloatArray,
    finetuned: FloatArray,
    repaired: FloatArray,
    margin: FloatArray,
    target: tuple[float, float] = (0.2, 0.8),
    target_repaired: tuple[float, ...] = (0.5,) * METHODS,
    target_margin: float = 0.05,
) -> Means:
    return Means(
        base,
        finetuned,
        repaired,
        margin,
        np.float64(target[0]) * np.ones(()),
        np.float64(target[1]) * np.ones(()),
        np.array(target_repaired),
        np.float64(target_margin) * np.ones(()),
    )


@pytest.mark.slow
@given(base=score_lists, finetuned=score_lists, repaired=repaired_lists, margin=margins, target=st.tuples(share, share))
def test_every_part_is_between_0_and_1_or_undefined(
    base: FloatArray, finetuned: FloatArray, repaired: FloatArray, margin: FloatArray, target: tuple[float, float]
) -> None:
    parts = parts_of(means(base, finetuned, repaired, margin, target))
    for values in (parts.healing, parts.preservation, parts.non_damage, parts.retention, parts.combined / 100):
        assert np.all(np.isnan(values) | ((values >= 0) & (values <= 1)))


@pytest.mark.slow
@given(base=score_lists, finetuned=score_lists, margin=margins, target=st.tuples(share, share))
def test_the_base_retains_nothing_and_the_finetuned_model_heals_nothing(
    base: FloatArray, finetuned: FloatArray, margin: FloatArray, target: tuple[float, float]
) -> None:
    own = (target[0], target[1], max(target))
    parts = parts_of(means(base, finetuned, np.stack([base, finetuned, base]), margin, target, own))
    assert np.isnan(parts.retention[0]) or parts.retention[0] == 0
    assert np.isnan(parts.healing[1]) or parts.healing[1] == 0
    if not np.isnan(parts.retention[0]):
        assert parts.combined[0] == 0
    if not np.isnan(parts.healing[1]):
        assert parts.combined[1] == 0


@pytest.mark.slow
@given(base=score_lists, finetuned=score_lists, margin=margins, target=st.tuples(share, share))
def test_the_best_of_base_and_finetuned_on_each_benchmark_gets_100(
    base: FloatArray, finetuned: FloatArray, margin: FloatArray, target: tuple[float, float]
) -> None:
    oracle = np.maximum(base, finetuned)
    parts = parts_of(means(base, finetuned, np.stack([oracle] * 3), margin, target, (max(target),) * 3))
    assert np.allclose(parts.combined, 100)


@pytest.mark.slow
@given(
    base=score_lists,
    finetuned=score_lists,
    repaired=repaired_lists,
    margin=margins,
    methods=st.permutations(range(METHODS)),
    benchmarks=st.permutations(range(BENCHMARKS)),
)
def test_the_order_of_methods_and_benchmarks_does_not_matter(
    base: FloatArray,
    finetuned: FloatArray,
    repaired: FloatArray,
    margin: FloatArray,
    methods: list[int],
    benchmarks: list[int],
) -> None:
    one = parts_of(means(base, finetuned, repaired, margin))
    other = parts_of(
        means(base[benchmarks], finetuned[benchmarks], repaired[methods][:, benchmarks], margin[benchmarks])
    )
    for field in ("healing", "preservation", "non_damage", "retention", "combined"):
        np.testing.assert_allclose(getattr(one, field)[methods], getattr(other, field), rtol=1e-12, atol=1e-12)


@pytest.mark.slow
@given(base=score_lists, finetuned=score_lists, repaired=repaired_lists, margin=margins)
def test_a_repair_does_not_move_a_benchmark_to_another_group(
    base: FloatArray, finetuned: FloatArray, repaired: FloatArray, margin: FloatArray
) -> None:
    one = partition(means(base, finetuned, repaired, margin))
    other = partition(means(base, finetuned, 1 - repaired, margin))
    assert np.array_equal(one, other)


def test_an_example_by_hand() -> None:
    parts = parts_of(
        means(
            base=np.array([0.6, 0.5, 0.3, 0.7, 0.5]),
            finetuned=np.array([0.4, 0.4, 0.5, 0.7, 0.5]),
            repaired=np.array([[0.5, 0.5, 0.35, 0.7, 0.24], [0.4, 0.4, 0.5, 0.9, 0.5], [0.9, 0.3, 0.6, 0.0, 0.5]]),
            margin=np.full(5, 0.02),
            target_repaired=(0.5, 0.8, 0.1),
        )
    )
    np.testing.assert_allclose(parts.healing, [0.75, 0, 0.5])
    np.testing.assert_allclose(parts.preservation, [0.25, 1, 1])
    np.testing.assert_allclose(parts.non_damage, [0.75, 1, 0.5])
    np.testing.assert_allclose(parts.retention, [0.5, 1, 0])
    np.testing.assert_allclose(parts.combined, [100 * 4 / (1 / 0.75 + 4 + 1 / 0.75 + 2), 0, 0])


def test_what_is_undefined_is_left_out_of_the_combined_score_and_is_no_1() -> None:
    assert combine(np.array([0.5, np.nan, np.nan, 0.5])) == pytest.approx(50)
    assert np.isnan(combine(np.full(4, np.nan)))


def test_a_change_as_large_as_the_margin_is_none() -> None:
    damaged, improved = partition(
        means(np.full(2, 0.5), np.array([0.25, 0.75]), np.zeros((METHODS, 2)), np.full(2, 0.25))
    )
    assert not damaged.any()
    assert not improved.any()


@given(items=st.integers(2, 500), right=st.integers(1, 500), up=st.booleans())
def test_one_item_that_changes_is_as_large_as_its_own_standard_error_and_so_none(
    items: int, right: int, up: bool
) -> None:
    before = np.zeros(items)
    before[: min(right, items)] = 1.0
    after = before.copy()
    after[0] = 0.0
    base, finetuned = (after, before) if up else (before, after)
    gain = finetuned - base
    error = standard_error(gain.mean(), (gain**2).mean(), items)
    seen = means(
        np.array([base.mean()]),
        np.array([finetuned.mean()]),
        np.zeros((METHODS, 1)),
        np.array([error]),
        target=(float(base.mean()), float(finetuned.mean())),
        target_margin=float(error),
    )
    damaged, improved = partition(seen)
    assert not damaged.any()
    assert not improved.any()
    assert np.isnan(parts_of(seen).retention).all()


def test_a_draw_without_a_part_of_the_models_is_scored_by_their_partition() -> None:
    seen = means(np.array([0.6, 0.5]), np.array([0.4, 0.5]), np.array([[0.5, 0.5]] * METHODS), np.full(2, 0.05))
    drawn = Means(
        base=np.array([[0.60, 0.5], [0.44, 0.5], [0.4, 0.5], [0.6, 0.6]]),
        finetuned=np.array([[0.40, 0.5], [0.40, 0.5], [0.4, 0.5], [0.4, 0.4]]),
        repaired=np.repeat([[[0.43, 0.5]], [[0.43, 0.5]], [[0.4, 0.5]], [[0.43, 0.5]]], METHODS, axis=1),
        margin=np.full((4, 2), 0.05),
        target_base=np.full(4, 0.2),
        target_finetuned=np.full(4, 0.8),
        target_repaired=np.full((4, METHODS), 0.8),
        target_margin=np.full(4, 0.05),
    )
    assert np.isnan(parts_of(drawn).healing[1:3]).all()
    parts = parts_of(drawn, seen)
    # As it is; nothing is damaged in the second by its margin; in the third there is nothing to heal; in the last nothing is
    # neutral, so the second benchmark is not counted as damaged.
    np.testing.assert_allclose(parts.healing[:, 0], [0.15, 0.75, np.nan, 0.15])
    np.testing.assert_allclose(parts.non_damage[:, 0], 1)
    assert np.isnan(parts.preservation).all()
    np.testing.assert_allclose(
        parts.combined[:, 0], [300 / (1 / 0.15 + 2), 300 / (1 / 0.75 + 2), np.nan, 300 / (1 / 0.15 + 2)]
    )


def test_below_a_floor_that_is_not_positive_nothing_is_left() -> None:
    below = means(np.array([-0.1]), np.array([-0.1]), np.array([[-0.2], [-0.1], [0.3]]), np.array([0.05]))
    assert parts_of(below).non_damage.tolist() == [0, 1, 1]
