"""Every repair, as it was asked for, and how it did."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from deltamend.scoring.across_cells import MeanOverCells
from deltamend.scoring.paired_cell import NONE_AND_REVERT
from deltamend.study.config import Study
from deltamend.study.findings.result_types import RepairOutcome
from deltamend.study.findings.scored_cells import ReadCell, ScoresOfRepairs
from deltamend.study.repair_config import Repair, family_of


def repair_outcomes(
    study: Study,
    cells: Sequence[ReadCell],
    scored: ScoresOfRepairs,
    groups: dict[str, list[int]],
    best_published: Mapping[str, str],
) -> Iterable[RepairOutcome]:
    """Every repair of the configuration that is done somewhere, then the trivial ones."""

    def minus_best(name: str, own: Iterable[str]) -> dict[str, MeanOverCells]:
        return {
            group: scored.difference("combined", name, best_published[group], groups[group])
            for group in own
            if best_published.get(group, name) != name
        }

    planned = [(cell, [repair.name for repair in study.repairs_of(cell)]) for cell in study.planned_cells()]
    for repair in study.repairs:
        done = {row for row, of in enumerate(cells) if repair.name in of.repairs}
        own = {name: rows for name, rows in groups.items() if done.intersection(rows)}
        yield RepairOutcome(
            name=repair.name,
            role=repair.role,
            family=family_of(repair),
            method=_described(repair),
            out_dtype=repair.out_dtype,
            only_choosing=repair.only_choosing,
            cells_planned=sum(repair.name in names for _, names in planned),
            cells_done=len(done),
            groups={group: scored.parts_over(repair.name, rows) for group, rows in own.items()},
            minus_best_published=minus_best(repair.name, own),
        )
    for name, what in zip(NONE_AND_REVERT, ("the fine-tuned model itself", "the base"), strict=True):
        yield RepairOutcome(
            name=name,
            role="trivial",
            family=name,
            method=what,
            out_dtype="stored",
            only_choosing=False,
            cells_planned=len(planned),
            cells_done=len(cells),
            groups={group: scored.parts_over(name, rows) for group, rows in groups.items()},
            minus_best_published=minus_best(name, groups),
        )


def best_published(study: Study, scored: ScoresOfRepairs, groups: Mapping[str, list[int]]) -> dict[str, str]:
    """Group of cells to the published repair with the highest mean combined score, of those that are done in the most of its cells."""
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
