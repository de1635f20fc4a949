from __future__ import annotations

import numpy as np
import pytest

from deltamend.study.findings.above_curve import area_under, curve_height, healing, height_above_curve, retention

ALPHAS = np.array([0.0, 0.5, 1.0])
CURVE = np.array([0.0, 0.6, 1.0]), np.array([1.0, 0.7, 0.0])


def test_healing_is_the_mean_share_of_what_was_lost_and_may_be_negative_or_above_one() -> None:
    base, tuned = np.array([0.8, 0.5]), np.array([0.6, 0.1])
    repaired = np.array([[0.8, 0.5], [0.7, 0.1], [0.5, 0.6]])
    np.testing.assert_allclose(healing(base, tuned, repaired), [1.0, 0.25, (-0.5 + 1.25) / 2])
    assert np.isnan(healing(base[:0], tuned[:0], repaired[:, :0])).all()
    np.testing.assert_allclose(retention(np.array(0.1), np.array(0.5), np.array([0.1, 0.3, 0.6])), [0.0, 0.5, 1.25])


@pytest.mark.parametrize(
    ("at", "height"),
    [(0.0, 1.0), (0.3, 0.85), (0.6, 0.7), (0.8, 0.35), (1.0, 0.0), (1.3, 0.0), (-0.2, 1.0)],
)
def test_a_straight_curve_is_read_on_the_line_between_its_points(at: float, height: float) -> None:
    assert curve_height(*CURVE, np.array([at]))[0] == pytest.approx(height)


def test_where_a_curve_turns_back_its_best_point_counts() -> None:
    """α = 0.5 retains more than the fine-tuned model, and heals: nothing that retains 1 stands above it."""
    retained, healed = np.array([0.0, 1.1, 1.0]), np.array([1.0, 0.6, 0.0])
    assert curve_height(retained, healed, np.array([1.0, 1.05, 2.0]))[0] == pytest.approx(0.6 + 0.4 * 0.1 / 1.1)
    assert curve_height(retained, healed, np.array([2.0]))[0] == pytest.approx(0.6)


@pytest.mark.parametrize("by", ["straight", "smooth"])
def test_the_points_of_the_curve_stand_on_it_and_axes_of_draws_are_kept(by: str) -> None:
    curve = tuple(np.broadcast_to(one, (4, 3)) for one in CURVE)
    found = height_above_curve(ALPHAS, (curve[0], curve[1]), (curve[0], curve[1]), by)  # type: ignore[arg-type]
    np.testing.assert_allclose(found, np.zeros((4, 3)), atol=1e-12)


def test_the_smooth_curve_lies_above_the_straight_one_where_the_curve_bulges() -> None:
    at = np.array([0.3, 0.8]), np.array([0.9, 0.5])
    straight, smooth = (height_above_curve(ALPHAS, CURVE, at, by) for by in ("straight", "smooth"))
    assert (straight > smooth).all()
    np.testing.assert_allclose(straight, [0.9 - 0.85, 0.5 - 0.35])


def test_area_under_a_family() -> None:
    assert area_under(np.array([0.0, 1.0]), np.array([1.0, 0.0])) == 0.0
    assert area_under(np.array([0.0, 1.0, 1.0]), np.array([1.0, 0.0, 1.0])) == 1.0
    assert area_under(np.array([1.0, 0.4, 0.0]), np.array([0.0, 0.5, 1.0])) == pytest.approx(0.2)
