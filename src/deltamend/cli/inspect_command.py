"""`deltamend inspect`: list what is in a checkpoint."""

from __future__ import annotations

import json
from typing import Annotated

import typer
from rich.table import Column

from deltamend.cli.terminal import PlainConsole, PlainTable, echo_json
from deltamend.inputs.inspection import Contents, Total, inspect_folder


def inspect(
    checkpoint: Annotated[
        str, typer.Argument(help="Folder of a checkpoint or an adapter, or a model id of the Hugging Face hub.")
    ],
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
    verbose: Annotated[bool, typer.Option("-v", "--verbose", help="Also print a line for every tensor.")] = False,
) -> None:
    """List what is in a checkpoint, read from its headers alone."""
    found = inspect_folder(checkpoint)
    if as_json:
        content = {"total": found.total.model_dump(), **found.model_dump()}
        echo_json(json.dumps(content, indent=1, ensure_ascii=False))
        return
    _print(PlainConsole(soft_wrap=True), found, verbose)


def _print(console: PlainConsole, found: Contents, verbose: bool) -> None:
    console.print(f"{found.folder}: {found.architecture or 'no architecture named'} ({found.model_type or 'no type'})")
    console.print(_line("in all", found.total))
    if found.vocabulary is not None:
        console.print(f"vocabulary of {found.vocabulary}")
    if found.tied is not None:
        console.print(f"the head is tied to {found.tied}")
    if found.adapter_of is not None:
        console.print(f"an adapter to {found.adapter_of}")
    for field in ("dtype", "kind", "file"):
        groups = found.by(field)
        console.print(f"by {field}:")
        for name, total in list(groups.items())[:20]:
            console.print("  " + _line(name, total))
        if len(groups) > 20:
            console.print(f"  and {len(groups) - 20} more")
    if found.refused is not None:
        console.print(f"`deltamend repair` would refuse this checkpoint: {found.refused}")
    if verbose:
        table = PlainTable(Column("tensor", overflow="fold"), "kind", "dtype", "shape", "file")
        for tensor in found.tensors:
            shape = "×".join(str(size) for size in tensor.shape)
            table.add_row(tensor.name, tensor.kind, tensor.dtype, shape, tensor.file)
        console.print(table)


def _line(name: str, total: Total) -> str:
    return f"{name}: {total.parameters:,} parameters in {total.tensors:,} tensors, {total.nbytes / 1e6:,.1f} MB"
