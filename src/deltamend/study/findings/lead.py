"""How far one repair leads others: means and paired differences over cells of one or more studies, with both intervals.

Everything is the combined score of `deltamend score`, 0 to 100. Cells that are seeds of one another are a cluster and count
once. A difference is taken cell by cell and draw by draw before it is averaged, so that what two repairs have in common,
the items and the fine-tuned models, drops out of it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from deltamend.errors import UsageError
from deltamend.scoring.across_cells import MeanOverCells, cluster_means, mean_over_cells
from deltamend.scoring.metric import FloatArray
from deltamend.scoring.settings import make_settings
from deltamend.study.config import Study
from deltamend.study.findings.clustered_t import ClusteredMean, clustered_mean
from deltamend.study.findings.scored_cells import ReadCell, ScoresOfRepairs, read_study_cells, scores_of_repairs

Written = Literal["float32", "stored"]
"""In which dtype a repair is asked: float32, or "stored", that of the fine-tuned model, as `deltamend repair` writes it."""

Retention = Literal["exact_match", "likelihood"]
"""How retention is measured: by right answers to the target's questions, or by the likelihood of these answers."""


class Figures(NamedTuple):
    """A figure of n cells: its values (n,) and its D draws (D, n); NaN where it is undefined."""

    values: FloatArray
    draws: FloatArray

    def minus(self, other: Figures) -> Figures:
        """The paired difference, for the same cells in the same order."""
        return Figures(self.values - other.values, self.draws - other.draws)


@dataclass(frozen=True)
class ScoredStudy:
    """The cells of a study with every combined score.

    Attributes:
        cells: those whose records are there.
        scores: all figures, with retention measured as the configuration says.
        other_retention: the same with retention measured in the other way.
        choosing: places in `cells` of those that repairs could be chosen on.
        confirming: places of all others.
    """

    cells: tuple[ReadCell, ...]
    scores: ScoresOfRepairs
    other_retention: ScoresOfRepairs
    choosing: tuple[int, ...]
    confirming: tuple[int, ...]


@dataclass(frozen=True)
class Selection:
    """Some cells of one study: `rows` are places in its `cells`."""

    study: ScoredStudy
    rows: tuple[int, ...]

    @property
    def cells(self) -> list[ReadCell]:
        """The cells themselves."""
        return [self.study.cells[row] for row in self.rows]

    @property
    def clusters(self) -> list[str]:
        """The cluster of each."""
        return [self.study.scores.clusters[row] for row in self.rows]

    def where(self, holds: Callable[[ReadCell], bool]) -> Selection:
        """Those cells of which something holds."""
        return replace(self, rows=tuple(row for row in self.rows if holds(self.study.cells[row])))


def score_study(study: Study, out: Path, draws: int) -> ScoredStudy:
    """Read a study's records and score every repair in every cell.

    Args:
        study: its configuration.
        out: folder of its records.
        draws: number of bootstrap resamples, at least 1.

    Raises:
        EvaluationError: a record is damaged, or its models were not asked the same.
        UsageError: `draws` is out of range, or none of the study's cells has been run.
    """
    settings = make_settings(draws=draws)
    cells, _ = read_study_cells(study, out)
    if not cells:
        raise UsageError(f"{out}: holds no finished cell of study {study.name!r}; run the study first")
    as_configured, other = scores_of_repairs(study, cells, settings)
    chooses = [study.chooses(of.cell) for of in cells]
    return ScoredStudy(
        cells=tuple(cells),
        scores=as_configured,
        other_retention=other,
        choosing=tuple(row for row, own in enumerate(chooses) if own),
        confirming=tuple(row for row, own in enumerate(chooses) if not own),
    )


def confirmation_cells(study: ScoredStudy) -> Selection:
    """The cells that no repair was chosen on."""
    return Selection(study, study.confirming)


def choosing_cells(study: ScoredStudy) -> Selection:
    """The cells that repairs could be chosen on."""
    return Selection(study, study.choosing)


def in_regime(cells: Selection, regime: str) -> Selection:
    """Those of one regime."""
    return cells.where(lambda of: of.cell.regime.name == regime)


def regimes_of(cells: Selection) -> list[str]:
    """Names of their regimes, in the order in which they first appear."""
    return list(dict.fromkeys(of.cell.regime.name for of in cells.cells))


def combined_scores(cells: Selection, name: str, written: Written = "float32") -> Figures:
    """The combined score of one repair.

    Asked for as "stored", a cell whose fine-tuned model is in bf16 gives the repair `NAME-bf16` where the study has one; all
    other cells give the repair in float32.

    Raises:
        UsageError: the study has no such repair.
    """
    rounded = f"{name}-bf16"
    if written == "float32" or rounded not in cells.study.scores.names:
        return _at(cells.study.scores, name, cells.rows)
    return scores_by_cell(cells, [rounded if of.cell.regime.weights == "bfloat16" else name for of in cells.cells])


def scores_by_cell(cells: Selection, names: Sequence[str]) -> Figures:
    """The combined score of another repair in each cell, `names` having one for each."""
    scored = cells.study.scores
    return _joined([_at(scored, name, [row]) for name, row in zip(names, cells.rows, strict=True)])


def scores_by_retention(cells: Selection, name: str, retention: Retention) -> Figures:
    """The combined score in float32, with retention measured in one way on every target."""
    study = cells.study
    samples = [study.scores if of.cell.target.retention == retention else study.other_retention for of in cells.cells]
    return _joined([_at(scored, name, [row]) for scored, row in zip(samples, cells.rows, strict=True)])


def mean_over(parts: Sequence[tuple[Selection, Figures]]) -> MeanOverCells:
    """The mean over the clusters of cells of one or more studies, whose items were drawn independently.

    Seed and confidence of the intervals are those of the first study.
    """
    first, _ = parts[0]
    figures = _joined([own for _, own in parts])
    clusters = [cluster for cells, _ in parts for cluster in cells.clusters]
    return mean_over_cells(figures.values, figures.draws, clusters, first.study.scores.settings)


def over_clusters(parts: Sequence[tuple[Selection, Figures]]) -> ClusteredMean | None:
    """The same mean with an interval by Student's t, which is honest where clusters are few; None where nothing is defined."""
    figures = _joined([own for _, own in parts])
    clusters = [cluster for cells, _ in parts for cluster in cells.clusters]
    return clustered_mean(figures.values, figures.draws, clusters, parts[0][0].study.scores.settings.confidence)


def of_clusters_never_seen(cells: Selection, later: str) -> Selection:
    """Those of which no seed chose settings and none had been seen when `later` was picked, that is, all of which have it."""
    scored = cells.study.scores
    known = ~np.isnan(scored.values["combined"][:, scored.names.index(later)])
    seen = {scored.clusters[row] for row in range(len(known)) if not known[row] or row in cells.study.choosing}
    return cells.where(lambda of: of.cell.cluster not in seen)


def mean_score(selected: Sequence[Selection], name: str, written: Written = "float32") -> MeanOverCells:
    """The mean combined score of one repair over cells of one or more studies."""
    return mean_over([(cells, combined_scores(cells, name, written)) for cells in selected])


def lead_over(selected: Sequence[Selection], ours: str, other: str, written: Written = "float32") -> MeanOverCells:
    """How many points one repair has more than another over cells of one or more studies, paired."""
    return mean_over(
        [
            (cells, combined_scores(cells, ours, written).minus(combined_scores(cells, other, written)))
            for cells in selected
        ]
    )


def cluster_leads(cells: Selection, ours: str, other: str) -> dict[str, float]:
    """Cluster to the mean lead over its cells, in float32."""
    gap = combined_scores(cells, ours).minus(combined_scores(cells, other))
    return cluster_means(gap.values, cells.clusters)


def best_by_regime(cells: Selection, names: Sequence[str]) -> dict[str, str]:
    """Regime to the one of some repairs with the highest mean over its cells.

    A repair that is missing or undefined in a cell of the regime cannot be the best; of equal ones the first named is.
    """
    best = {}
    for regime in regimes_of(cells):
        own = in_regime(cells, regime)
        means = {name: float(combined_scores(own, name).values.mean()) for name in names}
        best[regime] = max(names, key=lambda name, means=means: np.nan_to_num(means[name], nan=-np.inf))  # type: ignore[misc]
    return best


def _at(scored: ScoresOfRepairs, name: str, rows: Sequence[int]) -> Figures:
    if name not in scored.names:
        raise UsageError(f"the study has no repair {name!r}; it has {', '.join(scored.names)}")
    return Figures(*scored.at("combined", name, rows))


def _joined(parts: Sequence[Figures]) -> Figures:
    """The figures of the first cells, then of the next."""
    return Figures(
        np.concatenate([part.values for part in parts]), np.concatenate([part.draws for part in parts], axis=1)
    )
