"""The plots of a study as SVG: the same results give the same bytes; on white, so that they read on dark pages as well."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from deltamend.errors import UsageError
from deltamend.scoring.result import Estimate
from deltamend.study.findings.result_types import CHOOSING, CONFIRMATION, RepairOutcome, StudyResults

ROLE_COLOURS = {
    "candidate": "#15803d",
    "published": "#1d4ed8",
    "strength": "#6d8fe0",
    "control": "#b45309",
    "dtype": "#7c3aed",
    "trivial": "#8a8f98",
}
_STYLE: dict[Any, Any] = {
    "svg.hashsalt": "deltamend",
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "text.parse_math": False,
}
_REGIMES = ("#1d4ed8", "#c2410c", "#15803d", "#7c3aed", "#b45309", "#0e7490")
_NEAR = 0.03
"""Distance in retention and in healing below which two dots have one label."""

_MOST_LABELLED = 20
"""Columns of the heat map up to which every field has its number in it."""


def plots_of_study(results: StudyResults) -> dict[str, bytes]:
    """File name to SVG; plots that would be empty are left out.

    Raises:
        UsageError: matplotlib is not installed.
    """
    try:
        import matplotlib as mpl
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UsageError("plots need matplotlib: pip install 'deltamend[study]'") from error
    drawn: dict[str, bytes] = {}
    for name, draw in _PLOTS.items():
        with mpl.rc_context(_STYLE):
            plot = draw(results, Figure)
            if plot is not None:
                out = io.BytesIO()
                plot.savefig(out, format="svg", metadata={"Date": None, "Creator": None}, facecolor="white")
                drawn[name] = out.getvalue()
    return drawn


def shown_group(results: StudyResults) -> str:
    """The cells that a plot is over: the confirmation cells, or where none is done the choosing ones."""
    return CONFIRMATION if CONFIRMATION in results.groups else CHOOSING


def by_combined(results: StudyResults, group: str) -> list[RepairOutcome]:
    """Repairs with cells in a group, the best first and the undefined last."""

    def order(of: RepairOutcome) -> tuple[bool, float]:
        value = of.groups[group].combined.these_cells.value
        return value is None, -(value or 0.0)

    return sorted((of for of in results.repairs if group in of.groups), key=order)


def _combined(results: StudyResults, new: Callable[..., Any]) -> Any:
    group = shown_group(results)
    rows = [of for of in by_combined(results, group) if of.groups[group].combined.these_cells.value is not None]
    most = max((of.groups[group].combined.cells for of in rows), default=0)
    # A mean over fewer cells is of other cells, and no rank among the others: such repairs stand below all of them.
    rows.sort(key=lambda of: of.groups[group].combined.cells < most)

    def named(of: RepairOutcome) -> str:
        cells = of.groups[group].combined.cells
        return of.name if cells == most else f"{of.name} ({cells} of {most} cells)"

    return _bars(
        new,
        [
            (named(of), of.role, of.groups[group].combined.cells_like_these, of.groups[group].combined.these_cells)
            for of in rows
        ],
        f"combined score, mean over {group} cells\nthick: 95% interval for these cells, thin: for cells like these",
        results.confidence,
    )


def _equal_retention(results: StudyResults, new: Callable[..., Any]) -> Any:
    """Mean healing against mean retention, regime by regime, with the curve."""
    found = results.equal_retention
    if found is None or not found.groups:
        return None
    phase = CONFIRMATION if CONFIRMATION in found.groups else CHOOSING
    groups = [group for group in found.groups if group.startswith(f"{phase}, ")] or [phase]
    columns = min(3, len(groups))
    lines = -(-len(groups) // columns)
    plot = new(figsize=(4.0 * columns, 3.6 * lines), layout="constrained")
    panels = plot.subplots(lines, columns, squeeze=False, sharex=True, sharey=True)
    for place, panel in enumerate(panels.flat):
        if place >= len(groups):
            panel.set_axis_off()
            continue
        own = [one for one in found.repairs if one.group == groups[place]]
        curve = [one for one in own if one.above_straight is None or one.role == "trivial"]
        curve.sort(key=lambda one: one.retention.value)
        panel.plot(
            [one.retention.value for one in curve],
            [one.healing.value for one in curve],
            color="#8a8f98",
            marker=".",
            linewidth=1,
        )
        rest = [one for one in own if one not in curve]
        for one in rest:
            panel.plot([one.retention.value], [one.healing.value], "o", color=ROLE_COLOURS[one.role], markersize=4)
        for one in sorted(rest, key=lambda one: -(one.above_straight.value if one.above_straight else 0.0))[:3]:
            panel.annotate(
                one.name,
                (one.retention.value, one.healing.value),
                fontsize=7,
                xytext=(3, 3),
                textcoords="offset points",
            )
        panel.set_title(groups[place].removeprefix(f"{phase}, "), fontsize=9)
        panel.grid(color="#e5e5e5", linewidth=0.6)
    plot.supxlabel(f"retention of the target, mean over {phase} cells", fontsize=8)
    plot.supylabel("healing of what was damaged", fontsize=8)
    return plot


def _heights(results: StudyResults, new: Callable[..., Any]) -> Any:
    if results.curve is None:
        return None
    group = shown_group(results)
    judged = [of for of in results.curve.heights if group in of.groups and (of.judged or group == CHOOSING)]
    shown = [of for of in judged if of.groups[group].these_cells.value is not None]
    shown.sort(key=lambda of: -(of.groups[group].these_cells.value or 0.0))
    return _bars(
        new,
        [(of.name, of.role, of.groups[group].cells_like_these, of.groups[group].these_cells) for of in shown],
        "combined score above the WiSE-FT curve at the same ‖Δ*‖, interpolated\n"
        "thick: 95% interval for these cells, thin: for cells like these",
        results.confidence,
        zero=True,
    )


def _bars(
    new: Callable[..., Any],
    rows: Sequence[tuple[str, str, Estimate, Estimate]],
    label: str,
    confidence: float,
    *,
    zero: bool = False,
) -> Any:
    """Horizontal intervals, one repair a line, the first on top."""
    if not rows:
        return None
    plot = new(figsize=(8.2, 1.2 + 0.24 * len(rows)), layout="constrained")
    axes = plot.subplots()
    for place, (_, role, wide, narrow) in enumerate(rows):
        colour = ROLE_COLOURS[role]
        for of, width in ((wide, 1.2), (narrow, 3.2)):
            if of.low is not None and of.high is not None:
                axes.plot([of.low, of.high], [-place, -place], color=colour, linewidth=width, alpha=0.55, zorder=1)
        axes.plot([narrow.value], [-place], "o", color=colour, markersize=5, zorder=2)
    if zero:
        axes.axvline(0, color="#5b626b", linewidth=0.8, linestyle="--")
    axes.set_yticks([-place for place in range(len(rows))], [name for name, *_ in rows])
    axes.set_ylim(-len(rows) + 0.4, 0.6)
    axes.grid(axis="x", color="#e5e5e5", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.set_xlabel(label.replace("95%", f"{100 * confidence:g}%"), fontsize=8)
    _role_legend(axes, [role for _, role, *_ in rows])
    return plot


def _role_legend(axes: Any, roles: Sequence[str]) -> None:
    for role in dict.fromkeys(roles):
        axes.plot([], [], "o", color=ROLE_COLOURS[role], label=role)
    axes.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0))


def _trade_off(results: StudyResults, new: Callable[..., Any]) -> Any:
    group = shown_group(results)
    placed = [
        (of, of.groups[group].retention.these_cells, of.groups[group].healing.these_cells)
        for of in by_combined(results, group)
    ]
    shown = [(of, x, y) for of, x, y in placed if x.value is not None and y.value is not None]
    if not shown:
        return None
    plot = new(figsize=(8.6, max(4.8, 0.9 + 0.19 * len(shown))), layout="constrained")
    axes = plot.subplots()
    line = _wise_ft(results, group)
    if line:
        axes.plot(*zip(*line, strict=True), color="#5b626b", linestyle="--", linewidth=1, label="WiSE-FT")
    for number, (of, x, y) in enumerate(shown, start=1):
        colour = ROLE_COLOURS[of.role]
        for at, along in ((x, True), (y, False)):
            if at.low is not None and at.high is not None:
                ends, across = [at.low, at.high], [y.value if along else x.value] * 2
                axes.plot(*((ends, across) if along else (across, ends)), color=colour, linewidth=1, alpha=0.3)
        axes.plot([x.value], [y.value], "o", color=colour, markersize=6, zorder=3, label=f"{number} {of.name}")
    for text, place in _numbered([(x.value or 0.0, y.value or 0.0) for _, x, y in shown]):
        axes.annotate(text, place, xytext=(5, 4), textcoords="offset points", fontsize=7.5, zorder=4)
    axes.set_xlabel(f"retention of the target's gain, mean over {group} cells")
    axes.set_ylabel("healing of the damage")
    axes.set_xlim(-0.04, 1.1)
    axes.set_ylim(-0.04, 1.08)
    axes.grid(color="#e5e5e5", linewidth=0.6)
    axes.set_axisbelow(True)
    legend = axes.legend(frameon=False, fontsize=7.5, loc="center left", bbox_to_anchor=(1.0, 0.5))
    legend.set_title("colour: role; number: rank by combined", prop={"size": 7})
    return plot


def _wise_ft(results: StudyResults, group: str) -> list[tuple[float, float]]:
    """Retention and healing along the curve, of the alphas that are done in the most cells: means over others are of other cells."""
    points = results.curve.points if results.curve is not None else ()
    placed = [point.groups[group] for point in points if group in point.groups]
    most = max((of.combined.cells for of in placed), default=0)
    placed = [of for of in placed if of.combined.cells == most]
    line = [(of.retention.these_cells.value, of.healing.these_cells.value) for of in placed]
    return [(retention, healing) for retention, healing in line if retention is not None and healing is not None]


def _numbered(places: Sequence[tuple[float, float]]) -> list[tuple[str, tuple[float, float]]]:
    """The numbers of dots, from 1; dots that would hide one another's share a label."""
    labels: list[tuple[list[str], tuple[float, float]]] = []
    for number, (x, y) in enumerate(places, start=1):
        near = [texts for texts, (left, low) in labels if abs(x - left) < _NEAR and abs(y - low) < _NEAR]
        if near:
            near[0].append(str(number))
        else:
            labels.append(([str(number)], (x, y)))
    return [(", ".join(texts), place) for texts, place in labels]


def _heat(results: StudyResults, new: Callable[..., Any]) -> Any:
    rows = [of.name for of in by_combined(results, shown_group(results))]
    made = {name: sum(cell.combined.get(name) is not None for cell in results.cells) for name in rows}
    rows = [
        name for name in rows if 2 * made[name] >= len(results.cells)
    ]  # the others would be one grey line after another
    if not rows:
        return None
    cells = sorted(results.cells, key=lambda cell: (cell.chooses, cell.regime, cell.target, cell.seed))
    values = [[_share(cell.combined, name) for cell in cells] for name in rows]
    plot = new(figsize=(2.4 + max(0.17 * len(cells), 4.0), 1.9 + 0.2 * len(rows)), layout="constrained")
    axes = plot.subplots()
    mesh = axes.pcolormesh(values, cmap="YlGnBu", vmin=0, vmax=100, edgecolors="white", linewidth=0.4)
    axes.set_facecolor("#eeeeee")
    axes.invert_yaxis()
    axes.set_yticks([place + 0.5 for place in range(len(rows))], rows, fontsize=7.5)
    labels = [f"{cell.target} {cell.regime} {cell.seed}{' *' if cell.chooses else ''}" for cell in cells]
    axes.set_xticks([place + 0.5 for place in range(len(cells))], labels, rotation=90, fontsize=6.5)
    axes.tick_params(length=0)
    if len(cells) <= _MOST_LABELLED:
        for row, own in enumerate(values):
            for column, value in enumerate(own):
                if value == value:
                    ink = "white" if value > 55 else "#1c1f23"
                    axes.text(
                        column + 0.5, row + 0.5, f"{value:.0f}", ha="center", va="center", fontsize=6.5, color=ink
                    )
    plot.colorbar(mesh, ax=axes, shrink=0.6, label="combined score; grey: none")
    axes.set_xlabel("target, regime, seed; * choosing cell", fontsize=8)
    return plot


def _share(combined: Mapping[str, float | None], name: str) -> float:
    value = combined.get(name)
    return float("nan") if value is None else value


def _dg_hard(results: StudyResults, new: Callable[..., Any]) -> Any:
    found = results.dg_hard
    if found is None or all(of.healing.value is None for of in found.cells):
        return None
    regime = {cell.name: cell.regime for cell in results.cells}
    colours = {name: _REGIMES[place % len(_REGIMES)] for place, name in enumerate(dict.fromkeys(regime.values()))}
    plot = new(figsize=(8.6, 3.0), layout="constrained")
    measures = (
        ("share of noise-like matrices", "noise_like"),
        ("median KS distance", "median_ks"),
        ("share of zeros in Δ", "zeros"),
        ("energy DG-Hard keeps", "kept_energy"),
    )
    panels = plot.subplots(1, len(measures), sharey=True)
    for axes, (label, field) in zip(panels, measures, strict=True):
        for of in found.cells:
            at, healed = getattr(of, field), of.healing
            if at is None or healed.value is None:
                continue
            colour = colours[regime[of.cell]]
            if healed.low is not None and healed.high is not None:
                axes.plot([at, at], [healed.low, healed.high], color=colour, linewidth=1, alpha=0.35)
            axes.plot([at], [healed.value], "o", color=colour, markersize=4)
        axes.set_xlabel(label, fontsize=8)
        axes.set_xlim(*((0.0, None) if field == "median_ks" else (-0.04, 1.04)))
        axes.locator_params(axis="x", nbins=4)
        axes.grid(color="#e5e5e5", linewidth=0.6)
        axes.set_axisbelow(True)
    panels[0].set_ylabel(f"healing by {found.repair}")
    panels[0].set_ylim(-0.04, 1.04)
    for name, colour in colours.items():
        panels[-1].plot([], [], "o", color=colour, label=name)
    panels[-1].legend(frameon=False, fontsize=7.5, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return plot


ALT = {
    "equal-retention.svg": "Healing against retention of every repair with the WiSE-FT curve, by regime and model",
    "trade-off.svg": "Healing against retention of every repair, with the WiSE-FT curve",
    "combined.svg": "Combined score of every repair with intervals",
    "above-wise-ft.svg": "Height of every repair above the WiSE-FT curve at the same size of the update",
    "cells.svg": "Combined score of every repair in every cell",
    "dg-hard.svg": "Healing by DG-Hard against four figures of the diagnosis",
}
"""What each plot shows, in words."""


_PLOTS: dict[str, Callable[[StudyResults, Callable[..., Any]], Any]] = {
    "equal-retention.svg": _equal_retention,
    "trade-off.svg": _trade_off,
    "combined.svg": _combined,
    "above-wise-ft.svg": _heights,
    "cells.svg": _heat,
    "dg-hard.svg": _dg_hard,
}
PLOT_FILES = frozenset(_PLOTS)
"""Every name that `plots_of_study` may give a file."""
