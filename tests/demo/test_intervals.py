from __future__ import annotations

import pytest

from deltamend.demo.intervals import mean_interval, wilson_interval


def test_wilson_interval_of_eight_in_ten() -> None:
    low, high = wilson_interval(8, 10)
    assert (low, high) == pytest.approx(
        (0.4902, 0.9433), abs=1e-4
    )  # statsmodels: proportion_confint(8, 10, method="wilson")


@pytest.mark.parametrize("successes", [0, 20])
def test_wilson_interval_stays_in_range_and_is_never_a_point(successes: int) -> None:
    low, high = wilson_interval(successes, 20)
    assert 0 <= low < high <= 1


def test_mean_interval_of_equal_weights_is_the_usual_one() -> None:
    mean, low, high = mean_interval([1.0, 2.0, 3.0], [5, 5, 5])
    assert mean == pytest.approx(2.0)
    assert high - mean == pytest.approx(1.959964 / 3**0.5)
    assert mean - low == pytest.approx(high - mean)
