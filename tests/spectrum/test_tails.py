from __future__ import annotations

import numpy as np
import powerlaw
import pytest

from deltamend.spectrum.tails import power_law_tail


def pareto(exponent: float, count: int, seed: int = 0) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    return np.random.default_rng(seed).uniform(size=count) ** (-1.0 / (exponent - 1.0))


@pytest.mark.parametrize("exponent", [1.8, 2.5, 4.0])
def test_the_exponent_of_a_pareto_law_is_found(exponent: float) -> None:
    found = power_law_tail(pareto(exponent, 4000))
    assert found is not None
    assert found.exponent == pytest.approx(exponent, rel=0.06)


def test_the_tail_begins_where_the_power_law_does() -> None:
    body = np.random.default_rng(1).uniform(0.0, 1.0, 3000)
    found = power_law_tail(np.concatenate([body, pareto(3.0, 1500)]))
    assert found is not None
    assert 0.8 < found.start < 1.5
    assert found.exponent == pytest.approx(3.0, rel=0.1)


def test_scale_and_order_do_not_matter() -> None:
    values = pareto(2.2, 500)
    first, second = power_law_tail(values), power_law_tail(values[::-1] * 7.0)
    assert first is not None
    assert second is not None
    assert second.exponent == pytest.approx(first.exponent)
    assert second.start == pytest.approx(7.0 * first.start)


def test_nothing_is_fitted_to_too_few_or_equal_values() -> None:
    assert power_law_tail(np.ones(100)) is None
    assert power_law_tail(np.arange(9.0) + 1.0) is None
    assert power_law_tail(np.zeros(50)) is None


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_it_agrees_with_the_powerlaw_package() -> None:
    values = pareto(2.7, 200) + 0.2
    ours, theirs = power_law_tail(values), powerlaw.Fit(values, verbose=False)
    assert ours is not None
    assert ours.exponent == pytest.approx(theirs.power_law.alpha, rel=1e-6)
    assert ours.start == pytest.approx(theirs.xmin)
