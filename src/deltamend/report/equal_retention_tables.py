"""The primary measure of a study as sentences, tables and CSV: healing above the WiSE-FT curve at equal retention."""

from __future__ import annotations

from collections.abc import Iterator

from deltamend.report.score_tables import Table
from deltamend.study.findings.clustered_t import ClusteredMean
from deltamend.study.findings.equal_retention_types import FORMS, EqualRetention, RepairAtRetention
from deltamend.study.findings.result_types import CHOOSING, CONFIRMATION, StudyResults

_Row = dict[str, object]
_FORM_TITLES = ("harmonic", "harmonic, without preservation", "arithmetic", "geometric")


def shown_phase(found: EqualRetention) -> str:
    """The confirmation cells, or where none counts the choosing ones."""
    return CONFIRMATION if CONFIRMATION in found.groups else CHOOSING


def equal_retention_sentences(found: EqualRetention) -> Iterator[str]:
    """What the measure says, group by group, by fixed rules."""
    for group, cells in found.groups.items():
        best = _highest(found, group)
        if best is None or best.above_straight is None or best.above_smooth is None:
            continue
        straight, smooth = best.above_straight, best.above_smooth
        judged = (
            "above it beyond doubt by both ways of interpolating"
            if _above_zero(straight) and _above_zero(smooth)
            else "which does not tell it from the curve"
        )
        yield (
            f"{group} ({_counted(len(cells), 'cell')}, {_counted(straight.clusters, 'target')}): {best.name} stands highest over the {found.curve} curve, "
            f"by {_figure(straight)} of what was lost in straight lines and {_figure(smooth)} along smooth ones, {judged}."
        )
    unfit = [one for one in found.cells if not one.counts]
    if unfit:
        yield (
            "Not in any mean: "
            + ", ".join(
                f"{one.cell} ({'nothing was damaged' if one.admitted else 'its fine-tuning taught no skill'})"
                for one in unfit
            )
            + "."
        )
    yield (
        f"A benchmark is damaged where fine-tuning made it worse by more than {found.margin}. Intervals are by Student's t over "
        "targets, widened by what the items that cells share have in common. The best of many repairs looks better than it is."
    )


def _counted(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"


def _highest(found: EqualRetention, group: str) -> RepairAtRetention | None:
    own = [
        one for one in found.repairs if one.group == group and one.above_straight is not None and one.role != "trivial"
    ]
    return max(own, key=lambda one: one.above_straight.value if one.above_straight else 0.0, default=None)


def _above_zero(mean: ClusteredMean) -> bool:
    return mean.low is not None and mean.low > 0.0


def equal_retention_table(found: EqualRetention, group: str) -> Table:
    """Every repair over a group of cells, the highest above the curve first."""

    def order(one: RepairAtRetention) -> float:
        return -one.above_straight.value if one.above_straight is not None else 0.0

    rows = [
        (
            one.name,
            one.role,
            str(one.healing.cells),
            f"{one.healing.value:.2f}",
            f"{one.retention.value:.2f}",
            _figure(one.above_straight),
            _figure(one.above_smooth),
            "–" if one.preservation is None else f"{one.preservation.value:.2f}",
            *(f"{one.combined[form].value:.1f}" if form in one.combined else "–" for form in FORMS),
        )
        for one in sorted((one for one in found.repairs if one.group == group), key=order)
    ]
    head = (
        "repair",
        "role",
        "cells",
        "healing",
        "retention",
        "above the curve, straight",
        "above the curve, smooth",
        "preservation",
        *(f"combined, {title}" for title in _FORM_TITLES),
    )
    return Table(f"At equal retention, {group} cells", head, tuple(rows))


def families_table(found: EqualRetention, group: str) -> Table:
    """Every family at the strength that was best on the other targets."""
    rows = [
        (
            one.family,
            str(len(one.strengths)),
            _figure(one.above_straight),
            _figure(one.above_smooth),
            ", ".join(dict.fromkeys(one.chosen.values())) or "–",
            "–" if one.combined is None else _figure(one.combined, 1),
            ", ".join(dict.fromkeys(one.chosen_by_score.values())) or "–",
            _figure(one.area),
            *(_figure(one.at_floor.get(f"{floor:g}")) for floor in found.floors),
        )
        for one in found.families
        if one.group == group
    ]
    head = (
        "family",
        "strengths",
        "above the curve, straight",
        "above the curve, smooth",
        "strengths chosen",
        "combined",
        "strengths chosen by it",
        "area",
        *(f"healing at retention {floor:g}" for floor in found.floors),
    )
    return Table(
        f"Families, each at the strength that was best on the other targets of its regime, {group} cells",
        head,
        tuple(rows),
    )


def capabilities_table(found: EqualRetention, group: str) -> Table:
    """What each repair heals of each benchmark, over the cells in which it was damaged."""
    own = [one for one in found.repairs if one.group == group]
    tasks = list(dict.fromkeys(task for one in own for task in one.capabilities))
    counts = {task: max(one.capabilities[task].cells for one in own if task in one.capabilities) for task in tasks}
    rows = [
        (one.name, *(f"{one.capabilities[task].value:.2f}" if task in one.capabilities else "–" for task in tasks))
        for one in own
    ]
    head = ("repair", *(f"{task} ({counts[task]} cells)" for task in tasks))
    return Table(f"Share healed of each benchmark where it was damaged, {group} cells", head, tuple(rows))


def admission_table(found: EqualRetention) -> Table:
    """What fine-tuning taught in each cell, what the form alone is worth, and what it damaged."""
    rows = []
    for one in found.cells:
        damage = ", ".join(f"{task} {one.effects[task][0]:.2f} → {one.effects[task][1]:.2f}" for task in one.damaged)
        rows.append(
            (
                one.cell,
                one.measured_by.replace("_", " "),
                f"{one.base:.2f} → {one.finetuned:.2f}",
                "–" if one.constant is None else f"{one.constant:.2f}",
                f"{one.right:.2f}",
                "yes" if one.admitted else "no",
                damage or "nothing",
            )
        )
    head = (
        "cell",
        "target measured by",
        "target, base → tuned",
        "the form alone",
        "right answers",
        "a skill was learnt",
        "damaged, base → tuned",
    )
    return Table("What every cell taught and damaged", head, tuple(rows))


EQUAL_RETENTION_FILES = (
    "equal_retention.csv",
    "equal_retention_families.csv",
    "equal_retention_cells.csv",
    "admission.csv",
)
"""Every name that `equal_retention_csv` may give a file."""


def equal_retention_csv(results: StudyResults) -> dict[str, list[_Row]]:
    """File name to its rows."""
    found = results.equal_retention
    if found is None:
        return {}
    return {
        "equal_retention.csv": list(_repairs(found)),
        "equal_retention_families.csv": list(_families(found)),
        "equal_retention_cells.csv": [
            {"cell": cell.cell, "counts": cell.counts, "repair": name, "figure": figure, "value": value}
            for cell in found.cells
            for name, figures in cell.repairs.items()
            for figure, value in figures.items()
        ],
        "admission.csv": [
            one.model_dump(include={"cell", "measured_by", "base", "finetuned", "constant", "right", "admitted"})
            | {"damaged": " ".join(one.damaged), "improved": " ".join(one.improved)}
            for one in found.cells
        ],
    }


def _repairs(found: EqualRetention) -> Iterator[_Row]:
    for one in found.repairs:
        named: _Row = {"repair": one.name, "role": one.role, "family": one.family, "group": one.group}
        for figure in ("healing", "retention", "preservation", "above_straight", "above_smooth"):
            yield from _figures(named, figure, getattr(one, figure))
        for form, mean in one.combined.items():
            yield from _figures(named, f"combined, {form}", mean)
        for task, mean in one.capabilities.items():
            yield from _figures(named, f"healed of {task}", mean)


def _families(found: EqualRetention) -> Iterator[_Row]:
    for one in found.families:
        named: _Row = {"family": one.family, "group": one.group}
        for figure in ("above_straight", "above_smooth", "combined", "area"):
            yield from _figures(named, figure, getattr(one, figure))
        for floor, mean in one.at_floor.items():
            yield from _figures(named, f"healing at retention {floor}", mean)


def _figures(named: _Row, figure: str, mean: ClusteredMean | None) -> Iterator[_Row]:
    if mean is not None:
        yield named | {"figure": figure} | mean.model_dump()


def _figure(mean: ClusteredMean | None, decimals: int = 2) -> str:
    if mean is None:
        return "–"

    def text(value: float) -> str:
        return f"{value + 0.0:.{decimals}f}".replace("-", "−")

    if mean.low is None or mean.high is None:
        return f"{text(mean.value)} [?]"
    return f"{text(mean.value)} [{text(mean.low)}, {text(mean.high)}]"
