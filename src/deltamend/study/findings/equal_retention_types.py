"""What a study found by its primary measure, healing above the WiSE-FT curve at equal retention, as data."""

from __future__ import annotations

from pydantic import Field

from deltamend.records import FiniteRecord
from deltamend.study.findings.clustered_t import ClusteredMean

FORMS = ("harmonic", "harmonic_without_preservation", "arithmetic", "geometric")
"""Ways of making one score of the parts of the metric."""


class CellGround(FiniteRecord):
    """What fine-tuning did in one cell, and whether the cell can bear a comparison."""

    cell: str
    chooses: bool
    measured_by: str = Field(description="How the target counts: exact_match or likelihood.")
    base: float = Field(description="Score of the base on the target.")
    finetuned: float = Field(description="Score of the fine-tuned model on the target.")
    constant: float | None = Field(
        description="What the form alone is worth: the share of right answers of the best constant answer, or the fine-tuned "
        "model's likelihood of right answers after the questions of other items."
    )
    right: float = Field(description="Share of right answers of the fine-tuned model.")
    admitted: bool = Field(description="Whether fine-tuning taught a skill: see docs/study.md.")
    damaged: tuple[str, ...] = Field(description="Benchmarks that fine-tuning made worse by more than the margin.")
    improved: tuple[str, ...] = Field(description="Benchmarks that it made better by more than the margin.")
    effects: dict[str, tuple[float, float]] = Field(description="Benchmark to its score in base and fine-tuned model.")
    repairs: dict[str, dict[str, float]] = Field(
        description="Repair to healing, retention, above_straight, above_smooth, and what it scores on every benchmark; neither "
        "healing nor retention is clipped."
    )

    @property
    def counts(self) -> bool:
        """Whether it is in the means: its target teaches a skill, and something was damaged."""
        return self.admitted and bool(self.damaged)


class RepairAtRetention(FiniteRecord):
    """One repair over a group of cells."""

    name: str
    role: str
    family: str
    group: str
    healing: ClusteredMean
    retention: ClusteredMean
    preservation: ClusteredMean | None = Field(
        description="Share kept of gains on benchmarks nobody trained for; None where no cell has any."
    )
    above_straight: ClusteredMean | None = Field(description="None for the curve itself.")
    above_smooth: ClusteredMean | None
    combined: dict[str, ClusteredMean] = Field(description="Form of the combined score, 0 to 100, to its mean.")
    capabilities: dict[str, ClusteredMean] = Field(
        description="Benchmark to the share healed of it, over the cells in which it was damaged."
    )


class FamilyAtRetention(FiniteRecord):
    """The strengths of one method over a group of cells."""

    family: str
    group: str
    strengths: tuple[str, ...]
    area: ClusteredMean = Field(description="Area under healing against retention, 0 to 1.")
    at_floor: dict[str, ClusteredMean] = Field(
        description="Least retention to the most healing of a strength that retains so much; 0 where none does, as the "
        "fine-tuned model itself does."
    )
    chosen: dict[str, str] = Field(
        description="REGIME/TARGET to the strength that was best above the curve on the other targets of the regime."
    )
    above_straight: ClusteredMean | None = Field(description="At these strengths; None for the curve itself.")
    above_smooth: ClusteredMean | None
    chosen_by_score: dict[str, str] = Field(
        description="REGIME/TARGET to the strength with the best combined score on the others."
    )
    combined: ClusteredMean | None = Field(description="Harmonic combined score at these strengths.")


class EqualRetention(FiniteRecord):
    """Every figure of the primary measure."""

    curve: str = Field(description="Family of the curve.")
    margin: str
    floors: tuple[float, ...]
    groups: dict[str, tuple[str, ...]] = Field(description="Group to its cells that count.")
    cells: tuple[CellGround, ...]
    repairs: tuple[RepairAtRetention, ...]
    families: tuple[FamilyAtRetention, ...]
