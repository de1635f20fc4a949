"""`deltamend diff`: compare two checkpoints tensor by tensor."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Column

import deltamend
from deltamend.checkpoint.output_checks import check_output_files
from deltamend.cli.terminal import PlainConsole, PlainTable, counted, echo_json, progress_bar
from deltamend.inputs.open_models import paths_of
from deltamend.machine.atomic import write_whole
from deltamend.matrices.difference import Difference
from deltamend.report.csv_output import csv_text

EXAMPLES = """\b
Examples:
  deltamend diff BASE FINETUNED
  deltamend diff FINETUNED OUT --csv differences.csv
"""

_SHOWN = 20
_FIELDS = ("norm", "distance", "relative", "largest", "differing")


def diff(
    a: Annotated[
        str,
        typer.Argument(
            metavar="A", help="A checkpoint: a folder, a hub id org/name@revision, a GGUF file or MODEL+ADAPTER."
        ),
    ],
    b: Annotated[str, typer.Argument(metavar="B", help="Another checkpoint, likewise.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print all numbers as JSON.")] = False,
    table: Annotated[
        Path | None, typer.Option("--csv", metavar="FILE", help="Write a CSV file with a line for each tensor.")
    ] = None,
    verbose: Annotated[
        bool, typer.Option("-v", "--verbose", help=f"Print every tensor that differs, not only the first {_SHOWN}.")
    ] = False,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="Print errors only.")] = False,
) -> None:
    """Compare two checkpoints tensor by tensor, and print the largest differences first.

    Differences are measured by the Frobenius norm, ‖A−B‖, and relative to A, ‖A−B‖/‖A‖. Equal tensors are not listed.
    """
    check_output_files({"csv": table}, [*paths_of(a), *paths_of(b)])
    with progress_bar(quiet, "comparing") as progress:
        found = deltamend.diff(a, b, progress=progress)
    if table is not None:
        write_whole(table, _csv(found))
    if as_json:
        content = {"equal": found.equal, "relative": found.relative, **found.model_dump()}
        echo_json(json.dumps(content, indent=1, ensure_ascii=False))
        return
    _print(PlainConsole(quiet=quiet, soft_wrap=True), found, verbose)


def _print(console: PlainConsole, found: Difference, verbose: bool) -> None:
    for side, names in (("A", found.only_in_a), ("B", found.only_in_b)):
        for name in names:
            console.print(f"only in {side}: {name}")
    for name, (in_a, in_b) in found.other_shape.items():
        console.print(f"other shape: {name}, {list(in_a)} in A, {list(in_b)} in B")
    apart = [tensor for tensor in found.tensors if tensor.differing]
    if apart:
        table = PlainTable(Column("tensor", overflow="fold"), "‖A−B‖/‖A‖", "‖A−B‖", "max |A−B|", "entries that differ")
        for tensor in apart if verbose else apart[:_SHOWN]:
            figures = (_number(tensor.relative), _number(tensor.distance), _number(tensor.largest))
            table.add_row(tensor.name, *figures, f"{100 * tensor.differing:.2f} %")
        console.print(table)
        if len(apart) > _SHOWN and not verbose:
            console.print(f"and {len(apart) - _SHOWN} more; -v shows them")
    console.print(
        f"{len(apart)} of {counted(len(found.tensors), 'tensor')} differ; over all of them ‖A−B‖ is {found.relative:.3g} of ‖A‖"
        if not found.equal
        else f"all {len(found.tensors)} tensors are equal"
    )


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}"


def _csv(found: Difference) -> str:
    rows = (
        {
            "tensor": tensor.name,
            "shape": "x".join(str(size) for size in tensor.shape),
            "dtype_a": tensor.dtypes[0],
            "dtype_b": tensor.dtypes[1],
            **{field: getattr(tensor, field) for field in _FIELDS},
        }
        for tensor in found.tensors
    )
    return csv_text(["tensor", "shape", "dtype_a", "dtype_b", *_FIELDS], rows)
