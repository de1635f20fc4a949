"""What holds across many cells, each a fine-tuned model with its repairs; seeds of one cell form a cluster and are averaged first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations

import numpy as np
from pydantic import Field

from deltamend.records import FiniteRecord
from deltamend.scoring.bootstrap import resample_clusters, weighted_mean
from deltamend.scoring.cell_means import draw_cells, observed_means
from deltamend.scoring.cell_score import score_of
from deltamend.scoring.estimates import estimate_from_draws
from deltamend.scoring.metric import FloatArray, parts_of
from deltamend.scoring.paired_cell import NONE_AND_REVERT, PairedCell
from deltamend.scoring.result import Estimate, Score
from deltamend.scoring.settings import Settings
from deltamend.scoring.significance import holm, smallest_wilcoxon_p, wilcoxon


class MeanOverCells(FiniteRecord):
    """The mean of a figure over the clusters of cells in which it is defined."""

    cells: int
    clusters: int
    these_cells: Estimate = Field(description="With an interval over items: for exactly these models and tasks.")
    cells_like_these: Estimate = Field(
        description="With an interval over clusters and items: for other models and tasks drawn like these."
    )


class MeanDifference(MeanOverCells):
    """Mean difference in combined score of two methods, paired: both in the same cells and the same draws."""

    first: str
    second: str


class WilcoxonTest(FiniteRecord):
    """Signed ranks of the difference in combined score over clusters of cells."""

    first: str
    second: str
    clusters: int
    median_difference: float
    p: float = Field(description="Two-sided p-value.")
    p_holm: float = Field(description="The same after Holm's correction for all pairs of methods.")
    smallest_p: float = Field(description="The smallest p-value that so few clusters can give.")


class CellsScore(FiniteRecord):
    """Every cell's score, and what holds across cells."""

    cells: tuple[Score, ...]
    clusters: tuple[str, ...] = Field(description="The cluster of each cell.")
    methods: dict[str, MeanOverCells] = Field(description="Mean combined score of each method.")
    differences: tuple[MeanDifference, ...] = Field(
        description="Mean difference of every pair of methods, first minus second."
    )
    tests: tuple[WilcoxonTest, ...]
    notes: tuple[str, ...]

    @property
    def all_notes(self) -> tuple[str, ...]:
        """What holds for all cells, then each cell's own."""
        return (*self.notes, *(f"{cell.name}: {note}" for cell in self.cells for note in cell.notes))


def score_across_cells(cells: Sequence[PairedCell], clusters: Sequence[str], settings: Settings) -> CellsScore:
    """Score every cell, and compare methods over clusters of cells.

    A cluster's score is the mean over its cells: seeds are repetitions of one cell, not cells of their own.

    Args:
        cells: as `open_cell` gives them.
        clusters: of each cell.
        settings: the same for all.
    """
    scored_as, drawn = draw_cells(cells, settings)
    scores = [score_of(cell, settings, means) for cell, means in zip(scored_as, drawn, strict=True)]
    combined = [  # each (D, K)
        parts_of(means, observed_means(cell, settings)).combined for cell, means in zip(scored_as, drawn, strict=True)
    ]
    methods = list(dict.fromkeys(name for score in scores for name in score.methods))
    methods = [*(name for name in methods if name not in NONE_AND_REVERT), *NONE_AND_REVERT]
    values = {name: _by_cell(name, scores) for name in methods}
    draws = {name: _draws(name, scored_as, combined) for name in methods}
    own = [name for name in methods if name not in NONE_AND_REVERT]
    differences = [
        MeanDifference(
            first=first,
            second=second,
            **dict(mean_over_cells(values[first] - values[second], draws[first] - draws[second], clusters, settings)),
        )
        for first, second in combinations(own, 2)
    ]
    return CellsScore(
        cells=tuple(scores),
        clusters=tuple(clusters),
        methods={name: mean_over_cells(values[name], draws[name], clusters, settings) for name in methods},
        differences=tuple(differences),
        tests=tuple(_tests(own, values, clusters)),
        notes=tuple(_notes(values, scores, clusters)),
    )


def _by_cell(method: str, scores: Sequence[Score]) -> FloatArray:
    """(cells,) combined score, NaN where the method is missing or its score undefined."""
    found = [score.methods[method].combined.value if method in score.methods else None for score in scores]
    return np.array([np.nan if value is None else value for value in found], dtype=np.float64)


def _draws(method: str, cells: Sequence[PairedCell], combined: Sequence[FloatArray]) -> FloatArray:
    """(D, cells) combined score of one method in every draw, NaN where it is missing or undefined."""
    missing = np.full(len(combined[0]), np.nan)
    return np.stack(
        [
            drawn[:, cell.methods.index(method)] if method in cell.methods else missing
            for cell, drawn in zip(cells, combined, strict=True)
        ],
        axis=-1,
    )


def cluster_means(values: FloatArray, clusters: Sequence[str]) -> dict[str, float]:
    """Mean of (cells,) over each cluster, in the order they first appear; cells that are NaN are left out."""
    members: dict[str, list[float]] = {}
    for value, cluster in zip(values, clusters, strict=True):
        if not np.isnan(value):
            members.setdefault(cluster, []).append(float(value))
    return {cluster: float(np.mean(own)) for cluster, own in members.items()}


def mean_over_cells(
    values: FloatArray, draws: FloatArray, clusters: Sequence[str], settings: Settings
) -> MeanOverCells:
    """The mean of a figure over clusters, and how sure it is.

    Given the difference of two methods, draw by draw, it is paired: the draws of items and of clusters are the same for both.

    Args:
        values: (cells,) NaN where the figure is undefined or missing; such cells are left out.
        draws: (D, cells) the same in every draw of the items; a cell that is NaN in a draw is left out of it, and
            `undefined_draws` of both intervals is the share of all cells' draws that were.
        clusters: of each cell.
        settings: for the seed and the confidence.
    """
    own = np.flatnonzero(~np.isnan(values))
    if not own.size:
        nothing = Estimate(value=None, reason="undefined in every cell")
        return MeanOverCells(cells=0, clusters=0, these_cells=nothing, cells_like_these=nothing)
    values, draws, clusters = values[own], draws[:, own], [clusters[int(index)] for index in own]
    of_clusters = cluster_means(values, clusters)
    mean = float(np.mean(list(of_clusters.values())))
    weights = np.array([1 / (clusters.count(cluster) * len(of_clusters)) for cluster in clusters])
    left_out = {"undefined_draws": float(np.isnan(draws).mean())}
    these = estimate_from_draws(mean, weighted_mean(draws, weights[:, None])[:, 0], settings, None)
    if len(of_clusters) < 2:
        like_these = Estimate(value=mean, reason="one cluster of cells says nothing about others")
    else:
        like_these = estimate_from_draws(mean, resample_clusters(draws, clusters, seed=settings.seed), settings, None)
    return MeanOverCells(
        cells=len(values),
        clusters=len(of_clusters),
        these_cells=these.model_copy(update=left_out),
        cells_like_these=like_these.model_copy(update=left_out),
    )


def _tests(methods: Sequence[str], values: Mapping[str, FloatArray], clusters: Sequence[str]) -> list[WilcoxonTest]:
    pairs = list(combinations(methods, 2))
    differences = [list(cluster_means(values[first] - values[second], clusters).values()) for first, second in pairs]
    p = [wilcoxon(own) for own in differences]
    return [
        WilcoxonTest(
            first=first,
            second=second,
            clusters=len(own),
            median_difference=float(np.median(own)) if own else 0.0,
            p=raw,
            p_holm=corrected,
            smallest_p=smallest_wilcoxon_p(len(own)),
        )
        for (first, second), own, raw, corrected in zip(pairs, differences, p, holm(p), strict=True)
    ]


def _notes(values: Mapping[str, FloatArray], scores: Sequence[Score], clusters: Sequence[str]) -> list[str]:
    notes = [
        f"{name}: undefined or missing in {', '.join(score.name for score, lacking in zip(scores, np.isnan(found), strict=True) if lacking)}"
        for name, found in values.items()
        if np.isnan(found).any()
    ]
    count = len(set(clusters))
    if smallest_wilcoxon_p(count) > 0.05:
        notes.append(
            f"{count} clusters of cells cannot give a p below {smallest_wilcoxon_p(count):.3g}; "
            "6 are the fewest that can be significant at 5%, and more where several pairs are compared"
        )
    return notes
