"""What a study found, as data: every figure with its intervals, and over how many cells it is."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from deltamend.records import FiniteRecord
from deltamend.scoring.across_cells import MeanDifference, MeanOverCells
from deltamend.scoring.metric import Group
from deltamend.scoring.result import Estimate
from deltamend.study.findings.equal_retention_types import EqualRetention
from deltamend.study.records import DiagnosisFacts, FinetuneFacts

CHOOSING, CONFIRMATION = "choosing", "confirmation"
"""Groups of cells: those that repairs could be chosen on, and all others."""

Topic = Literal["best", "curve", "dg-hard", "writing", "refusals", "retention"]
"""What a question is about."""

IDENTITY = 0.98
"""Share of ‖Δ‖² above which a filter that keeps it is called the identity."""


class MissingCell(FiniteRecord):
    """A cell of the grid that has no score yet."""

    cell: str
    reason: str


class GridCoverage(FiniteRecord):
    """How much of the study's grid of cells is done."""

    planned: int = Field(description="Cells of the grid.")
    scored: int = Field(description="Cells with a base and a fine-tuned model, and so in the figures.")
    missing: tuple[MissingCell, ...]
    missing_repairs: dict[str, tuple[str, ...]] = Field(description="Cell to repairs that are not done there yet.")
    unknown_repairs: dict[str, tuple[str, ...]] = Field(
        description="Cell to repairs that were done and are not (any more) in the configuration, or there with other settings; "
        "they are not scored."
    )

    @property
    def finished(self) -> bool:
        """Whether nothing is missing."""
        return not self.missing and not self.missing_repairs


class SampleAnswers(FiniteRecord):
    """What the models of one cell answered to a few items."""

    cell: str
    asked: tuple[str, ...] = Field(description="Benchmark and id of each item; the items stay in the study's data.")
    answers: dict[str, tuple[str | None, ...]] = Field(
        description="Model to its answer to each item; none where it was not kept."
    )


class CellOutcome(FiniteRecord):
    """One cell: what fine-tuning did, and what each repair made of it."""

    name: str
    cluster: str
    target: str
    regime: str
    seed: int
    chooses: bool
    finetune: FinetuneFacts
    diagnosis: DiagnosisFacts
    base_target: float = Field(description="Mean score of the base on the target, by its measure of retention.")
    finetuned_target: float
    groups: dict[str, Group] = Field(description="Benchmark to what fine-tuning did to it.")
    combined: dict[str, float | None] = Field(description="Repair to its combined score; None where undefined.")
    healing: dict[str, float | None]
    retention: dict[str, float | None]
    preservation: dict[str, float | None] = Field(default_factory=dict)
    non_damage: dict[str, float | None] = Field(default_factory=dict)
    chances: dict[str, float] = Field(
        default_factory=dict, description="Benchmark to the score of a guess, where there is one."
    )
    effects: dict[str, tuple[float, float]] = Field(
        default_factory=dict, description="Benchmark to the mean score of the base and of the fine-tuned model."
    )
    sizes: dict[str, float] = Field(description="Repair to ‖written − W_base‖/‖Δ‖.")
    notes: tuple[str, ...]


class PartsOver(FiniteRecord):
    """The parts of the metric and the combined score, each a mean over clusters of cells."""

    healing: MeanOverCells
    preservation: MeanOverCells
    non_damage: MeanOverCells
    retention: MeanOverCells
    combined: MeanOverCells


class RepairOutcome(FiniteRecord):
    """One repair, as it was asked for, and how it did."""

    name: str
    role: str = Field(description="As in the configuration; trivial for `none` and `revert`.")
    family: str
    method: str = Field(description="With its parameters, and how many rules it has.")
    out_dtype: str
    only_choosing: bool
    cells_planned: int
    cells_done: int
    groups: dict[str, PartsOver] = Field(
        description="Group of cells to the figures; groups without a cell are left out."
    )
    minus_best_published: dict[str, MeanOverCells] = Field(
        description="Group of cells to its combined score minus that of the best published repair there, paired."
    )


class RepairComparison(MeanDifference):
    """A repair against another over a group of cells."""

    group: str = Field(description="Group of cells that the comparison is over.")
    against: str = Field(description="Role of the second.")
    p: float = Field(description="Wilcoxon's signed ranks over clusters, two-sided.")
    p_holm: float = Field(description="Corrected for all comparisons of this list with the same group and role.")


class BestStrength(FiniteRecord):
    """One family of repairs at the strength that was best on other data than it is reported on."""

    family: str
    chosen_on: Literal["even items", "choosing cells"]
    tried: tuple[str, ...]
    chosen: str
    chosen_by: float = Field(
        description="Its mean combined score where it was chosen: too good, by having been chosen."
    )
    group: str = Field(description="Group of cells that it is reported on.")
    score: MeanOverCells = Field(description="On the odd items of these cells, or on all where other cells chose.")


class CurvePoint(FiniteRecord):
    """One alpha of WiSE-FT, or an end of the curve."""

    name: str
    alpha: float
    size: float = Field(description="Mean of ‖written − W_base‖/‖Δ‖ over the cells.")
    groups: dict[str, PartsOver]


class Height(FiniteRecord):
    """How far a repair stands above the WiSE-FT curve at the same ‖Δ*‖, which is interpolated between its alphas."""

    name: str
    role: str
    size: float = Field(description="Mean of ‖written − W_base‖/‖Δ‖ over the confirmation cells.")
    cells: int = Field(description="Confirmation cells with this repair and the whole curve.")
    outside: int = Field(
        description="Cells among these in which ‖Δ*‖ is not between the alphas of WiSE-FT, but nearer an end of the curve or "
        "beyond it: there a straight line to the end, where the score is 0, lies below the true curve."
    )
    groups: dict[str, MeanOverCells] = Field(description="Above the curve with the combined score interpolated.")
    groups_by_parts: dict[str, MeanOverCells] = Field(
        description="Above the curve with each part interpolated, then combined: never above the other height."
    )

    @property
    def judged(self) -> bool:
        """Whether the curve's alphas reach this repair in most cells."""
        return 2 * self.outside < self.cells


class Curve(FiniteRecord):
    """The WiSE-FT curve, and what stands above it."""

    points: tuple[CurvePoint, ...] = Field(description="From `revert` (0) to `none` (1).")
    heights: tuple[Height, ...]
    interpolation: dict[str, MeanOverCells] = Field(
        description="Inner alphas to their own height above the line between their neighbours, over the confirmation cells: "
        "what a straight line misses at twice the distance."
    )


class DiagnosisOutcome(FiniteRecord):
    """DG-Hard in one cell against the diagnosis of its update."""

    cell: str
    cluster: str
    verdict: str
    noise_like: float = Field(description="Share of the matrices with a noise-like bulk.")
    median_ks: float | None
    zeros: float
    kept_energy: float = Field(description="Share of ‖Δ‖² that DG-Hard keeps.")
    identity: bool = Field(description="Whether it kept more than 98% of the energy.")
    healing: Estimate
    combined: Estimate


class RankCorrelation(FiniteRecord):
    """Spearman's rank correlation of a figure of the diagnosis with DG-Hard's healing."""

    measure: str
    cells: int
    over_cells: float | None
    clusters: int
    over_clusters: float | None = Field(
        description="Correlation of the cluster means: seeds of one cell do not count as cells of their own."
    )
    p: float | None = Field(description="Two-sided, over clusters.")
    within: dict[str, float | None] = Field(
        description="Dtype that was trained in to the correlation over its clusters alone; empty where there is one dtype."
    )
    reason: str | None = Field(default=None, description="Why there is none.")


class DgHardOutcome(FiniteRecord):
    """Where DG-Hard heals, where it is the identity, and whether the diagnosis tells."""

    repair: str
    cells: tuple[DiagnosisOutcome, ...]
    correlations: tuple[RankCorrelation, ...]
    identity: MeanOverCells = Field(description="Healing over the cells in which it is the identity.")
    others: MeanOverCells = Field(description="Healing over the others.")


class Written(FiniteRecord):
    """One repair in one regime, written in one dtype."""

    regime: str
    weights: str = Field(description="Dtype of the fine-tuned model.")
    repair: str
    out_dtype: str
    cells: int
    realised_error: float = Field(description="Mean distance of what was written from W_base + Δ*, in ‖Δ*‖.")
    kept_energy: float = Field(description="Mean ‖Δ*‖²/‖Δ‖².")
    realised_energy: float = Field(description="Mean ‖written − W_base‖²/‖Δ‖².")
    healing: MeanOverCells
    retention: MeanOverCells
    combined: MeanOverCells


class WrittenDifference(FiniteRecord):
    """The same repair written in two dtypes, first minus second, paired."""

    regime: str
    first: str
    second: str
    healing: MeanOverCells
    retention: MeanOverCells
    combined: MeanOverCells


class SafetyOutcome(FiniteRecord):
    """One model on one safety task, mean over the cells of one target."""

    target: str
    task: str
    metric: str = Field(description="What the share is of: refused, or complied.")
    weak: str | None
    model: str
    cells: int
    prompts: int
    share: Estimate = Field(description="Interval over prompts; Wilson's where all answers are alike.")
    from_base: Estimate = Field(description="Minus the base's share, paired.")
    from_finetuned: Estimate = Field(description="Minus the fine-tuned model's share, paired.")


class Ranked(FiniteRecord):
    """One repair with retention measured in both ways, over the confirmation cells."""

    name: str
    role: str
    exact_match: MeanOverCells
    likelihood: MeanOverCells
    exact_match_rank: int | None
    likelihood_rank: int | None


class Rankings(FiniteRecord):
    """Whether the ranking changes with how retention is measured."""

    repairs: tuple[Ranked, ...]
    correlation: float | None = Field(description="Spearman's, of the two rankings of repairs.")


class Answer(FiniteRecord):
    """What can be said of one question, by fixed rules from the figures."""

    topic: Topic
    question: str
    sentences: tuple[str, ...]


class StudyResults(FiniteRecord):
    """Everything a study found."""

    format: Literal[1] = 1
    name: str
    margin: str
    draws: int
    seed: int
    confidence: float
    headline: str
    answers: tuple[Answer, ...]
    progress: GridCoverage
    groups: dict[str, tuple[str, ...]] = Field(description="Group of cells to its cells.")
    cells: tuple[CellOutcome, ...]
    repairs: tuple[RepairOutcome, ...]
    best_published: dict[str, str] = Field(
        description="Group of cells to the published repair with the highest mean combined score, of those that are done in "
        "the most cells: too good, by having been picked there."
    )
    comparisons: tuple[RepairComparison, ...] = Field(description="Every candidate against every other repair.")
    best_strengths: tuple[BestStrength, ...]
    best_comparisons: tuple[RepairComparison, ...] = Field(
        description="Families with a candidate against the other families, each at its best strength: chosen on even items, "
        "compared on the odd items of the same group of cells."
    )
    curve: Curve | None = Field(description="None where the study has no WiSE-FT.")
    dg_hard: DgHardOutcome | None = Field(description="None where the study has no DG-Hard.")
    written: tuple[Written, ...]
    written_differences: tuple[WrittenDifference, ...]
    safety: tuple[SafetyOutcome, ...]
    rankings: Rankings
    samples: tuple[SampleAnswers, ...] = Field(
        default=(), description="What models answered to a few items, where answers were kept."
    )
    equal_retention: EqualRetention | None = Field(
        default=None, description="The primary measure; None where the study's file names none."
    )
    hours: dict[str, float] = Field(description="Step to wall time over all cells, as far as it was recorded.")
    machines: tuple[str, ...]
    versions: dict[str, tuple[str, ...]] = Field(description="Package to the versions that were used.")
    notes: tuple[str, ...]
