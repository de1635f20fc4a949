"""`deltamend compare`: compare what several methods keep of the same update."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Column

import deltamend
from deltamend.checkpoint.output_checks import check_output_files
from deltamend.choosing.compare_methods import Comparison, choose_methods
from deltamend.cli.options import given_options, parameters_of, with_options
from deltamend.cli.terminal import PlainConsole, PlainTable, echo, echo_json, progress_bar
from deltamend.errors import UsageError
from deltamend.inputs.open_models import paths_of
from deltamend.machine.atomic import write_whole
from deltamend.methods.method import Method
from deltamend.methods.registry import get_method
from deltamend.repairing.options import PairOptions
from deltamend.report.compare_page import COLUMNS, compare_csv, method_row, render_compare_page

EXAMPLES = """\b
Examples:
  deltamend compare BASE FINETUNED
  deltamend compare BASE FINETUNED --methods dg-hard,wise-ft:alpha=0.3,ties:density=0.1:weight=0.5
  deltamend compare BASE FINETUNED --write dg-hard,wise-ft --out REPAIRED
"""


@with_options(PairOptions)
def compare(
    base: Annotated[
        str,
        typer.Argument(
            metavar="BASE",
            help="The checkpoint that fine-tuning started from: a folder, a hub id org/name@revision, or a GGUF file.",
        ),
    ],
    finetuned: Annotated[
        str,
        typer.Argument(
            metavar="FINETUNED",
            help="The fine-tuned checkpoint, likewise; or MODEL+ADAPTER for a model with a LoRA adapter.",
        ),
    ],
    methods: Annotated[
        str,
        typer.Option(
            metavar="LIST",
            help="Names of methods, separated by commas, each with its parameters after colons, as in ties:density=0.1; or all, "
            "for every method that needs no parameter.",
        ),
    ] = "all",
    as_json: Annotated[bool, typer.Option("--json", help="Print all numbers as JSON.")] = False,
    csv: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write a CSV file with a line for each method and matrix.")
    ] = None,
    html: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the tables as an HTML page.")] = None,
    write: Annotated[
        str | None,
        typer.Option(
            metavar="LIST", help="Also write the checkpoints that these methods make; in the same form as --methods."
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="The folder for --write, in which each method gets a folder of its own."),
    ] = None,
    device: Annotated[
        str, typer.Option(metavar="DEVICE", help="Where spectral filters are computed: cpu, or a GPU such as cuda.")
    ] = "cpu",
    workers: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="NUMBER",
            help="Number of matrices worked on at a time; by default one for each core. It does not change the result.",
        ),
    ] = None,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="Print errors only.")] = False,
    **chosen: Any,
) -> None:
    """Compare what several methods keep of the same update. Nothing is written unless you ask for it.

    The table says for each method, over all matrices: the share of the update's energy that is kept, the share of the entries
    that differ from BASE, the mean rank, the distances of the result to BASE and to FINETUNED, and the time.
    """
    wanted, not_written = choose_methods(_methods(write))
    if bool(wanted) != (out is not None):
        raise UsageError("--write and --out belong together; give both, as in --write dg-hard,ties --out FOLDER")
    selection = given_options(chosen)
    check_output_files(
        {"csv": csv, "html": html}, [*paths_of(base), *paths_of(finetuned), *([] if out is None else [out])]
    )
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
        echo_json(json.dumps(content, indent=1, ensure_ascii=False))
    else:
        _print(PlainConsole(quiet=quiet), found)
    for path, text in ((csv, compare_csv), (html, render_compare_page)):
        if path is not None:
            write_whole(path, text(found))
    if not quiet:
        for name, reason in not_written.items():
            echo(f"not written: {name}, which {reason}", err=True)
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
    """Read a list of methods, separated by commas, each with its parameters after colons; `all` stays as it is."""
    chosen: list[str | Method] = []
    for entry in filter(None, (part.strip() for part in (text or "").split(","))):
        name, *settings = entry.split(":")
        chosen.append(name if name == "all" else get_method(name, parameters_of(settings, "--methods")))
    return chosen


def _print(console: PlainConsole, found: Comparison) -> None:
    table = PlainTable(Column(COLUMNS[0], no_wrap=True), *(Column(name, justify="right") for name in COLUMNS[1:]))
    for row in found.methods:
        table.add_row(*method_row(row))
    console.print(table)
    for name, reason in found.left_out.items():
        console.print(f"not compared: {name}, which {reason}")
