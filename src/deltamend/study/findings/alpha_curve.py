"""The WiSE-FT curve, and how far every other repair stands above it at the same size of the update."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from deltamend.methods.registry import get_method
from deltamend.scoring.across_cells import MeanOverCells
from deltamend.scoring.metric import PARTS, FloatArray, combine
from deltamend.scoring.paired_cell import NONE, NONE_AND_REVERT, REVERT
from deltamend.study.config import Study
from deltamend.study.findings.result_types import CONFIRMATION, Curve, CurvePoint, Height
from deltamend.study.findings.scored_cells import ReadCell, ScoresOfRepairs
from deltamend.study.repair_config import Repair, family_of


def wise_ft_curve(
    study: Study, cells: Sequence[ReadCell], scored: ScoresOfRepairs, groups: dict[str, list[int]]
) -> Curve | None:
    """The curve over its alphas and every other repair against it; None where the study has no WiSE-FT."""
    nodes = [(0.0, REVERT), *((alpha, repair.name) for alpha, repair in _curve_repairs(study)), (1.0, NONE)]
    if len(nodes) == 2:
        return None
    whole = [row for row, of in enumerate(cells) if all(name in (*of.repairs, *NONE_AND_REVERT) for _, name in nodes)]
    points = [
        CurvePoint(
            name=name,
            alpha=alpha,
            size=float(np.mean([cells[row].size(name) for row in whole])) if whole else alpha,
            groups={group: scored.parts_over(name, rows) for group, rows in groups.items()},
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


def _curve_repairs(study: Study) -> list[tuple[float, Repair]]:
    """WiSE-FT on the whole model, by alpha."""
    found = [
        (float(get_method(repair.method, repair.parameters).model_dump()["alpha"]), repair)
        for repair in study.repairs
        if repair.method == "wise-ft"
        and family_of(repair) == "wise-ft"
        and repair.role != "dtype"
        and not repair.rules
        and not repair.regimes
        and not repair.only_choosing
    ]
    inner = {alpha: repair for alpha, repair in reversed(found) if 0 < alpha < 1}
    return sorted(inner.items(), key=lambda pair: pair[0])


def _height(
    repair: Repair,
    cells: Sequence[ReadCell],
    scored: ScoresOfRepairs,
    nodes: Sequence[str],
    rows: Sequence[int],
    groups: dict[str, list[int]],
) -> Height:
    above = {by: _above_line(cells, scored, repair.name, nodes, rows, by_parts=by) for by in (False, True)}

    def over(by_parts: bool) -> dict[str, MeanOverCells]:
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
        inner = [cells[row].size(node) for node in nodes[1:-1]]
        outside += not min(inner) <= cells[row].size(repair.name) <= max(inner)
    return Height(
        name=repair.name,
        role=repair.role,
        size=float(np.mean([cells[row].size(repair.name) for row in confirmed or rows])),
        cells=len(confirmed),
        outside=outside,
        groups=over(False),
        groups_by_parts=over(True),
    )


def _check(
    cells: Sequence[ReadCell],
    scored: ScoresOfRepairs,
    names: list[str],
    whole: Sequence[int],
    confirming: Sequence[int],
) -> dict[str, MeanOverCells]:
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
    scored: ScoresOfRepairs,
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
        sizes = np.array([cells[row].size(node) for node in nodes])
        order = np.argsort(sizes, kind="stable")
        for node in range(len(nodes)):
            unit = (np.arange(len(nodes)) == node).astype(np.float64)
            weights[place, node] = np.interp(cells[row].size(name), sizes[order], unit[order])

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
