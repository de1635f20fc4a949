"""DG-Hard against the diagnosis of the update: where it heals, and where it is the identity."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from deltamend.scoring.across_cells import cluster_means
from deltamend.scoring.estimates import estimate_from_draws
from deltamend.scoring.metric import FloatArray
from deltamend.scoring.significance import spearman
from deltamend.study.config import Study
from deltamend.study.findings.result_types import IDENTITY, DgHardOutcome, DiagnosisOutcome, RankCorrelation
from deltamend.study.findings.scored_cells import ReadCell, ScoresOfRepairs
from deltamend.study.repair_config import Repair

_NOISE_LIKE = "noise-like bulk"


def dg_hard_outcome(study: Study, cells: Sequence[ReadCell], scored: ScoresOfRepairs) -> DgHardOutcome | None:
    """DG-Hard in every cell, and what of the diagnosis its healing goes with; None where the study has none."""
    repair = _published_dg_hard(study)
    rows = [row for row, of in enumerate(cells) if repair is not None and repair.name in of.repairs]
    if repair is None or not rows:
        return None
    outcomes = [_diagnosed(cells[row], row, repair.name, scored) for row in rows]
    same = [row for row, of in zip(rows, outcomes, strict=True) if of.identity]
    others = [row for row in rows if row not in same]
    healing = np.array([np.nan if of.healing.value is None else of.healing.value for of in outcomes])
    measures: dict[str, list[float | None]] = {
        "share of noise-like matrices": [of.noise_like for of in outcomes],
        "median KS distance": [of.median_ks for of in outcomes],
        "share of zeros": [of.zeros for of in outcomes],
        "energy that DG-Hard keeps": [of.kept_energy for of in outcomes],
    }
    trained_in = [cells[row].cell.regime.weights for row in rows]
    clusters = [of.cluster for of in outcomes]
    return DgHardOutcome(
        repair=repair.name,
        cells=tuple(outcomes),
        correlations=tuple(
            _rank_correlation(name, found, healing, clusters, trained_in) for name, found in measures.items()
        ),
        identity=scored.over("healing", repair.name, same),
        others=scored.over("healing", repair.name, others),
    )


def _published_dg_hard(study: Study) -> Repair | None:
    found = [one for one in study.repairs if one.method == "dg-hard" and not one.rules and one.role != "dtype"]
    return next((one for one in found if one.role == "published"), found[0] if found else None)


def _diagnosed(of: ReadCell, row: int, name: str, scored: ScoresOfRepairs) -> DiagnosisOutcome:
    column = scored.names.index(name)
    figures = {
        part: estimate_from_draws(
            float(scored.values[part][row, column]),
            scored.draws[part][:, row, column],
            scored.settings,
            "undefined here",
        )
        for part in ("healing", "combined")
    }
    said, kept = of.record.diagnosis, of.facts(name).kept_energy
    matrices = sum(said.verdicts.values())
    return DiagnosisOutcome(
        cell=of.cell.name,
        cluster=of.cell.cluster,
        verdict=said.verdict,
        noise_like=said.verdicts.get(_NOISE_LIKE, 0) / matrices if matrices else 0.0,
        median_ks=said.median_ks,
        zeros=said.zeros,
        kept_energy=kept,
        identity=kept > IDENTITY,
        **figures,
    )


def _rank_correlation(
    measure: str,
    found: Sequence[float | None],
    healing: FloatArray,
    clusters: Sequence[str],
    trained_in: Sequence[str],
) -> RankCorrelation:
    """Over all clusters, and within each dtype: what only tells dtypes apart says nothing of an update of a known dtype."""
    values = np.array([np.nan if value is None else value for value in found], dtype=np.float64)
    both = ~(np.isnan(values) | np.isnan(healing))
    values, healing = values[both], healing[both]
    names = [cluster for cluster, there in zip(clusters, both, strict=True) if there]
    dtypes = np.array([dtype for dtype, there in zip(trained_in, both, strict=True) if there])

    def of_clusters(rows: NDArray[np.intp]) -> list[FloatArray]:
        own = [names[row] for row in rows]
        return [np.array(list(cluster_means(figures[rows], own).values())) for figures in (values, healing)]

    over_cells, _ = spearman(values, healing)
    over_clusters, p = spearman(*of_clusters(np.arange(len(values))))
    each = sorted(set(dtypes.tolist()))
    within = {dtype: spearman(*of_clusters(np.flatnonzero(dtypes == dtype)))[0] for dtype in each}
    return RankCorrelation(
        measure=measure,
        cells=len(values),
        over_cells=over_cells,
        clusters=len(set(names)),
        over_clusters=over_clusters,
        p=p,
        within=within if len(each) > 1 else {},
        reason=None if over_clusters is not None else "fewer than three clusters, or one figure is the same in all",
    )
