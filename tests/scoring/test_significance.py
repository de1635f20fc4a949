from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from statsmodels.stats.contingency_tables import mcnemar as mcnemar_table
from statsmodels.stats.multitest import multipletests

from deltamend.errors import UsageError
from deltamend.scoring.metric import FloatArray
from deltamend.scoring.power import items_needed, smallest_visible_change
from deltamend.scoring.significance import holm, mcnemar, smallest_wilcoxon_p, wilcoxon


@pytest.mark.slow
@given(pairs=st.lists(st.tuples(st.integers(0, 1), st.integers(0, 1)), min_size=1, max_size=60))
def test_mcnemar_equals_statsmodels(pairs: list[tuple[int, int]]) -> None:
    first, second = np.array(pairs, dtype=float).T
    table = [[int(np.sum((first == a) & (second == b))) for b in (1, 0)] for a in (1, 0)]
    found = mcnemar(first, second)
    assert found.p == pytest.approx(float(mcnemar_table(table, exact=True).pvalue))
    assert (found.first_only, found.second_only) == (table[0][1], table[1][0])


def test_mcnemar_refuses_scores_that_are_not_right_or_wrong() -> None:
    with pytest.raises(UsageError, match="right or wrong"):
        mcnemar(np.array([0.5, 0.0]), np.array([1.0, 0.0]))


@pytest.mark.slow
@pytest.mark.parametrize("p", [[0.03], [0.04, 0.01, 0.03, 0.005], [0.5, 0.5, 0.02], [0.0, 1.0, 1e-9, 0.2, 0.2]])
def test_holm_equals_statsmodels(p: list[float]) -> None:
    np.testing.assert_allclose(holm(p), multipletests(p, method="holm")[1])


def test_no_tests_need_no_correction() -> None:
    assert holm([]) == []


@pytest.mark.slow
@given(
    differences=st.lists(st.integers(-20, 20).filter(bool), min_size=1, max_size=14, unique_by=abs).map(
        lambda values: np.array(values, dtype=float)
    )
)
def test_wilcoxon_equals_scipy_and_cannot_go_below_its_smallest_p(differences: FloatArray) -> None:
    p = wilcoxon(differences)
    assert p == pytest.approx(float(stats.wilcoxon(differences, method="exact").pvalue))
    assert p >= smallest_wilcoxon_p(len(differences)) - 1e-12


def test_wilcoxon_leaves_zeros_out() -> None:
    assert wilcoxon([0.0, 1.0, 2.0, -3.0, 4.0]) == wilcoxon([1.0, 2.0, -3.0, 4.0])
    assert wilcoxon([0.0, 0.0]) == 1


def test_the_smallest_visible_change_is_found_four_times_in_five() -> None:
    random = np.random.default_rng(0)
    found = np.abs(random.normal(smallest_visible_change(0.03), 0.03, 40_000)) > 1.959964 * 0.03
    assert found.mean() == pytest.approx(0.8, abs=0.01)


def test_items_needed_grow_with_the_square() -> None:
    assert items_needed(0.02, visible=0.04, items=200) == 800
    with pytest.raises(ValueError, match="positive"):
        items_needed(0, visible=0.04, items=200)
