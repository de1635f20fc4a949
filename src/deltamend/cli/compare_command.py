"""`deltamend compare`: what each method keeps of the same update."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Column, Table

import deltamend
from deltamend.choosing.compare_methods import Comparison, choose_methods
from deltamend.cli.options import given_options, parameters_of, with_options
from deltamend.cli.terminal import progress_bar
from deltamend.errors import UsageError
from deltamend.machine.atomic import write_whole
from deltamend.methods.method import Method
from deltamend.methods.registry import get_method
from deltamend.repairing.options import PairOptions
from deltamend.report.compare_page import COLUMNS, compare_csv, method_row, render_compare_page


@with_options(PairOptions)
def compare(
    base: Annotated[str, typer.Argument(help="The checkpoint that fine-tuning started from: a folder or a hub id.")],
    finetuned: Annotated[
        str, typer.Argument(help="Its fine-tuned descendant; MODEL+ADAPTER for a model with a LoRA adapter.")
    ],
    methods: Annotated[
        str,
        typer.Option(help="all, or names separated by commas; parameters follow a colon, as in ties:density=0.1."),
    ] = "all",
    as_json: Annotated[bool, typer.Option("--json", help="Print every number as JSON.")] = False,
    csv: Annotated[Path | None, typer.Option(help="Write a CSV file with a line for each method and matrix.")] = None,
    html: Annotated[Path | None, typer.Option(help="Write an HTML page with the tables.")] = None,
    write: Annotated[
        str | None,
        typer.Option(help="Methods whose repaired checkpoint is to be written into --out; same form as --methods."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for --write; each method gets a folder of its own inside it.")
    ] = None,
    device: Annotated[str, typer.Option(help="Where spectral filters are computed: cpu, or cuda.")] = "cpu",
    workers: Annotated[
        int | None, typer.Option(min=1, help="Number of matrices worked on at a time; by default one for each core.")
    ] = None,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="Print errors only.")] = False,
    **chosen: Any,
) -> None:
    """Compare methods on one update, in one pass over the weights, without writing checkpoints."""
    wanted, not_written = choose_methods(_methods(write))
    if bool(wanted) != (out is not None):
        raise UsageError("--write and --out belong together: --write dg-hard,ties --out FOLDER")
    selection = given_options(chosen)
    with progress_bar(quiet, "comparing") as progress:
        found = deltamend.compare(
            base,
            finetuned,
            methods=_methods(methods),
            device=device,
            workers=workers,
            progress=progress,
            **selection,
        )
    if as_json:
        content = {"methods": [row.model_dump() for row in found.methods], **found.model_dump()}
        typer.echo(json.dumps(content, indent=1, ensure_ascii=False))
    else:
        _print(Console(quiet=quiet, highlight=False), found)
    for path, text in ((csv, compare_csv), (html, render_compare_page)):
        if path is not None:
            write_whole(path, text(found))
    if not quiet:
        for name, reason in not_written.items():
            typer.echo(f"not written: {name}, which {reason}", err=True)
    for method in wanted:
        folder = method.described().replace(" ", ",").replace("/", "_")
        with progress_bar(quiet, f"writing {method.name}") as progress:
            deltamend.repair(
                base,
                finetuned,
                Path(str(out)) / folder,
                method=method,
                device=device,
                workers=workers,
                progress=progress,
                **selection,
            )


def _methods(text: str | None) -> list[str | Method]:
    """`all`, or methods with commas between, each with its parameters after colons."""
    chosen: list[str | Method] = []
    for entry in filter(None, (part.strip() for part in (text or "").split(","))):
        name, *settings = entry.split(":")
        chosen.append(name if name == "all" else get_method(name, parameters_of(settings, "--methods")))
    return chosen


def _print(console: Console, found: Comparison) -> None:
    table = Table(Column(COLUMNS[0], no_wrap=True), *(Column(name, justify="right") for name in COLUMNS[1:]))
    for row in found.methods:
        table.add_row(*method_row(row))
    console.print(table, markup=False)
    for name, reason in found.left_out.items():
        console.print(f"not compared: {name}, which {reason}", markup=False)
