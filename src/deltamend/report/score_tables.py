"""A score as tables: for the terminal, Markdown, LaTeX, and CSV with every figure on a line of its own."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from deltamend.machine.escaping import latex_text, markdown_text
from deltamend.report.csv_output import cell_text
from deltamend.scoring.across_cells import CellsScore
from deltamend.scoring.metric import PARTS
from deltamend.scoring.paired_cell import NONE_AND_REVERT
from deltamend.scoring.result import Estimate, Score, TaskScore

ORDINARY = ("mean_score", "naive_recovery", "backward_transfer")
TITLES = {
    "healing": "healing",
    "preservation": "preservation",
    "non_damage": "non-damage",
    "retention": "retention",
    "combined": "combined",
    "mean_score": "mean score",
    "naive_recovery": "naive recovery",
    "backward_transfer": "backward transfer",
}


@dataclass(frozen=True)
class Table:
    """A table of text; the first column is names."""

    title: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def tables_of_score(score: Score) -> list[Table]:
    """The parts, the benchmarks, paired differences, and the ordinary measures of one cell."""
    methods = score.methods.items()
    tables = [
        Table(
            f"What each repair of {score.name} did",
            ("method", *(TITLES[part] for part in PARTS)),
            tuple((name, *(figure(getattr(of, part), part) for part in PARTS)) for name, of in methods),
        ),
        Table(
            "Benchmarks",
            ("task", "group", "items", "visible", "base", "tuned", *_own(score)),
            tuple(_task_row(task) for task in (*score.benchmarks, score.target)),
        ),
    ]
    if score.differences:
        tables.append(
            Table(
                "Differences between repairs, paired",
                ("repairs", "healing", "retention", "combined"),
                tuple(
                    (
                        f"{pair.first} − {pair.second}",
                        figure(pair.healing, "healing", sign=True),
                        figure(pair.retention, "retention", sign=True),
                        figure(pair.combined, "combined", sign=True),
                    )
                    for pair in score.differences
                ),
            )
        )
    tables.append(
        Table(
            "Ordinary measures, for comparison",
            ("method", *(TITLES[name] for name in ORDINARY)),
            tuple((name, *(figure(getattr(of, key), key) for key in ORDINARY)) for name, of in methods),
        )
    )
    return tables


def cells_tables(score: CellsScore) -> list[Table]:
    """What holds across cells, then the parts of every cell."""
    tables = [
        Table(
            f"Combined score over {len(score.cells)} cells",
            ("method", "cells", "clusters", "these cells", "cells like these"),
            tuple(
                (
                    name,
                    str(over.cells),
                    str(over.clusters),
                    figure(over.these_cells, "combined"),
                    figure(over.cells_like_these, "combined"),
                )
                for name, over in score.methods.items()
            ),
        )
    ]
    if score.differences:
        tables.append(
            Table(
                "Differences in combined score over cells, paired",
                ("repairs", "cells", "clusters", "these cells", "cells like these"),
                tuple(
                    (
                        f"{pair.first} − {pair.second}",
                        str(pair.cells),
                        str(pair.clusters),
                        figure(pair.these_cells, "combined", sign=True),
                        figure(pair.cells_like_these, "combined", sign=True),
                    )
                    for pair in score.differences
                ),
            )
        )
    if score.tests:
        tables.append(
            Table(
                "Wilcoxon signed ranks over clusters of cells",
                ("repairs", "clusters", "median difference", "p", "p, Holm"),
                tuple(
                    (
                        f"{test.first} − {test.second}",
                        str(test.clusters),
                        f"{test.median_difference:+.1f}",
                        p_value(test.p),
                        p_value(test.p_holm),
                    )
                    for test in score.tests
                ),
            )
        )
    return [*tables, *(tables_of_score(cell)[0] for cell in score.cells)]


def _own(score: Score) -> list[str]:
    return [name for name, of in score.methods.items() if not of.trivial]


def _task_row(task: TaskScore) -> tuple[str, ...]:
    methods = (of.score for name, of in task.methods.items() if name not in NONE_AND_REVERT)
    return (
        task.name if task.weak is None else f"{task.name} (weak)",  # the notes say why; it would not fit a column
        task.group or "target",
        str(task.items),
        f"{task.visible_change:.3f}" if task.visible_change else "–",
        *(figure(estimate, "score") for estimate in (task.base, task.finetuned, *methods)),
    )


def task_name(task: TaskScore) -> str:
    """The name, and that the figure is weak where it is, and why."""
    return task.name if task.weak is None else f"{task.name} (weak: {task.weak})"


def figure(estimate: Estimate, kind: str, *, sign: bool = False) -> str:
    """A figure with its interval as text; combined scores with one decimal, all else with two or three.

    A score that every item shares has an interval without width, which says nothing: that is what stands there.
    """
    if estimate.value is None:
        return "undefined"
    decimals = {"combined": 1, "score": 3, "mean_score": 3, "backward_transfer": 3}.get(kind, 2)
    signed = "+" if sign or kind == "backward_transfer" else ""

    def text(value: float) -> str:
        return f"{value + 0.0:{signed}.{decimals}f}".replace("-", "−")

    if estimate.low is None or estimate.high is None:
        return f"{text(estimate.value)} [?]"
    if kind == "score" and has_no_width(estimate):
        return f"{text(estimate.value)} [no width]"
    return f"{text(estimate.value)} [{text(estimate.low)}, {text(estimate.high)}]"


def has_no_width(estimate: Estimate) -> bool:
    """Whether the draws all gave the same: no spread among the items is no certainty."""
    return estimate.low is not None and estimate.low == estimate.high


def weak_figures(score: Score) -> list[str]:
    """Why the figures of a task are weak, for each that are."""
    return [f"{task.name} is weak: {task.weak}" for task in (*score.benchmarks, score.target) if task.weak is not None]


def undefined_figures(score: Score) -> list[str]:
    """Each reason for an undefined figure or interval, once."""
    said: dict[str, None] = {}
    for name, of in score.methods.items():
        for part in (*PARTS, *ORDINARY):
            estimate: Estimate = getattr(of, part)
            if estimate.value is None and estimate.reason is not None:
                said[f"{TITLES[part]} is undefined: {estimate.reason}"] = None
            elif estimate.reason is not None:
                said[f"{TITLES[part]} of {name} has no interval: {estimate.reason}"] = None
    return list(said)


def p_value(p: float) -> str:
    """A p-value as text."""
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def markdown(tables: Sequence[Table], notes: Sequence[str]) -> str:
    """Tables and notes as Markdown; names stay text."""
    parts = []
    for table in tables:
        lines = [f"### {markdown_text(table.title)}", "", _markdown_row(table.head)]
        lines.append(_markdown_row(["---", *["---:"] * (len(table.head) - 1)], escape=False))
        lines += [_markdown_row(row) for row in table.rows]
        parts.append("\n".join(lines))
    if notes:
        parts.append("\n".join(f"- {markdown_text(note)}" for note in notes))
    return "\n\n".join(parts) + "\n"


def _markdown_row(cells: Sequence[str], *, escape: bool = True) -> str:
    return f"| {' | '.join(markdown_text(cell) if escape else cell for cell in cells)} |"


def latex(tables: Sequence[Table]) -> str:
    """Tables for a paper that uses the package booktabs."""
    parts = []
    for table in tables:
        lines = [
            r"\begin{table}",
            rf"\caption{{{latex_text(table.title)}}}",
            r"\centering",
            rf"\begin{{tabular}}{{l{'r' * (len(table.head) - 1)}}}",
            r"\toprule",
            _latex_row(table.head),
            r"\midrule",
            *(_latex_row(row) for row in table.rows),
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table}",
        ]
        parts.append("\n".join(lines))
    return "\n\n".join(parts) + "\n"


def _latex_row(cells: Sequence[str]) -> str:
    # A bracket right after the line before would be read as its optional argument.
    return f"{{}}{' & '.join(latex_text(cell) for cell in cells)} \\\\"


_CSV_HEAD = ("cell", "task", "method", "figure", "value", "low", "high", "reason", "weak")


def scores_csv(scores: Sequence[Score]) -> str:
    """Every figure of every cell on a line; `task` is empty for what is over all benchmarks."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(_CSV_HEAD)
    for score in scores:
        for task, method, name, estimate, weak in _figures(score):
            numbers = (estimate.value, estimate.low, estimate.high)
            texts = (score.name, task, method, name)
            row = (*map(cell_text, texts), *numbers, estimate.reason, cell_text(weak or ""))
            writer.writerow(["" if value is None else value for value in row])
    return out.getvalue()


def _figures(score: Score) -> Iterator[tuple[str, str, str, Estimate, str | None]]:
    for method, of in score.methods.items():
        for name in (*PARTS, *ORDINARY):
            yield "", method, name, getattr(of, name), None
    for task in (*score.benchmarks, score.target):
        yield task.name, "base", "score", task.base, task.weak
        yield task.name, "finetuned", "score", task.finetuned, task.weak
        for method, on in task.methods.items():
            yield task.name, method, "score", on.score, task.weak
            yield task.name, method, "change", on.change, task.weak
            for name, value in (("share", on.share), ("p", on.p), ("p_holm", on.p_holm)):
                yield task.name, method, name, Estimate(value=value), task.weak
