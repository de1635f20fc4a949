"""Healing above the WiSE-FT curve at equal retention: the primary measure of a study, on arrays of mean scores alone.

For one fine-tuned model and one repair, with r, f and b the mean scores of the repaired, the fine-tuned and the base model:

- healing H is the mean over the damaged benchmarks of (r − f)/(b − f). Which are damaged is decided once, on all items;
- retention R is (r − b)/(f − b) on the target;
- the curve is that of WiSE-FT: (R, H) at every α of the study, from the base (α = 0) to the fine-tuned model (α = 1),
  interpolated between its strengths;
- the height of the curve at R is the most healing that a point of the curve has that retains at least R;
- the measure is H minus the height of the curve at the repair's own R.

Neither H nor R is clipped: a repair may do harm, and a mean of clipped figures is biased. The curve is interpolated in two
ways, and a repair stands above it only where it does so by both: in a straight line from point to point, which a repair
beats most easily, and along monotone cubics of R and H in α (Fritsch & Carlson 1980), which bulge as such curves do.

Source: ours. Comparing at equal retention rather than by one score is what makes it independent of how healing and retention
are weighed against each other.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from scipy.interpolate import PchipInterpolator

from deltamend.scoring.metric import FloatArray

Interpolation = Literal["straight", "smooth"]
INTERPOLATIONS: tuple[Interpolation, Interpolation] = ("straight", "smooth")
SMOOTH_POINTS = 201
"""Points at which the smooth curve is read, evenly over α; it is straight between them."""


def healing(base: FloatArray, finetuned: FloatArray, repaired: FloatArray) -> FloatArray:
    """H of (…, K) repairs from the mean scores on the damaged benchmarks, (…, B), (…, B) and (…, K, B); NaN where B is 0."""
    if not base.shape[-1]:
        return np.full(repaired.shape[:-1], np.nan)
    lost = (base - finetuned)[..., None, :]
    with np.errstate(divide="ignore", invalid="ignore"):
        found: FloatArray = ((repaired - finetuned[..., None, :]) / lost).mean(axis=-1)
    return found


def retention(base: FloatArray, finetuned: FloatArray, repaired: FloatArray) -> FloatArray:
    """R of (…, K) repairs from the mean scores on the target, (…), (…) and (…, K)."""
    with np.errstate(divide="ignore", invalid="ignore"):
        found: FloatArray = (repaired - base[..., None]) / (finetuned - base)[..., None]
    return found


def curve_height(retained: FloatArray, healed: FloatArray, at: FloatArray) -> FloatArray:
    """The most healing of any point of a curve that retains at least `at`.

    Args:
        retained: (…, N) R of the points of the curve, in the order of α.
        healed: (…, N) their H.
        at: (…, K) where to read it. Beyond the largest R of the curve, it is the H of that point.

    Returns:
        (…, K).
    """
    wanted = at[..., None]
    first, second = retained[..., None, :-1], retained[..., None, 1:]
    start, end = healed[..., None, :-1], healed[..., None, 1:]
    with np.errstate(divide="ignore", invalid="ignore"):
        share = np.clip((wanted - first) / (second - first), 0.0, 1.0)
    crossing = start + np.where(np.isfinite(share), share, 0.0) * (end - start)
    best = np.where(first >= wanted, start, -np.inf)
    best = np.maximum(best, np.where(second >= wanted, end, -np.inf))
    crossed = (first >= wanted) != (second >= wanted)
    best = np.maximum(best, np.where(crossed, crossing, -np.inf)).max(axis=-1)
    last = np.take_along_axis(healed, retained.argmax(axis=-1)[..., None], axis=-1)
    return np.where(np.isneginf(best), last, best)


def smoothed(alphas: FloatArray, values: FloatArray) -> FloatArray:
    """Values (…, N) at the strengths of a curve, read at `SMOOTH_POINTS` strengths along monotone cubics.

    Where one of the N is not finite, none of the points is known: all are NaN.
    """
    known = np.isfinite(values).all(axis=-1, keepdims=True)
    found: FloatArray = PchipInterpolator(alphas, np.where(known, values, 0.0), axis=-1)(
        np.linspace(0.0, 1.0, SMOOTH_POINTS)
    )
    return np.where(known, found, np.nan)


def height_above_curve(
    alphas: FloatArray, curve: tuple[FloatArray, FloatArray], repairs: tuple[FloatArray, FloatArray], by: Interpolation
) -> FloatArray:
    """H of repairs minus the height of the curve at their own R.

    Args:
        alphas: (N,) strengths of the curve, rising from 0 to 1.
        curve: R and H at them, (…, N) each.
        repairs: R and H of the repairs, (…, K) each.
        by: how the curve runs between its strengths.

    Returns:
        (…, K), in units of H.
    """
    retained, healed = (smoothed(alphas, one) for one in curve) if by == "smooth" else curve
    return repairs[1] - curve_height(retained, healed, repairs[0])


def area_under(retained: FloatArray, healed: FloatArray) -> float:
    """Area under the healing that a family of strengths reaches with at least each retention from 0 to 1.

    Args:
        retained: (N,) R of its strengths, the base's 0 and the fine-tuned model's 1 among them.
        healed: (N,) their H.

    Returns:
        0 for a family that never heals; 1 for one that heals all and retains all. Between two strengths the healing of the one
        that retains more counts, so that a family is not helped by strengths it does not have.
    """
    order = np.argsort(retained, kind="stable")
    points = np.clip(retained[order], 0.0, 1.0)
    best = np.maximum.accumulate(healed[order][::-1])[::-1]
    return float(np.sum(np.diff(points, prepend=0.0) * best))
