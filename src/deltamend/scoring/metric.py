"""The partition-conditional metric of one cell, on mean scores alone.

A benchmark is damaged, improved or neutral by what fine-tuning did to it, never by what a repair did. Healing,
preservation and non-damage are means over these three sets, retention is about the target task. The paper
(arXiv 2605.20296) names these parts and prints no formula; the formulas are ours and are in docs/score.md.

Arrays have any number of leading axes "…" (resamples), then K methods, then B benchmarks. A part is NaN where it is
undefined.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

FloatArray: TypeAlias = NDArray[np.floating[Any]]
BoolArray: TypeAlias = NDArray[np.bool_]

Group = Literal["damaged", "improved", "neutral"]

PARTS = ("healing", "preservation", "non_damage", "retention", "combined")
"""The parts of the metric, and the combined score, by the names of the fields of `Parts`."""

_ROUNDING = 1e-9
"""Relative difference that two ways of adding up the same items may have. It matters, as one item of n that changes is a
change of exactly one standard error."""


@dataclass(frozen=True)
class Means:
    """Mean scores and margins of one cell.

    Attributes:
        base: (…, B).
        finetuned: (…, B).
        repaired: (…, K, B).
        margin: (…, B), not negative: how far apart base and fine-tuned must be to count as different.
        target_base: (…).
        target_finetuned: (…).
        target_repaired: (…, K).
        target_margin: (…).
    """

    base: FloatArray
    finetuned: FloatArray
    repaired: FloatArray
    margin: FloatArray
    target_base: FloatArray
    target_finetuned: FloatArray
    target_repaired: FloatArray
    target_margin: FloatArray


@dataclass(frozen=True)
class Parts:
    """The four parts, 0 to 1, and the combined score, 0 to 100; each (…, K), NaN where undefined."""

    healing: FloatArray
    preservation: FloatArray
    non_damage: FloatArray
    retention: FloatArray
    combined: FloatArray


def partition(means: Means) -> tuple[BoolArray, BoolArray]:
    """Which benchmarks fine-tuning damaged and which it improved, each (…, B); the rest is neutral.

    A change as large as the margin is none, whichever way it was rounded.
    """
    return (
        _beyond(means.base, means.finetuned, means.margin),
        _beyond(means.finetuned, means.base, means.margin),
    )


def _beyond(above: FloatArray, below: FloatArray, margin: FloatArray) -> BoolArray:
    """Whether `above` − `below` is more than the margin."""
    found: BoolArray = above - below > margin + _ROUNDING * (np.abs(above) + np.abs(below))
    return found


def shares(means: Means) -> tuple[FloatArray, FloatArray, FloatArray]:
    """What each benchmark would add to healing, to preservation and to non-damage: three of (…, K, B), 0 to 1.

    Only the one of the benchmark's own group counts. Where a neutral benchmark's floor min(b, f) − δ is not positive there
    is no share of it to take, and a score below it counts as 0.
    """
    base, finetuned, repaired = means.base[..., None, :], means.finetuned[..., None, :], means.repaired
    floor = np.minimum(base, finetuned) - means.margin[..., None, :]
    with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
        healed = np.clip((repaired - finetuned) / (base - finetuned), 0, 1)
        preserved = np.clip((repaired - base) / (finetuned - base), 0, 1)
        below = np.where(floor > 0, np.clip(repaired / floor, 0, 1), 0.0)
    return healed, preserved, np.where(repaired >= floor, 1.0, below)


def parts_of(means: Means, like: Means | None = None) -> Parts:
    """All parts of every method.

    Args:
        means: of the models, or of draws of their items.
        like: of the models, where `means` are of draws. A draw in which other parts would be defined than here, say because
            nothing is damaged in it, is scored by the partition that the models have, as its combined score were a mean of
            other things; where a part is undefined even so (0/0), so is its combined score.
    """
    damaged, improved = partition(means)
    learnt = _beyond(means.target_finetuned, means.target_base, means.target_margin)
    wanted = None
    if like is not None:
        own = *partition(like), _beyond(like.target_finetuned, like.target_base, like.target_margin)
        wanted = _defined(*own)
        same = (_defined(damaged, improved, learnt) == wanted).all(axis=-1)
        damaged, improved = (
            np.where(same[..., None], drawn, seen) for drawn, seen in zip((damaged, improved), own[:2], strict=True)
        )
        learnt = np.where(same, learnt, own[2])
    healed, preserved, unharmed = shares(means)
    base, finetuned = means.target_base[..., None], means.target_finetuned[..., None]
    with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
        kept = np.clip((means.target_repaired - base) / (finetuned - base), 0, 1)
    found = (
        _mean_over(damaged, healed),
        _mean_over(improved, preserved),
        _mean_over(~(damaged | improved), unharmed),
        np.where(learnt[..., None], kept, np.nan),
    )
    stacked = np.stack(found, axis=-1)
    combined = combine(stacked)
    if wanted is not None:
        combined = np.where((~np.isnan(stacked) == wanted[..., None, :]).all(axis=-1), combined, np.nan)
    return Parts(*found, combined=combined)


def _defined(damaged: BoolArray, improved: BoolArray, learnt: BoolArray) -> BoolArray:
    """Which of the four parts are defined, (…, 4), by a partition (…, B) and whether the target was learnt (…)."""
    neutral = ~(damaged | improved)
    return np.stack([damaged.any(axis=-1), improved.any(axis=-1), neutral.any(axis=-1), learnt], axis=-1)


def combine(parts: FloatArray) -> FloatArray:
    """100 × the harmonic mean of the defined parts on the last axis; 0 where one is 0, NaN where none is defined."""
    defined = ~np.isnan(parts)
    with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
        # 1/0 is inf, and a mean over inf is 0: the harmonic mean's own limit.
        combined: FloatArray = 100 * defined.sum(axis=-1) / np.where(defined, 1 / parts, 0).sum(axis=-1)
    return combined


def _mean_over(members: BoolArray, values: FloatArray) -> FloatArray:
    """Mean of (…, K, B) over the benchmarks that (…, B) marks; NaN where it marks none."""
    count = members.sum(axis=-1)[..., None]
    total = np.where(members[..., None, :], values, 0).sum(axis=-1)
    with np.errstate(invalid="ignore"):
        return np.where(count > 0, total / np.maximum(count, 1), np.nan)
