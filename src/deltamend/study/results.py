"""From the records of a study to what it found."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from deltamend.errors import EvaluationError
from deltamend.methods.registry import get_method
from deltamend.score.cell import TRIVIAL
from deltamend.score.cells import OverCells, cluster_means
from deltamend.score.metric import FloatArray, Group, combine, partition
from deltamend.score.scoring import Settings, estimate, make_settings, observed_means
from deltamend.score.significance import holm, wilcoxon
from deltamend.study.config import Cell, Repair, Study
from deltamend.study.outcome import (
    CHOOSING,
    CONFIRMATION,
    IDENTITY,
    PARTS,
    BestStrength,
    CellOutcome,
    Comparison,
    Curve,
    CurvePoint,
    DgHardOutcome,
    DiagnosisOutcome,
    Height,
    PartsOver,
    Progress,
    RankCorrelation,
    Ranked,
    Rankings,
    RepairOutcome,
    StudyResults,
    Written,
    WrittenDifference,
)
from deltamend.study.records import ModelRecord, RepairFacts
from deltamend.study.safety import safety_outcomes
from deltamend.study.scored_cells import ReadCell, Sample, half_sample, read_cells, sample
from deltamend.study.verdict import answers, headline

NONE, REVERT = TRIVIAL
_PERMUTATIONS = 9999
"""Of a rank correlation's p; all of them where there are fewer."""

_NOISE_LIKE = "noise-like bulk"


def study_results(
    study: Study, out: Path, *, draws: int = 2000, seed: int = 0, confidence: float = 0.95, margin: str = "1se"
) -> StudyResults:
    """Score what is there of a study, and answer its questions.

    Args:
        study: its configuration.
        out: the folder of its records.
        draws: of the bootstrap.
        seed: of the bootstrap.
        confidence: of the intervals.
        margin: what counts as a change of a benchmark, as in `deltamend score`.

    Raises:
        EvaluationError: there is no record, or one is damaged, or its models were not asked the same.
        UsageError: a number means nothing.
    """
    settings = make_settings(margin=margin, draws=draws, seed=seed, confidence=confidence)
    cells, progress = read_cells(study, out)
    if not cells:
        raise EvaluationError(f"{out}: no cell of the study {study.name} is done; run `deltamend study` first")
    by_config, by_other = sample(study, cells, settings)
    groups = _groups(study, cells)
    confirming = groups.get(CONFIRMATION, [])
    best_published = _best_published(study, by_config, groups)
    strengths, best = _best_strengths(study, cells, by_config, groups, settings)
    found: dict[str, Any] = {
        "progress": progress,
        "cells": tuple(_cell_outcome(study, of, row, by_config, settings) for row, of in enumerate(cells)),
        "repairs": tuple(_repair_outcomes(study, cells, by_config, groups, best_published)),
        "best_published": best_published,
        "comparisons": tuple(_comparisons(study, by_config, confirming)),
        "best_strengths": strengths,
        "best_comparisons": best,
        "curve": _curve(study, cells, by_config, groups),
        "dg_hard": _dg_hard(study, cells, by_config),
        "written": tuple(_written(study, cells, by_config)),
        "written_differences": tuple(_written_differences(study, cells, by_config)),
        "safety": tuple(safety_outcomes(study, cells, settings)),
        "rankings": _rankings(study, cells, by_config, by_other, confirming),
    }
    results = StudyResults(
        name=study.name,
        margin=margin,
        draws=draws,
        seed=seed,
        confidence=confidence,
        headline="",
        answers=(),
        groups={name: tuple(cells[row].cell.name for row in rows) for name, rows in groups.items()},
        hours=_hours(cells),
        machines=tuple(sorted({record.machine for of in cells for record in (of.record, of.base)})),
        versions=_versions(cells),
        notes=(*_notes(study, cells, progress), *_beside(study, by_config, confirming or groups[CHOOSING])),
        **found,
    )
    return results.model_copy(update={"headline": headline(results), "answers": answers(results)})


def _groups(study: Study, cells: Sequence[ReadCell]) -> dict[str, list[int]]:
    """Groups of cells to their rows; the empty ones are left out."""
    groups: dict[str, list[int]] = {CHOOSING: [], CONFIRMATION: []}
    for row, of in enumerate(cells):
        groups[CHOOSING if study.chooses(of.cell) else CONFIRMATION].append(row)
    if len(study.regimes) > 1:
        for regime in study.regimes:
            rows = [row for row in groups[CONFIRMATION] if cells[row].cell.regime == regime]
            groups[f"{CONFIRMATION}, {regime.name}"] = rows
    return {name: rows for name, rows in groups.items() if rows}


def _number(value: float) -> float | None:
    return None if np.isnan(value) else float(value)


def _facts(of: ReadCell, name: str) -> RepairFacts:
    facts = of.record.models[name].facts
    if facts is None:
        raise EvaluationError(
            f"cell {of.cell.name}: the record of {name} does not say what the repair did; run it again"
        )
    return facts


def _size(of: ReadCell, name: str) -> float:
    """‖written − W_base‖/‖Δ‖."""
    if name in TRIVIAL:
        return 1.0 if name == NONE else 0.0
    return float(np.sqrt(_facts(of, name).realised_energy))


def _cell_outcome(study: Study, of: ReadCell, row: int, scored: Sample, settings: Settings) -> CellOutcome:
    means = observed_means(of.paired, settings)
    damaged, improved = partition(means)
    groups: dict[str, Group] = {
        task.name: "damaged" if damaged[place] else "improved" if improved[place] else "neutral"
        for place, task in enumerate(of.paired.benchmarks)
    }
    shown = (*of.repairs, *TRIVIAL)
    figures = {
        part: {name: _number(scored.values[part][row, scored.names.index(name)]) for name in shown}
        for part in ("combined", "healing", "retention")
    }
    return CellOutcome(
        name=of.cell.name,
        cluster=of.cell.cluster,
        target=of.cell.target.name,
        regime=of.cell.regime.name,
        seed=of.cell.seed,
        chooses=study.chooses(of.cell),
        finetune=of.record.finetune,
        diagnosis=of.record.diagnosis,
        base_target=float(means.target_base),
        finetuned_target=float(means.target_finetuned),
        groups=groups,
        sizes={name: _size(of, name) for name in shown},
        notes=of.paired.notes,
        **figures,
    )


def _parts_over(scored: Sample, name: str, rows: Sequence[int]) -> PartsOver:
    return PartsOver(**{part: scored.over(part, name, rows) for part in PARTS})


def _repair_outcomes(
    study: Study,
    cells: Sequence[ReadCell],
    scored: Sample,
    groups: dict[str, list[int]],
    best_published: Mapping[str, str],
) -> Iterable[RepairOutcome]:
    def minus_best(name: str, own: Iterable[str]) -> dict[str, OverCells]:
        return {
            group: scored.difference("combined", name, best_published[group], groups[group])
            for group in own
            if best_published.get(group, name) != name
        }

    planned = [(cell, [repair.name for repair in study.repairs_of(cell)]) for cell in study.cells()]
    for repair in study.repairs:
        done = {row for row, of in enumerate(cells) if repair.name in of.repairs}
        own = {name: rows for name, rows in groups.items() if done.intersection(rows)}
        yield RepairOutcome(
            name=repair.name,
            role=repair.role,
            family=family(repair),
            method=_described(repair),
            out_dtype=repair.out_dtype,
            only_choosing=repair.only_choosing,
            cells_planned=sum(repair.name in names for _, names in planned),
            cells_done=len(done),
            groups={group: _parts_over(scored, repair.name, rows) for group, rows in own.items()},
            minus_best_published=minus_best(repair.name, own),
        )
    for name, what in zip(TRIVIAL, ("the fine-tuned model itself", "the base"), strict=True):
        yield RepairOutcome(
            name=name,
            role="trivial",
            family=name,
            method=what,
            out_dtype="stored",
            only_choosing=False,
            cells_planned=len(planned),
            cells_done=len(cells),
            groups={group: _parts_over(scored, name, rows) for group, rows in groups.items()},
            minus_best_published=minus_best(name, groups),
        )


def _best_published(study: Study, scored: Sample, groups: Mapping[str, list[int]]) -> dict[str, str]:
    found: dict[str, str] = {}
    for group, rows in groups.items():
        means = {
            one.name: over
            for one in study.repairs
            if one.role == "published" and (over := scored.over("combined", one.name, rows)).cells
        }
        most = max((over.cells for over in means.values()), default=0)
        values = {name: over.these_cells.value or 0.0 for name, over in means.items() if over.cells == most}
        if values:
            found[group] = max(values, key=lambda name: values[name])
    return found


def family(repair: Repair) -> str:
    """What strengths of one method have in common; with rules a repair is no strength of its method."""
    return repair.family or (repair.name if repair.rules else repair.method)


def _described(repair: Repair) -> str:
    """As the configuration asks for it."""
    said = _asked(repair.method, repair.parameters)
    if repair.rules:
        said += f", {len(repair.rules)} rule{'s' if len(repair.rules) > 1 else ''}"
    return said if repair.vectors == "finetuned" else f"{said}, vectors {repair.vectors}"


def _asked(method: str, parameters: Mapping[str, Any]) -> str:
    if steps := parameters.get("steps"):
        return " then ".join(
            _asked(step["method"], {key: value for key, value in step.items() if key != "method"}) for step in steps
        )
    return " ".join([method, *(f"{key}={value}" for key, value in parameters.items())])


def _compared(
    scored: Sample, pairs: Sequence[tuple[str, str, str]], rows: Sequence[int], group: str
) -> Iterable[Comparison]:
    """Differences of (first, second, role of the second), with Holm's correction within a role."""
    raw = []
    for first, second, _ in pairs:
        values, _draws = scored.gap("combined", first, second, rows)
        raw.append(wilcoxon(list(cluster_means(values, [scored.clusters[row] for row in rows]).values())))
    corrected = [0.0] * len(pairs)
    for role in {against for *_, against in pairs}:
        places = [place for place, (*_, against) in enumerate(pairs) if against == role]
        for place, p in zip(places, holm([raw[place] for place in places]), strict=True):
            corrected[place] = p
    for (first, second, against), p, p_holm in zip(pairs, raw, corrected, strict=True):
        over = scored.difference("combined", first, second, rows)
        yield Comparison(group=group, first=first, second=second, against=against, p=p, p_holm=p_holm, **dict(over))


def _comparisons(study: Study, scored: Sample, rows: Sequence[int]) -> Iterable[Comparison]:
    against = {repair.name: role for repair in study.repairs if (role := _stands_as(study, repair)) is not None}
    candidates = [name for name, role in against.items() if role == "candidate"]
    pairs = [
        (name, other, role)
        for name in candidates
        for other, role in against.items()
        if other != name and not (role == "candidate" and candidates.index(other) < candidates.index(name))
    ]
    return _compared(scored, pairs, rows, CONFIRMATION) if rows else ()


def _stands_as(study: Study, repair: Repair) -> str | None:
    """The role in which candidates are compared with a repair, None for not at all.

    A published method is one in whatever dtype it is written, but only where it is written so in every cell: a difference
    over the cells of some regimes says nothing about the rest.
    """
    if repair.only_choosing:
        return None
    if repair.role != "dtype":
        return repair.role
    published = not repair.regimes and any(
        one.role == "published" and _same_but_dtype(one, repair) for one in study.repairs
    )
    return "published" if published else None


def _families(study: Study, *, only_choosing: bool) -> dict[str, list[Repair]]:
    """Families of repairs that are made in every cell, or with `only_choosing` in every cell that is set apart for choosing."""
    families: dict[str, list[Repair]] = defaultdict(list)
    for repair in study.repairs:
        if repair.role == "dtype" or repair.regimes or repair.method in TRIVIAL:
            continue
        if only_choosing or not repair.only_choosing:
            families[family(repair)].append(repair)
    return families


def _best_of(
    members: Sequence[Repair], combined: FloatArray, scored: Sample, rows: Sequence[int]
) -> tuple[str, float] | None:
    """The member with the highest mean over the clusters of the cells that have them all; None where there is none."""
    columns = [scored.names.index(repair.name) for repair in members]
    shared = [row for row in rows if not np.isnan(combined[row, columns]).any()]
    if not shared:
        return None
    clusters = [scored.clusters[row] for row in shared]
    means = [float(np.mean(list(cluster_means(combined[shared, column], clusters).values()))) for column in columns]
    best = int(np.argmax(means))
    return members[best].name, means[best]


def _best_strengths(
    study: Study, cells: Sequence[ReadCell], scored: Sample, groups: dict[str, list[int]], settings: Settings
) -> tuple[tuple[BestStrength, ...], tuple[Comparison, ...]]:
    """Families at strengths chosen elsewhere than they are reported, and their differences.

    The strengths that were tried in the choosing cells only are halved there: even items choose, odd ones report.
    """
    confirming, choosing = groups.get(CONFIRMATION, []), groups.get(CHOOSING, [])
    found: list[BestStrength] = []
    compared: list[Comparison] = []
    for group, rows in ((CONFIRMATION, confirming), (CHOOSING, choosing)):
        families = _families(study, only_choosing=group == CHOOSING)
        strengths, pairs = _halved(study, families, [cells[row] for row in rows], group, settings)
        found.extend(strengths)
        compared.extend(pairs)
    for name, members in _families(study, only_choosing=False).items() if confirming else ():
        best = _best_of(members, scored.values["combined"], scored, choosing)
        if best is not None:
            score = scored.over("combined", best[0], confirming)
            found.append(_best_strength(name, members, "choosing cells", CONFIRMATION, best, score))
    return tuple(found), tuple(compared)


def _halved(
    study: Study, families: Mapping[str, list[Repair]], cells: Sequence[ReadCell], group: str, settings: Settings
) -> tuple[list[BestStrength], list[Comparison]]:
    """Families at the strength that was best on the even items of a group of cells, and on its odd ones their differences."""
    if not cells:
        return [], []
    on_even, on_odd = half_sample(study, cells, settings)
    rows = list(range(len(cells)))
    found: list[BestStrength] = []
    ours: list[str] = []
    theirs: list[tuple[str, str]] = []
    for name, members in families.items():
        best = _best_of(members, on_even["combined"], on_odd, rows)
        if best is not None:
            score = on_odd.over("combined", best[0], rows)
            found.append(_best_strength(name, members, "even items", group, best, score))
            roles = [repair.role for repair in members]
            if "candidate" in roles:
                ours.append(best[0])
            else:  # strengths are those of a published method, where it is among them
                theirs.append((best[0], "published" if "published" in roles else roles[0]))
    pairs = [(first, second, role) for first in ours for second, role in theirs]
    return found, list(_compared(on_odd, pairs, rows, group))


def _best_strength(
    name: str,
    members: Sequence[Repair],
    chosen_on: Literal["even items", "choosing cells"],
    group: str,
    best: tuple[str, float],
    score: OverCells,
) -> BestStrength:
    tried = tuple(repair.name for repair in members)
    chosen, chosen_by = best
    return BestStrength(
        family=name, chosen_on=chosen_on, group=group, tried=tried, chosen=chosen, chosen_by=chosen_by, score=score
    )


def _curve_repairs(study: Study) -> list[tuple[float, Repair]]:
    """WiSE-FT on the whole model, by alpha."""
    found = [
        (float(get_method(repair.method, repair.parameters).model_dump()["alpha"]), repair)
        for repair in study.repairs
        if repair.method == "wise-ft"
        and family(repair) == "wise-ft"
        and repair.role != "dtype"
        and not repair.rules
        and not repair.regimes
        and not repair.only_choosing
    ]
    inner = {alpha: repair for alpha, repair in reversed(found) if 0 < alpha < 1}
    return sorted(inner.items(), key=lambda pair: pair[0])


def _curve(study: Study, cells: Sequence[ReadCell], scored: Sample, groups: dict[str, list[int]]) -> Curve | None:
    nodes = [(0.0, REVERT), *((alpha, repair.name) for alpha, repair in _curve_repairs(study)), (1.0, NONE)]
    if len(nodes) == 2:
        return None
    whole = [row for row, of in enumerate(cells) if all(name in (*of.repairs, *TRIVIAL) for _, name in nodes)]
    points = [
        CurvePoint(
            name=name,
            alpha=alpha,
            size=float(np.mean([_size(cells[row], name) for row in whole])) if whole else alpha,
            groups={group: _parts_over(scored, name, rows) for group, rows in groups.items()},
        )
        for alpha, name in nodes
    ]
    names = [name for _, name in nodes]
    confirming = groups.get(CONFIRMATION, [])
    heights = []
    for repair in study.repairs:
        rows = [row for row in whole if repair.name in cells[row].repairs]
        if repair.name not in names and rows:
            heights.append(_height(repair, cells, scored, names, rows, groups))
    return Curve(
        points=tuple(points), heights=tuple(heights), interpolation=_check(cells, scored, names, whole, confirming)
    )


def _height(
    repair: Repair,
    cells: Sequence[ReadCell],
    scored: Sample,
    nodes: Sequence[str],
    rows: Sequence[int],
    groups: dict[str, list[int]],
) -> Height:
    above = {by: _above_line(cells, scored, repair.name, nodes, rows, by_parts=by) for by in (False, True)}

    def over(by_parts: bool) -> dict[str, OverCells]:
        values, draws = above[by_parts]
        places = {name: [place for place, row in enumerate(rows) if row in own] for name, own in groups.items()}
        return {
            name: scored.mean(values[own], draws[:, own], [rows[place] for place in own])
            for name, own in places.items()
            if own
        }

    confirmed = [row for row in rows if row in groups.get(CONFIRMATION, [])]
    outside = 0
    for row in confirmed:
        inner = [_size(cells[row], node) for node in nodes[1:-1]]
        outside += not min(inner) <= _size(cells[row], repair.name) <= max(inner)
    return Height(
        name=repair.name,
        role=repair.role,
        size=float(np.mean([_size(cells[row], repair.name) for row in confirmed or rows])),
        cells=len(confirmed),
        outside=outside,
        groups=over(False),
        groups_by_parts=over(True),
    )


def _check(
    cells: Sequence[ReadCell], scored: Sample, names: list[str], whole: Sequence[int], confirming: Sequence[int]
) -> dict[str, OverCells]:
    """Inner nodes against the line between their neighbours."""
    rows = [row for row in whole if row in confirming]
    if not rows:
        return {}
    checked = {}
    for place in range(1, len(names) - 1):
        others = [names[place - 1], names[place + 1]]
        checked[names[place]] = scored.mean(*_above_line(cells, scored, names[place], others, rows), rows)
    return checked


def _above_line(
    cells: Sequence[ReadCell],
    scored: Sample,
    name: str,
    nodes: Sequence[str],
    rows: Sequence[int],
    *,
    by_parts: bool = False,
) -> tuple[FloatArray, FloatArray]:
    """(n,) and (D, n) combined score minus that of the curve through `nodes` at the same size.

    Linear between the nodes: in the combined score, or with `by_parts` in each part, which are combined then. The harmonic
    mean is concave, so the second is never below the first.
    """
    values, draws = scored.at("combined", name, rows)
    columns = [scored.names.index(node) for node in nodes]
    weights = np.zeros((len(rows), len(nodes)))
    for place, row in enumerate(rows):
        sizes = np.array([_size(cells[row], node) for node in nodes])
        order = np.argsort(sizes, kind="stable")
        for node in range(len(nodes)):
            unit = (np.arange(len(nodes)) == node).astype(np.float64)
            weights[place, node] = np.interp(_size(cells[row], name), sizes[order], unit[order])

    def on_line(part: str) -> tuple[FloatArray, FloatArray]:
        found = scored.values[part][np.ix_(rows, columns)], scored.draws[part][:, rows][:, :, columns]
        return (found[0] * weights).sum(axis=-1), (found[1] * weights).sum(axis=-1)

    if not by_parts:
        line = on_line("combined")
    else:
        parts = [on_line(part) for part in PARTS if part != "combined"]
        # A draw that is undefined because other parts are defined in it stays so.
        line = (
            combine(np.stack([seen for seen, _ in parts], axis=-1)),
            combine(np.stack([drawn for _, drawn in parts], axis=-1)) + 0 * draws,
        )
    return values - line[0], draws - line[1]


def _published_dg_hard(study: Study) -> Repair | None:
    found = [one for one in study.repairs if one.method == "dg-hard" and not one.rules and one.role != "dtype"]
    return next((one for one in found if one.role == "published"), found[0] if found else None)


def _dg_hard(study: Study, cells: Sequence[ReadCell], scored: Sample) -> DgHardOutcome | None:
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
    clusters = [of.cluster for of in outcomes]
    return DgHardOutcome(
        repair=repair.name,
        cells=tuple(outcomes),
        correlations=tuple(_rank_correlation(name, found, healing, clusters) for name, found in measures.items()),
        identity=scored.over("healing", repair.name, same),
        others=scored.over("healing", repair.name, others),
    )


def _diagnosed(of: ReadCell, row: int, name: str, scored: Sample) -> DiagnosisOutcome:
    column = scored.names.index(name)
    figures = {
        part: estimate(
            float(scored.values[part][row, column]),
            scored.draws[part][:, row, column],
            scored.settings,
            "undefined here",
        )
        for part in ("healing", "combined")
    }
    said, kept = of.record.diagnosis, _facts(of, name).kept_energy
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
    measure: str, found: Sequence[float | None], healing: FloatArray, clusters: Sequence[str]
) -> RankCorrelation:
    values = np.array([np.nan if value is None else value for value in found], dtype=np.float64)
    both = ~(np.isnan(values) | np.isnan(healing))
    values, healing = values[both], healing[both]
    names = [cluster for cluster, there in zip(clusters, both, strict=True) if there]
    of_clusters = [np.array(list(cluster_means(own, names).values())) for own in (values, healing)]
    over_cells, _ = spearman(values, healing)
    over_clusters, p = spearman(*of_clusters)
    return RankCorrelation(
        measure=measure,
        cells=len(values),
        over_cells=over_cells,
        clusters=len(of_clusters[0]),
        over_clusters=over_clusters,
        p=p,
        reason=None if over_clusters is not None else "fewer than three clusters, or one figure is the same in all",
    )


def spearman(first: FloatArray, second: FloatArray) -> tuple[float | None, float | None]:
    """Rank correlation and its two-sided p by permutation; None where ranks mean nothing."""
    from scipy.stats import permutation_test, rankdata, spearmanr

    if len(first) < 3 or np.ptp(first) == 0 or np.ptp(second) == 0:
        return None, None
    ranks, others = rankdata(first), rankdata(second)

    def product(shuffled: FloatArray, axis: int = -1) -> FloatArray:
        """What grows with the correlation, as ranks stay the same when they are shuffled."""
        found: FloatArray = (shuffled * (others - others.mean())).sum(axis=axis)
        return found

    tested = permutation_test(
        (ranks,), product, permutation_type="pairings", n_resamples=_PERMUTATIONS, vectorized=True, random_state=0
    )
    return float(spearmanr(first, second).statistic), float(tested.pvalue)


def _stored(repair: Repair, cell: Cell) -> str:
    return cell.regime.weights if repair.out_dtype == "stored" else repair.out_dtype


def _same_but_dtype(one: Repair, other: Repair) -> bool:
    fields = ("method", "parameters", "rules", "vectors")
    return all(getattr(one, field) == getattr(other, field) for field in fields)


def _of_regimes(cells: Sequence[ReadCell]) -> dict[str, list[int]]:
    rows: dict[str, list[int]] = defaultdict(list)
    for row, of in enumerate(cells):
        rows[of.cell.regime.name].append(row)
    return rows


def _written(study: Study, cells: Sequence[ReadCell], scored: Sample) -> Iterable[Written]:
    of_dtype = [repair for repair in study.repairs if repair.role == "dtype"]
    shown = [one for one in study.repairs if any(_same_but_dtype(one, other) for other in of_dtype)]
    for regime, rows in _of_regimes(cells).items():
        for repair in shown:
            own = [row for row in rows if repair.name in cells[row].repairs]
            if not own:
                continue
            facts = [_facts(cells[row], repair.name) for row in own]
            yield Written(
                regime=regime,
                weights=cells[own[0]].cell.regime.weights,
                repair=repair.name,
                out_dtype=_stored(repair, cells[own[0]].cell),
                cells=len(own),
                realised_error=float(np.mean([fact.realised_error for fact in facts])),
                kept_energy=float(np.mean([fact.kept_energy for fact in facts])),
                realised_energy=float(np.mean([fact.realised_energy for fact in facts])),
                healing=scored.over("healing", repair.name, own),
                retention=scored.over("retention", repair.name, own),
                combined=scored.over("combined", repair.name, own),
            )


def _written_differences(study: Study, cells: Sequence[ReadCell], scored: Sample) -> Iterable[WrittenDifference]:
    """Every repair about dtypes against the same in another dtype; where it is `none`, against the fine-tuned model."""
    for regime, rows in _of_regimes(cells).items():
        for repair in study.repairs:
            if repair.role != "dtype":
                continue
            others = [one for one in study.repairs if one.role != "dtype" and _same_but_dtype(one, repair)]
            names = [
                one.name for one in others if _stored(one, cells[rows[0]].cell) != _stored(repair, cells[rows[0]].cell)
            ]
            for other in [NONE] if repair.method == NONE else names:
                shared = [row for row in rows if {repair.name, other} <= {*cells[row].repairs, *TRIVIAL}]
                if shared:
                    parts = {
                        part: scored.difference(part, repair.name, other, shared)
                        for part in ("healing", "retention", "combined")
                    }
                    yield WrittenDifference(regime=regime, first=repair.name, second=other, **parts)


def _rankings(
    study: Study, cells: Sequence[ReadCell], by_config: Sample, by_other: Sample, rows: Sequence[int]
) -> Rankings:
    """The target of some cells is measured by exact match in `by_config`, of the others in `by_other`."""
    shown = [repair for repair in study.repairs if repair.role != "dtype" and not repair.only_choosing]
    exact = np.array([of.cell.target.retention == "exact_match" for of in cells])
    names = by_config.names
    over: list[tuple[OverCells, OverCells]] = []
    for repair in shown:
        column = names.index(repair.name)
        pair = []
        for first in (exact, ~exact):
            values = np.where(first, by_config.values["combined"][:, column], by_other.values["combined"][:, column])
            draws = np.where(first, by_config.draws["combined"][..., column], by_other.draws["combined"][..., column])
            pair.append(by_config.mean(values[list(rows)], draws[:, list(rows)], rows))
        over.append((pair[0], pair[1]))
    both = [
        (first.these_cells.value, second.these_cells.value)
        for first, second in over
        if first.these_cells.value is not None and second.these_cells.value is not None
    ]
    ranks = [_ranks([pair[which].these_cells.value for pair in over]) for which in (0, 1)]
    correlation, _ = spearman(*(np.array([pair[which] for pair in both]) for which in (0, 1)))
    return Rankings(
        repairs=tuple(
            Ranked(
                name=repair.name,
                role=repair.role,
                exact_match=first,
                likelihood=second,
                exact_match_rank=ranks[0][place],
                likelihood_rank=ranks[1][place],
            )
            for place, (repair, (first, second)) in enumerate(zip(shown, over, strict=True))
        ),
        correlation=correlation,
    )


def _ranks(values: Sequence[float | None]) -> list[int | None]:
    """1 for the highest; equal ones share a rank."""
    return [
        None if value is None else 1 + sum(other is not None and other > value for other in values) for value in values
    ]


def _models(cells: Sequence[ReadCell]) -> Iterable[tuple[str, ModelRecord]]:
    for of in cells:
        yield from of.record.models.items()


def _hours(cells: Sequence[ReadCell]) -> dict[str, float]:
    repaired = sum(model.facts.seconds for _, model in _models(cells) if model.facts is not None)
    hours = {
        "fine-tuning": sum(of.record.finetune.seconds for of in cells) / 3600,
        "repairs": repaired / 3600,
    }
    asked = [model.seconds for _, model in _models(cells)]
    known = [seconds for seconds in asked if seconds is not None]
    return hours | {"evaluation": sum(known) / 3600} if known else hours


def _versions(cells: Sequence[ReadCell]) -> dict[str, tuple[str, ...]]:
    used: dict[str, set[str]] = defaultdict(set)
    for of in cells:
        for record in (of.record, of.base):
            for package, number in record.versions.items():
                used[package].add(number)
    return {package: tuple(sorted(numbers)) for package, numbers in sorted(used.items())}


def _notes(study: Study, cells: Sequence[ReadCell], progress: Progress) -> Iterable[str]:
    """What the figures are not, or cannot say."""
    if progress.missing:
        yield f"{len(progress.missing)} of {progress.planned} cells are missing from every figure"
    if progress.missing_repairs:
        yield (
            f"in {len(progress.missing_repairs)} of the {progress.scored} scored cells some repairs are not done yet, so means of "
            "different repairs are over different cells; differences are always over cells that have both"
        )
    for cell, repairs in progress.unknown_repairs.items():
        yield f"in {cell} these repairs were done and are not planned there by the configuration, or with other settings, so they are not scored: {', '.join(repairs)}"
    unlearnt = [of.cell.name for of in cells if not _learnt(of)]
    if unlearnt:
        yield f"fine-tuning did not make the target better in {', '.join(unlearnt)}: there retention says little or nothing"
    by_text: dict[str, list[str]] = defaultdict(list)
    for of in cells:
        for note in of.paired.notes:
            by_text[note].append(of.cell.name)
    for note, where in by_text.items():
        yield f"{note} (in {', '.join(where)})"
    limited = [one.name for one in study.repairs if one.regimes]
    if limited:
        yield f"made in some regimes only, so their means are over fewer cells: {', '.join(limited)}"
    if len(study.regimes) > 1:
        yield (
            "cells of one model, target and regime are one cluster; clusters of one target share its test items and are "
            "redrawn as if they were independent, so “cells like these” is rather too narrow"
        )


def _beside(study: Study, scored: Sample, rows: Sequence[int]) -> Iterable[str]:
    over = {one.name: scored.over("combined", one.name, rows).these_cells for one in study.repairs if rows}
    names = [
        name
        for name, of in over.items()
        if of.value is not None and of.low is not None and of.high is not None and not of.low <= of.value <= of.high
    ]
    if names:
        yield (
            f"the interval of the combined score lies beside the figure for {', '.join(names)}: parts are clipped at 0 and 1, and "
            "resampled items move away from such an end; no verdict rests on an interval beyond its own figure"
        )


def _learnt(of: ReadCell) -> bool:
    scores = of.paired.target.scores.mean(axis=0)
    return bool(scores[1] > scores[0])
