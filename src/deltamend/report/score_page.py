"""A score as an HTML page: one file, no script, no network, light and dark; plots are SVG in the page."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from deltamend.report.page_templates import page_template
from deltamend.report.score_tables import (
    TITLES,
    cells_tables,
    figure,
    has_no_width,
    p_value,
    tables_of_score,
    task_name,
    undefined_figures,
    weak_figures,
)
from deltamend.scoring.across_cells import CellsScore
from deltamend.scoring.metric import PARTS
from deltamend.scoring.paired_cell import NONE_AND_REVERT
from deltamend.scoring.result import Estimate, Score, TaskScore

_COLOURS = 8
"""Distinct colours of the style sheet; more methods take them again, and their numbers tell them apart."""


@dataclass(frozen=True)
class Point:
    """A method in the trade-off plot, in the plot's own units; whiskers are None where there is no interval."""

    number: int
    colour: int
    name: str
    text: str
    x: float
    y: float
    x_whisker: tuple[float, float] | None
    y_whisker: tuple[float, float] | None
    on_front: bool


@dataclass(frozen=True)
class Mark:
    """A score in a slope plot, with its interval; `hollow` where that has no width."""

    colour: int
    name: str
    text: str
    x: float
    y: float
    low: float
    high: float
    hollow: bool


@dataclass(frozen=True)
class Slope:
    """One benchmark: from base to fine-tuned to each repair."""

    title: str
    about: str
    base: Mark
    finetuned: Mark
    repaired: tuple[Mark, ...]
    top: str
    bottom: str


@dataclass(frozen=True)
class HeatCell:
    """A share, 0 to 1, or None where there is none."""

    share: float | None
    text: str
    hint: str


@dataclass(frozen=True)
class HeatMap:
    """Methods down, benchmarks or cells across."""

    head: tuple[tuple[str, str], ...]
    rows: tuple[tuple[str, tuple[HeatCell, ...]], ...]


PLOT_WIDTH, PLOT_HEIGHT, PLOT_MARGIN = 560.0, 440.0, 64.0
SLOPE_WIDTH, SLOPE_HEIGHT = 260.0, 150.0
_SLOPE_X = (38.0, 118.0, 198.0)
_SLOPE_Y = (16.0, 122.0)


def render_score_page(score: Score) -> str:
    """One cell: who did what, the trade-off front, every benchmark, differences, and the ordinary measures."""
    return page_template("score.html.j2").render(title=f"Repairs of {score.name}", over=None, cells=[_cell(score)])


def render_cells_page(score: CellsScore) -> str:
    """Many cells: the means and tests over cells, methods by cells, then every cell."""
    tables = cells_tables(score)
    over = {
        "tables": tables[: len(tables) - len(score.cells)],
        "notes": score.notes,
        "heat": _cells_heat(score),
    }
    title = f"Repairs in {len(score.cells)} cells"
    return page_template("score.html.j2").render(title=title, over=over, cells=[_cell(cell) for cell in score.cells])


def _cell(score: Score) -> dict[str, object]:
    numbers = {name: number for number, name in enumerate(score.methods, start=1)}
    points = _points(score, numbers)
    return {
        "score": score,
        "numbers": {name: (number, _colour(number)) for name, number in numbers.items()},
        "headline": headline(score),
        "parts": [(name, [_bar(getattr(of, part), part) for part in PARTS]) for name, of in score.methods.items()],
        "part_titles": [TITLES[part] for part in PARTS],
        "points": points,
        "not_drawn": [name for name in score.methods if name not in {point.name for point in points}],
        "front": _front_line(points),
        "width": PLOT_WIDTH,
        "height": PLOT_HEIGHT,
        "margin": PLOT_MARGIN,
        "slope_width": SLOPE_WIDTH,
        "slope_height": SLOPE_HEIGHT,
        "slopes": [_slope(task, numbers) for task in (*score.benchmarks, score.target)],
        "heat": _benchmark_heat(score),
        "tables": tables_of_score(score)[1:],
        "tests": [
            (task_name(task), name, f"{on.change.value:+.3f}".replace("-", "−"), p_value(on.p), p_value(on.p_holm))
            for task in (*score.benchmarks, score.target)
            for name, on in task.methods.items()
            if on.p is not None and on.p_holm is not None and on.change.value is not None
        ],
        "weak": weak_figures(score),
        "undefined": undefined_figures(score),
    }


def headline(score: Score) -> str:
    """What can be said in a sentence or two, and no more."""
    own = {name: of.combined for name, of in score.methods.items() if name not in NONE_AND_REVERT}
    defined = {name: combined for name, combined in own.items() if combined.value is not None}
    if score.methods[NONE_AND_REVERT[0]].healing.value is None:
        return "Fine-tuning damaged no benchmark beyond the margin, so there is nothing here that a repair could heal."
    if score.methods[NONE_AND_REVERT[0]].retention.value is None:
        return "The fine-tuned model is not measurably better on its target, so there is nothing to retain."
    best = max(defined, key=lambda name: defined[name].value or 0.0)
    if len(defined) == 1:
        return f"{best} has a combined score of {figure(defined[best], 'combined')} of 100."
    said = f"{best} has the highest combined score, {figure(defined[best], 'combined')} of 100."
    rivals = [
        pair.second if pair.first == best else pair.first
        for pair in score.differences
        if best in (pair.first, pair.second) and not _excludes_zero(pair.combined)
    ]
    if rivals:
        return f"{said} These items do not tell it apart from {', '.join(rivals)}."
    return f"{said} Its paired difference from every other repair excludes zero, each taken alone."


def _excludes_zero(difference: Estimate) -> bool:
    return difference.low is not None and difference.high is not None and (difference.low > 0 or difference.high < 0)


def _colour(number: int) -> int:
    return (number - 1) % _COLOURS


def _bar(estimate: Estimate, part: str) -> dict[str, object]:
    scale = 100.0 if part == "combined" else 1.0
    shown = [None if value is None else 100 * value / scale for value in (estimate.value, estimate.low, estimate.high)]
    return {"text": figure(estimate, part), "value": shown[0], "low": shown[1], "high": shown[2]}


def _points(score: Score, numbers: Mapping[str, int]) -> list[Point]:
    """Methods whose healing and retention are both defined; the front is of those that no other beats in both."""
    placed = {
        name: (of.retention, of.healing)
        for name, of in score.methods.items()
        if of.retention.value is not None and of.healing.value is not None
    }
    inner_width, inner_height = PLOT_WIDTH - 2 * PLOT_MARGIN, PLOT_HEIGHT - 2 * PLOT_MARGIN

    def across(value: float) -> float:
        return PLOT_MARGIN + inner_width * value

    def up(value: float) -> float:
        return PLOT_HEIGHT - PLOT_MARGIN - inner_height * value

    at = {name: (x.value or 0.0, y.value or 0.0) for name, (x, y) in placed.items()}
    return [
        Point(
            number=numbers[name],
            colour=_colour(numbers[name]),
            name=name,
            text=f"{name}: retention {figure(x, 'retention')}, healing {figure(y, 'healing')}",
            x=across(at[name][0]),
            y=up(at[name][1]),
            x_whisker=_whisker(x, across),
            y_whisker=_whisker(y, up),
            on_front=not any(_beats(other, at[name]) for other in at.values()),
        )
        for name, (x, y) in placed.items()
    ]


def _whisker(estimate: Estimate, place: Callable[[float], float]) -> tuple[float, float] | None:
    if estimate.low is None or estimate.high is None:
        return None
    return place(estimate.low), place(estimate.high)


def _beats(one: tuple[float, float], other: tuple[float, float]) -> bool:
    return one[0] >= other[0] and one[1] >= other[1] and one != other


def _front_line(points: Sequence[Point]) -> str:
    """SVG points of the staircase under the methods on the front."""
    front = sorted({(point.x, point.y) for point in points if point.on_front})
    corners: list[tuple[float, float]] = []
    for x, y in front:
        if corners:
            corners.append((corners[-1][0], y))
        corners.append((x, y))
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in corners)


def _slope(task: TaskScore, numbers: Mapping[str, int]) -> Slope:
    shown = {name: on.score for name, on in task.methods.items() if name not in NONE_AND_REVERT}
    estimates = [task.base, task.finetuned, *shown.values()]
    ends = [value for of in estimates for value in (of.value, of.low, of.high) if value is not None]
    bottom, top = min(ends), max(ends)
    height = (top - bottom) or 1.0

    def up(value: float) -> float:
        return _SLOPE_Y[1] - (_SLOPE_Y[1] - _SLOPE_Y[0]) * (value - bottom) / height

    def mark(name: str, colour: int, of: Estimate, x: float) -> Mark:
        value = of.value or 0.0
        low, high = (value if end is None else end for end in (of.low, of.high))
        return Mark(colour, name, f"{name}: {figure(of, 'score')}", x, up(value), up(low), up(high), has_no_width(of))

    spread = 44.0 / max(1, len(shown) - 1)
    return Slope(
        title=task_name(task),
        about=f"{task.group or 'the target'} · {task.items} items · {task.metric}",
        base=mark("base", 0, task.base, _SLOPE_X[0]),
        finetuned=mark("fine-tuned", 0, task.finetuned, _SLOPE_X[1]),
        repaired=tuple(
            mark(name, _colour(numbers[name]), of, _SLOPE_X[2] + spread * place)
            for place, (name, of) in enumerate(shown.items())
        ),
        top=f"{top:.2f}",
        bottom=f"{bottom:.2f}",
    )


def _benchmark_heat(score: Score) -> HeatMap:
    tasks = (*score.benchmarks, score.target)
    titles = {"damaged": "healed", "improved": "preserved", "neutral": "undamaged", None: "retained"}
    rows = []
    for name in score.methods:
        cells = []
        for task in tasks:
            on = task.methods[name]
            text = "–" if on.share is None else f"{100 * on.share:.0f}"
            cells.append(HeatCell(on.share, text, f"{name} on {task_name(task)}: {figure(on.score, 'score')}"))
        rows.append((name, tuple(cells)))
    return HeatMap(tuple((task_name(task), titles[task.group]) for task in tasks), tuple(rows))


def _cells_heat(score: CellsScore) -> HeatMap:
    rows = []
    for name in score.methods:
        cells = []
        for cell in score.cells:
            combined = cell.methods[name].combined if name in cell.methods else Estimate(value=None, reason="not there")
            share = None if combined.value is None else combined.value / 100
            text = "–" if combined.value is None else f"{combined.value:.0f}"
            cells.append(HeatCell(share, text, f"{name} in {cell.name}: {figure(combined, 'combined')}"))
        rows.append((name, tuple(cells)))
    return HeatMap(tuple((cell.name, cell.target.name) for cell in score.cells), tuple(rows))
