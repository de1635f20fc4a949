"""`deltamend score`: did the repair help, from the stored items of base, fine-tuned and repaired models."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Column
from rich.table import Table as RichTable
from rich.text import Text

from deltamend.errors import UsageError
from deltamend.machine.atomic import write_whole
from deltamend.report.score_page import cells_page, render_score_page
from deltamend.report.score_tables import (
    Table,
    cells_tables,
    latex,
    markdown,
    scores_csv,
    tables_of_score,
    undefined_figures,
    weak_figures,
)
from deltamend.scoring.across_cells import score_across_cells
from deltamend.scoring.cell_score import score_cells
from deltamend.scoring.cells_file import open_cells
from deltamend.scoring.paired_cell import open_cell
from deltamend.scoring.settings import make_settings


def score(
    base: Annotated[
        Path | None,
        typer.Option(
            help="What the base scored: a record, a folder of lm-eval, or a log of inspect or a folder of them."
        ),
    ] = None,
    finetuned: Annotated[Path | None, typer.Option(help="The same of the fine-tuned model.")] = None,
    repaired: Annotated[
        list[str] | None, typer.Option(metavar="NAME=PATH", help="The same of a repair; once for each.")
    ] = None,
    target: Annotated[str | None, typer.Option(help="The task the model was fine-tuned for.")] = None,
    target_file: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=PATH", help="Where the target has records of its own: base=…, finetuned=…, NAME=…."),
    ] = None,
    benchmarks: Annotated[str | None, typer.Option(help="Only these tasks, with commas between.")] = None,
    cells: Annotated[
        Path | None, typer.Option(metavar="FILE.yaml", help="Many cells instead of one; see docs/score.md.")
    ] = None,
    margin: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[TASK=]SIZE", help="What counts as a change: 1se (default), 2se, or a distance such as 0.02."
        ),
    ] = None,
    metric: Annotated[
        list[str] | None,
        typer.Option(
            metavar="TASK=NAME",
            help="What a task of lm-eval or inspect is scored by; of inspect also 1-NAME, where lower is better.",
        ),
    ] = None,
    chance_corrected: Annotated[
        bool, typer.Option("--chance-corrected", help="Score (s − chance)/(1 − chance) where chance is known.")
    ] = False,
    common_items: Annotated[
        bool, typer.Option("--common-items", help="Score what all models share, rather than refuse what differs.")
    ] = False,
    draws: Annotated[int, typer.Option(help="Of the bootstrap.")] = 10_000,
    seed: Annotated[int, typer.Option(help="Of the bootstrap.")] = 0,
    confidence: Annotated[float, typer.Option(help="Of the intervals.")] = 0.95,
    as_json: Annotated[bool, typer.Option("--json", help="Print every figure as JSON.")] = False,
    html: Annotated[Path | None, typer.Option(help="Write a page with tables and plots.")] = None,
    markdown_file: Annotated[Path | None, typer.Option("--markdown", help="Write the tables as Markdown.")] = None,
    latex_file: Annotated[Path | None, typer.Option("--latex", help="Write the tables as LaTeX.")] = None,
    csv: Annotated[Path | None, typer.Option(help="Write every figure on a line of its own.")] = None,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="Print errors only.")] = False,
) -> None:
    """Score repairs by what they heal, preserve, leave undamaged and retain."""
    task_margins, general = {}, "1se"
    for text in margin or []:
        task, is_for_task, size = text.rpartition("=")
        if is_for_task:
            task_margins[task] = size
        else:
            general = size
    settings = make_settings(
        margin=general,
        task_margins=task_margins,
        chance_corrected=chance_corrected,
        draws=draws,
        seed=seed,
        confidence=confidence,
    )
    metrics = _named("--metric", metric)
    tables: list[Table]
    if cells is not None:
        if any(given for given in (base, finetuned, repaired, target, target_file, benchmarks)):
            raise UsageError("--cells: names all records; leave out --base, --finetuned, --repaired and --target")
        opened, clusters = open_cells(cells, metrics=metrics, common_items=common_items)
        over = score_across_cells(opened, clusters, settings)
        scores, tables, page, content = over.cells, cells_tables(over), cells_page(over), over.model_dump_json(indent=1)
        notes = over.all_notes
    else:
        if base is None or finetuned is None or not repaired or target is None:
            raise UsageError("give --base, --finetuned, --repaired NAME=PATH and --target, or --cells FILE.yaml")
        cell = open_cell(
            base,
            finetuned,
            _named("--repaired", repaired),
            target=target,
            target_files=_named("--target-file", target_file) or None,
            benchmarks=None if benchmarks is None else [name.strip() for name in benchmarks.split(",")],
            metrics=metrics,
            common_items=common_items,
        )
        (one,) = score_cells([cell], settings)
        scores, tables, page, content = (
            (one,),
            tables_of_score(one),
            render_score_page(one),
            one.model_dump_json(indent=1),
        )
        notes = (*undefined_figures(one), *weak_figures(one), *one.notes)
    for path, text in (
        (html, page),
        (markdown_file, markdown(tables, notes)),
        (latex_file, latex(tables)),
        (csv, scores_csv(scores)),
    ):
        if path is not None:
            write_whole(path, text)
    if as_json:
        typer.echo(content)
    else:
        print_tables(Console(quiet=quiet, highlight=False), tables, notes)


def _named(option: str, texts: Sequence[str] | None) -> dict[str, str]:
    """NAME=VALUE options as a table."""
    named: dict[str, str] = {}
    for text in texts or []:
        name, given, value = text.partition("=")
        if not given or not name or not value:
            raise UsageError(f"{option} {text!r}: give NAME=VALUE")
        if name in named:
            raise UsageError(f"{option} {name!r}: is given twice; give it once")
        named[name] = value
    return named


_WIDE = 130
"""Columns of a terminal on which an interval stands beside its figure; on a narrower one it stands below."""


def print_tables(console: Console, tables: Sequence[Table], notes: Sequence[str]) -> None:
    """Tables and notes on a terminal; names stay text."""
    below = "\n[" if console.width < _WIDE else " ["
    for table in tables:
        first, *others = table.head
        shown = RichTable(
            Column(Text(first), overflow="fold"),
            *(Column(Text(name), justify="right", overflow="fold") for name in others),
            title=Text(table.title),
            title_justify="left",
            box=SIMPLE_HEAD,
            pad_edge=False,
            collapse_padding=True,
        )
        for name, *cells in table.rows:
            shown.add_row(Text(name), *(Text(cell.replace(" [", below)) for cell in cells))
        console.print(shown)
    for note in notes:
        console.print(f"note: {note}", markup=False)
