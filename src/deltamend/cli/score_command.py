"""`deltamend score`: did the repair help, from the stored items of base, fine-tuned and repaired models."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.box import SIMPLE_HEAD
from rich.table import Column
from rich.text import Text

from deltamend.checkpoint.output_checks import check_output_files
from deltamend.cli.terminal import PlainConsole, PlainTable, echo_json
from deltamend.errors import UsageError
from deltamend.machine.atomic import write_whole
from deltamend.machine.escaping import one_line
from deltamend.report.score_output import output_of_score
from deltamend.report.score_tables import Table
from deltamend.scoring import run as scoring
from deltamend.scoring.across_cells import CellsScore
from deltamend.scoring.cells_file import files_of_cells
from deltamend.scoring.result import Score


def score(
    base: Annotated[
        Path | None,
        typer.Option(
            help="What the base scored: a record of `deltamend evaluate`, a folder of lm-eval, or a log of inspect or a folder of its logs."
        ),
    ] = None,
    finetuned: Annotated[Path | None, typer.Option(help="What the fine-tuned model scored, likewise.")] = None,
    repaired: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=PATH",
            help="What a repaired model scored, likewise, and a name for it. Give one for each repair.",
        ),
    ] = None,
    target: Annotated[str | None, typer.Option(help="The task the model was fine-tuned for.")] = None,
    target_file: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=PATH",
            help="Where the target was evaluated apart from the benchmarks: its record for base=…, finetuned=… and each repair.",
        ),
    ] = None,
    benchmarks: Annotated[
        str | None, typer.Option(help="Score these benchmarks only; names separated by commas.")
    ] = None,
    cells: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.yaml", help="Score many fine-tuned models, which this file lists; see docs/score.md."
        ),
    ] = None,
    margin: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[TASK=]SIZE",
            help="How large a difference counts as a change: 1se (one standard error, the default), 2se, or a distance such as 0.02.",
        ),
    ] = None,
    metric: Annotated[
        list[str] | None,
        typer.Option(
            metavar="TASK=NAME",
            help="The metric that a task of lm-eval or inspect is scored by; for inspect also 1-NAME, where lower is better.",
        ),
    ] = None,
    chance_corrected: Annotated[
        bool, typer.Option("--chance-corrected", help="Score (s − chance)/(1 − chance) where chance is known.")
    ] = False,
    common_items: Annotated[
        bool,
        typer.Option(
            "--common-items", help="Score the items that all models share, instead of refusing records that differ."
        ),
    ] = False,
    draws: Annotated[int, typer.Option(help="Number of bootstrap resamples.")] = 10_000,
    seed: Annotated[int, typer.Option(help="Seed of the bootstrap.")] = 0,
    confidence: Annotated[float, typer.Option(help="Confidence level of the intervals.")] = 0.95,
    as_json: Annotated[bool, typer.Option("--json", help="Print every figure as JSON.")] = False,
    html: Annotated[Path | None, typer.Option(help="Write an HTML page with tables and plots.")] = None,
    markdown_file: Annotated[Path | None, typer.Option("--markdown", help="Write the tables as Markdown.")] = None,
    latex_file: Annotated[Path | None, typer.Option("--latex", help="Write the tables as LaTeX.")] = None,
    csv: Annotated[Path | None, typer.Option(help="Write a CSV file with a line for every figure.")] = None,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="Print errors only.")] = False,
) -> None:
    """Score repairs by how much damage they heal and how much of the target they retain."""
    general, task_margins = _margins(margin or [])
    options: dict[str, Any] = {
        "margin": general,
        "task_margins": task_margins,
        "metrics": _named("--metric", metric),
        "chance_corrected": chance_corrected,
        "common_items": common_items,
        "draws": draws,
        "seed": seed,
        "confidence": confidence,
    }
    found: Score | CellsScore
    files = {"html": html, "markdown": markdown_file, "latex": latex_file, "csv": csv}
    if cells is not None:
        if any(given for given in (base, finetuned, repaired, target, target_file, benchmarks)):
            raise UsageError("--cells names all records; leave out --base, --finetuned, --repaired and --target")
        check_output_files(files, [cells, *files_of_cells(cells)])
        found = scoring.score_many(cells, **options)
    else:
        if base is None or finetuned is None or not repaired or target is None:
            raise UsageError("give --base, --finetuned, --repaired NAME=PATH and --target, or --cells FILE.yaml")
        repairs, of_target = _named("--repaired", repaired), _named("--target-file", target_file)
        check_output_files(files, [base, finetuned, *map(Path, (*repairs.values(), *of_target.values()))])
        found = scoring.score(
            base,
            finetuned,
            repairs,
            target=target,
            target_files=of_target or None,
            benchmarks=None if benchmarks is None else [name.strip() for name in benchmarks.split(",")],
            **options,
        )
    output = output_of_score(found)
    for path, text in (
        (html, output.html),
        (markdown_file, output.markdown),
        (latex_file, output.latex),
        (csv, output.csv),
    ):
        if path is not None:
            write_whole(path, text())
    if as_json:
        echo_json(found.model_dump_json(indent=1))
    else:
        print_tables(PlainConsole(quiet=quiet), output.tables, output.notes)


def _margins(texts: Sequence[str]) -> tuple[str, dict[str, str]]:
    """The margin of all tasks, and those of single tasks."""
    general, of_tasks = "1se", {}
    for text in texts:
        task, is_for_task, size = text.rpartition("=")
        if is_for_task:
            of_tasks[task] = size
        else:
            general = size
    return general, of_tasks


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


def print_tables(console: PlainConsole, tables: Sequence[Table], notes: Sequence[str]) -> None:
    """Tables and notes on a terminal; names stay text."""
    below = "\n[" if console.width < _WIDE else " ["
    for table in tables:
        first, *others = table.head
        shown = PlainTable(
            Column(Text(one_line(first)), overflow="fold"),
            *(Column(Text(one_line(name)), justify="right", overflow="fold") for name in others),
            title=Text(one_line(table.title)),
            title_justify="left",
            box=SIMPLE_HEAD,
            pad_edge=False,
            collapse_padding=True,
        )
        for name, *cells in table.rows:
            shown.add_row(Text(one_line(name)), *(Text(one_line(cell).replace(" [", below)) for cell in cells))
        console.print(shown)
    for note in notes:
        console.print(f"note: {note}")
