"""What a score says, as data: every figure with its interval, or with the reason why there is none."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from deltamend.records import FiniteRecord
from deltamend.scoring.metric import Group


class Estimate(FiniteRecord):
    """One figure with its interval, or with the reason why there is none."""

    value: float | None = Field(description="None where it is undefined.")
    low: float | None = Field(default=None, description="Lower end of the interval.")
    high: float | None = Field(default=None, description="Upper end of the interval.")
    reason: str | None = Field(default=None, description="Why there is no value, or no interval.")
    undefined_draws: float = Field(default=0, ge=0, le=1, description="Share of the draws in which it was undefined.")


class MethodScore(FiniteRecord):
    """One repaired model in one cell."""

    healing: Estimate = Field(
        description="0 to 1: the share of the damage that is undone, mean over the damaged benchmarks."
    )
    preservation: Estimate = Field(
        description="0 to 1: the share of the gain that is kept, mean over the improved benchmarks."
    )
    non_damage: Estimate = Field(
        description="0 to 1: 1 where a neutral benchmark is no worse than before, mean over these."
    )
    retention: Estimate = Field(description="0 to 1: the share of the gain on the target that is kept.")
    combined: Estimate = Field(description="0 to 100, 100 × the harmonic mean of the defined parts.")
    mean_score: Estimate = Field(description="Mean over the benchmarks, the target left out.")
    naive_recovery: Estimate = Field(
        description="(mean r − mean f)/(mean b − mean f) over all benchmarks, whatever their group; not clipped."
    )
    backward_transfer: Estimate = Field(description="Mean of r − b over the benchmarks (Lopez-Paz & Ranzato 2017).")
    trivial: bool = Field(default=False, description="Whether it is `none` or `revert`, which cannot win.")


class MethodOnTask(FiniteRecord):
    """One repaired model on one benchmark."""

    score: Estimate
    change: Estimate = Field(description="r − f, paired.")
    share: float | None = Field(
        description="What the benchmark adds to the part of its group; on the target, retention."
    )
    p: float | None = Field(
        default=None, description="Exact McNemar against the fine-tuned model; right-or-wrong items only."
    )
    p_holm: float | None = Field(default=None, description="The same, corrected for all of these tests in the cell.")


class TaskScore(FiniteRecord):
    """One benchmark, or the target."""

    name: str
    metric: str
    items: int
    weak: str | None = Field(description="Why the figure is weak.")
    chance: float | None
    group: Group | None = Field(description="What fine-tuning did to it; None for the target.")
    group_in_draws: dict[Group, float] = Field(description="Share of the draws in which it fell into each group.")
    margin: float = Field(description="The margin δ, in units of the score.")
    base: Estimate
    finetuned: Estimate
    visible_change: float = Field(description="The smallest true change that so many items reveal four times in five.")
    methods: dict[str, MethodOnTask]


class Difference(FiniteRecord):
    """One method minus another, paired: both on the same draws."""

    first: str
    second: str
    healing: Estimate
    retention: Estimate
    combined: Estimate


class Score(FiniteRecord):
    """One cell: a base, its fine-tuned descendant, and repairs of it."""

    format: Literal[1] = 1
    name: str
    models: dict[str, str] = Field(
        description="`base`, `finetuned` and each method, to the model as its record names it."
    )
    margin: str = Field(description="The rule for the margin δ.")
    chance_corrected: bool
    confidence: float
    draws: int
    seed: int
    target: TaskScore
    benchmarks: tuple[TaskScore, ...]
    methods: dict[str, MethodScore] = Field(description="In the order given, then `none` and `revert`.")
    differences: tuple[Difference, ...]
    notes: tuple[str, ...] = Field(description="What was chosen or left out, and what so few items cannot show.")
