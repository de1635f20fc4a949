"""From the records of a study to its primary measure: healing above the WiSE-FT curve at equal retention."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from deltamend.evaluation.record import TaskScores
from deltamend.methods.registry import get_method
from deltamend.scoring.cell_means import draw_cells, observed_means
from deltamend.scoring.margin import Margin
from deltamend.scoring.metric import FloatArray, Means, Parts, combine, partition, parts_of
from deltamend.scoring.paired_cell import NONE, REVERT
from deltamend.scoring.settings import Settings
from deltamend.study.config import Measure, Study
from deltamend.study.findings.above_curve import (
    INTERPOLATIONS,
    Interpolation,
    area_under,
    healing,
    height_above_curve,
    retention,
)
from deltamend.study.findings.clustered_t import ClusteredMean, clustered_mean
from deltamend.study.findings.equal_retention_types import (
    FORMS,
    CellGround,
    EqualRetention,
    FamilyAtRetention,
    RepairAtRetention,
)
from deltamend.study.findings.result_types import CHOOSING, CONFIRMATION
from deltamend.study.findings.scored_cells import ReadCell
from deltamend.study.records import FINETUNED, MISPLACED, TARGET, TARGET_LIKELIHOOD
from deltamend.study.repair_config import Repair, family_of

_LEAST_RIGHT, _TIMES_CONSTANT = 0.2, 5.0
"""A target measured by right answers is admitted from this share of them, and this multiple of the best constant answer, on."""


@dataclass(frozen=True)
class _Figures:
    """Figures of one cell's repairs, as they are (K,) or in draws (D, K), by the names of the repairs."""

    healing: FloatArray
    retention: FloatArray
    above: dict[Interpolation, FloatArray]
    benchmarks: FloatArray
    parts: Parts


@dataclass(frozen=True)
class _Measured:
    of: ReadCell
    ground: CellGround
    names: list[str]
    seen: _Figures
    drawn: _Figures


def measure_equal_retention(study: Study, cells: Sequence[ReadCell], settings: Settings) -> EqualRetention | None:
    """The primary measure of every repair and family over every group of cells; None where the study names no measure.

    Cells in which some strength of the curve is missing are left out.

    Args:
        study: its configuration.
        cells: as `read_study_cells` gives them.
        settings: for draws, seed and confidence; the margin is the measure's own.
    """
    rule = study.measure
    if rule is None:
        return None
    settings = replace(settings, margin=Margin(rule.standard_errors, standard_errors=True))
    nodes = _nodes(study, rule)
    whole = [of for of in cells if all(name in of.paired.methods for _, name in nodes)]
    if not whole:
        return None
    paired, drawn = draw_cells([of.paired for of in whole], settings)
    measured = []
    for of, scored_as, draws in zip(whole, paired, drawn, strict=True):
        observed = observed_means(scored_as, settings)
        measured.append(_measured(study, of, nodes, _floored(observed, rule), _floored(draws, rule)))
    groups = dict(_groups(study, measured))
    return EqualRetention(
        curve=rule.curve,
        margin=f"{rule.standard_errors:g}se, at least {rule.at_least:g}",
        floors=rule.floors,
        groups={name: tuple(one.ground.cell for one in own) for name, own in groups.items()},
        cells=tuple(one.ground for one in measured),
        repairs=tuple(_repairs(study, groups, settings, rule)),
        families=tuple(_families(study, groups, settings, rule)),
    )


def _nodes(study: Study, rule: Measure) -> list[tuple[float, str]]:
    """The strengths of the curve by α, base and fine-tuned model at its ends."""
    inner = {
        float(get_method(one.method, one.parameters).model_dump()["alpha"]): one.name
        for one in study.repairs
        if family_of(one) == rule.curve and one.role != "dtype" and not one.rules and not one.regimes
    }
    return [(0.0, REVERT), *sorted((alpha, name) for alpha, name in inner.items() if 0 < alpha < 1), (1.0, NONE)]


def _floored(means: Means, rule: Measure) -> Means:
    return replace(means, margin=np.maximum(means.margin, rule.at_least))


def _measured(
    study: Study, of: ReadCell, nodes: Sequence[tuple[float, str]], observed: Means, draws: Means
) -> _Measured:
    damaged, improved = partition(observed)
    names = of.paired.methods
    places = [names.index(name) for _, name in nodes]
    alphas = np.array([alpha for alpha, _ in nodes])

    def figures(means: Means) -> _Figures:
        healed = healing(means.base[..., damaged], means.finetuned[..., damaged], means.repaired[..., damaged])
        retained = retention(means.target_base, means.target_finetuned, means.target_repaired)
        curve = retained[..., places], healed[..., places]
        above = {by: height_above_curve(alphas, curve, (retained, healed), by) for by in INTERPOLATIONS}
        shares = (means.repaired - means.finetuned[..., None, :]) / (means.base - means.finetuned)[..., None, :]
        parts = parts_of(means, None if means is observed else observed)
        return _Figures(healed, retained, above, shares, parts)

    with np.errstate(divide="ignore", invalid="ignore"):
        seen, drawn = figures(observed), figures(draws)
    tasks = [task.name for task in of.paired.benchmarks]
    ground = CellGround(
        cell=of.cell.name,
        chooses=study.chooses(of.cell),
        measured_by=of.cell.target.retention,
        **_admission(of),
        damaged=tuple(name for name, is_one in zip(tasks, damaged, strict=True) if is_one),
        improved=tuple(name for name, is_one in zip(tasks, improved, strict=True) if is_one),
        effects={name: (float(observed.base[at]), float(observed.finetuned[at])) for at, name in enumerate(tasks)},
        repairs={
            name: _known(
                healing=seen.healing[place],
                retention=seen.retention[place],
                **{f"above_{by}": seen.above[by][place] for by in INTERPOLATIONS},
                **{task: observed.repaired[place, at] for at, task in enumerate(tasks)},
            )
            for place, name in enumerate(names)
        },
    )
    return _Measured(of, ground, names, seen, drawn)


def _known(**figures: float) -> dict[str, float]:
    return {name: float(value) for name, value in figures.items() if np.isfinite(value)}


def _admission(of: ReadCell) -> dict[str, Any]:
    """Whether the cell's fine-tuning taught a skill, and the two numbers that say so."""
    tuned, base = of.record.models[FINETUNED].evaluation.tasks, of.base.evaluation.tasks
    right = _mean(tuned, TARGET)
    if of.cell.target.retention == "exact_match":
        constant = of.record.best_constant
        admitted = right >= _LEAST_RIGHT and (constant is None or right >= _TIMES_CONSTANT * constant)
        score, before = right, _mean(base, TARGET)
    else:
        score, before = _mean(tuned, TARGET_LIKELIHOOD), _mean(base, TARGET_LIKELIHOOD)
        constant = _mean(tuned, MISPLACED) if MISPLACED in tuned else None
        noise = sum(_squared_error(tuned, task) for task in (TARGET_LIKELIHOOD, MISPLACED) if task in tuned)
        admitted = score > before and (constant is None or score - constant > 2.0 * np.sqrt(noise))
    return {
        "base": before,
        "finetuned": score,
        "constant": constant,
        "right": right,
        "admitted": bool(admitted),
    }


def _scores(tasks: Mapping[str, TaskScores], name: str) -> FloatArray:
    return np.array([item.score for item in tasks[name].items])


def _mean(tasks: Mapping[str, TaskScores], name: str) -> float:
    return float(_scores(tasks, name).mean())


def _squared_error(tasks: Mapping[str, TaskScores], name: str) -> float:
    scores = _scores(tasks, name)
    return float(scores.var(ddof=1) / len(scores))


def _groups(study: Study, measured: Sequence[_Measured]) -> Iterator[tuple[str, list[_Measured]]]:
    """Cells that count: all of a phase, by regime, and by model where there are several."""
    for phase, chooses in ((CHOOSING, True), (CONFIRMATION, False)):
        own = [one for one in measured if one.ground.counts and one.ground.chooses == chooses]
        if own:
            yield phase, own
        for regime in study.regimes:
            if some := [one for one in own if one.of.cell.regime.name == regime.name]:
                yield f"{phase}, {regime.name}", some
        for model in study.models if len(study.models) > 1 else ():
            if some := [one for one in own if one.of.cell.model.name == model.name]:
                yield f"{phase}, {model.name}", some


def _mean_of(
    cells: Sequence[_Measured], name: str, figure: str, settings: Settings, at: object = None
) -> ClusteredMean | None:
    """Mean over targets of one figure of one repair, over the cells that have the repair."""
    own = [one for one in cells if name in one.names]
    if not own:
        return None
    values, draws = zip(*(_pick(one, name, figure, at) for one in own), strict=True)
    clusters = [one.of.cell.target.name for one in own]
    return _over_targets(own, np.array(values), np.stack(draws, axis=-1), clusters, settings)


def _over_targets(
    cells: Sequence[_Measured], values: FloatArray, draws: FloatArray, clusters: list[str], settings: Settings
) -> ClusteredMean | None:
    fewest = min(len(task.ids) for one in cells for task in one.of.paired.tasks)
    return clustered_mean(values, draws, clusters, settings.confidence, items=max(2, fewest))


def _pick(one: _Measured, name: str, figure: str, at: object) -> tuple[float, FloatArray]:
    place = one.names.index(name)

    def of(figures: _Figures) -> FloatArray:
        match figure:
            case "above":
                return figures.above[at][..., place]  # type: ignore[index]
            case "benchmark":
                return figures.benchmarks[..., place, _benchmark(one, str(at))]
            case "combined":
                return _form(figures.parts, str(at))[..., place]
            case "preservation":
                return figures.parts.preservation[..., place]
        found: FloatArray = getattr(figures, figure)[..., place]
        return found

    return float(of(one.seen)), of(one.drawn)


def _benchmark(one: _Measured, name: str) -> int:
    return [task.name for task in one.of.paired.benchmarks].index(name)


def _form(parts: Parts, form: str) -> FloatArray:
    """A combined score, 0 to 100, of the parts that are defined."""
    kept = [parts.healing, parts.preservation, parts.non_damage, parts.retention]
    if form == "harmonic_without_preservation":
        kept.pop(1)
    stacked = np.stack(kept, axis=-1)
    if form.startswith("harmonic"):
        return combine(stacked)
    defined = ~np.isnan(stacked)
    count = defined.sum(axis=-1)
    with np.errstate(divide="ignore", invalid="ignore"):
        if form == "arithmetic":
            return np.asarray(100 * np.where(defined, stacked, 0.0).sum(axis=-1) / count)
        return np.asarray(100 * np.exp(np.where(defined, np.log(stacked), 0.0).sum(axis=-1) / count))


def _repairs(
    study: Study, groups: dict[str, list[_Measured]], settings: Settings, rule: Measure
) -> Iterator[RepairAtRetention]:
    of_curve = {name for _, name in _nodes(study, rule)}
    named = [(one.name, one.role, family_of(one)) for one in study.repairs]
    for group, cells in groups.items():
        for name, role, family in (*named, (NONE, "trivial", NONE), (REVERT, "trivial", REVERT)):
            healed, retained = (_mean_of(cells, name, figure, settings) for figure in ("healing", "retention"))
            if healed is None or retained is None:
                continue
            above = {
                by: None if name in of_curve else _mean_of(cells, name, "above", settings, by) for by in INTERPOLATIONS
            }
            damaged = dict.fromkeys(task for one in cells for task in one.ground.damaged)
            yield RepairAtRetention(
                name=name,
                role=role,
                family=family,
                group=group,
                healing=healed,
                retention=retained,
                preservation=_mean_of(cells, name, "preservation", settings),
                above_straight=above["straight"],
                above_smooth=above["smooth"],
                combined={
                    form: mean
                    for form in FORMS
                    if (mean := _mean_of(cells, name, "combined", settings, form)) is not None
                },
                capabilities={
                    task: mean
                    for task in damaged
                    if (
                        mean := _mean_of(
                            [one for one in cells if task in one.ground.damaged], name, "benchmark", settings, task
                        )
                    )
                    is not None
                },
            )


def _families(
    study: Study, groups: dict[str, list[_Measured]], settings: Settings, rule: Measure
) -> Iterator[FamilyAtRetention]:
    families: dict[str, list[Repair]] = {}
    for one in study.repairs:
        if one.role != "dtype" and not one.regimes:
            families.setdefault(family_of(one), []).append(one)
    for group, cells in groups.items():
        for family, strengths in families.items():
            names = [one.name for one in strengths if all(one.name in cell.names for cell in cells)]
            if names:
                yield _family(family, names, group, cells, settings, rule)


def _family(
    family: str, names: list[str], group: str, cells: list[_Measured], settings: Settings, rule: Measure
) -> FamilyAtRetention:
    clusters = [one.of.cell.target.name for one in cells]

    def over(figure: str, at: object, chosen: dict[str, str]) -> ClusteredMean | None:
        own = [one for one in cells if _place(one) in chosen]
        if not own:
            return None
        values, draws = zip(*(_pick(one, chosen[_place(one)], figure, at) for one in own), strict=True)
        of_targets = [one.of.cell.target.name for one in own]
        return _over_targets(own, np.array(values), np.stack(draws, axis=-1), of_targets, settings)

    def area(figures: _Figures, places: list[int], draw: int | None) -> float:
        retained, healed = (
            one[places] if draw is None else one[draw, places] for one in (figures.retention, figures.healing)
        )
        return area_under(retained, healed)

    def at_least(floor: float, figures: _Figures, places: list[int]) -> FloatArray:
        kept = figures.retention[..., places] >= floor
        found: FloatArray = np.where(kept, figures.healing[..., places], -np.inf).max(axis=-1)
        return found

    places = [[one.names.index(name) for name in (REVERT, *names, NONE)] for one in cells]
    areas = np.array([area(one.seen, own, None) for one, own in zip(cells, places, strict=True)])
    drawn_areas = np.array(
        [
            [area(one.drawn, own, draw) for one, own in zip(cells, places, strict=True)]
            for draw in range(min(settings.draws, _AREA_DRAWS))
        ]
    )
    floors = {}
    for floor in rule.floors:
        values = np.array([float(at_least(floor, one.seen, own)) for one, own in zip(cells, places, strict=True)])
        draws = np.stack([at_least(floor, one.drawn, own) for one, own in zip(cells, places, strict=True)], axis=-1)
        floors[f"{floor:g}"] = _over_targets(cells, values, draws, clusters, settings)
    is_curve = family == rule.curve
    by_curve = {} if is_curve else _left_out(cells, names, "above", "straight")
    by_score = _left_out(cells, names, "combined", "harmonic")
    found = _over_targets(cells, areas, drawn_areas, clusters, settings)
    assert found is not None  # noqa: S101 - there is a cell
    return FamilyAtRetention(
        family=family,
        group=group,
        strengths=tuple(names),
        area=found,
        at_floor={name: mean for name, mean in floors.items() if mean is not None},
        chosen=by_curve,
        above_straight=over("above", "straight", by_curve),
        above_smooth=over("above", "smooth", by_curve),
        chosen_by_score=by_score,
        combined=over("combined", "harmonic", by_score),
    )


_AREA_DRAWS = 300
"""Draws for the interval of an area, which is computed draw by draw."""


def _place(one: _Measured) -> str:
    return f"{one.of.cell.regime.name}/{one.of.cell.target.name}"


def _left_out(cells: list[_Measured], names: list[str], figure: str, at: str) -> dict[str, str]:
    """REGIME/TARGET to the strength with the highest mean over the regime's cells of the other targets.

    Targets count alike. A regime with one target has no others, and is left out.
    """
    found: dict[str, str] = {}
    for regime in dict.fromkeys(one.of.cell.regime.name for one in cells):
        own = [one for one in cells if one.of.cell.regime.name == regime]
        places = list(dict.fromkeys(map(_place, own)))
        if len(places) < 2:
            continue
        of_strengths = [
            [[_pick(one, name, figure, at)[0] for one in own if _place(one) == at_] for name in names] for at_ in places
        ]
        means = np.array([[np.nanmean(values) for values in row] for row in of_strengths])
        for row, place in enumerate(places):
            found[place] = names[int(np.argmax(np.delete(means, row, axis=0).mean(axis=0)))]
    return found
