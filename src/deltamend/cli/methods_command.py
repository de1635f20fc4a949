"""`deltamend methods`: list the methods that can be chosen with --method, or show one."""

from __future__ import annotations

import inspect
import json
from typing import Annotated

import typer

from deltamend.cli.terminal import PlainConsole, PlainTable, echo_json
from deltamend.methods.pages import parameter_rows
from deltamend.methods.registry import all_methods, method_class

methods = typer.Typer(
    invoke_without_command=True, rich_markup_mode=None, help="List the repair methods, or show one with its parameters."
)


@methods.callback()
def list_methods(
    context: typer.Context, as_json: Annotated[bool, typer.Option("--json", help="Print the list as JSON.")] = False
) -> None:
    """List the repair methods, or show one with its parameters."""
    if context.invoked_subcommand is not None:
        return
    if as_json:
        rows = [
            {"name": method.name, "summary": method.summary, "source": method.source, "aliases": method.aliases}
            for method in all_methods().values()
        ]
        echo_json(json.dumps(rows, indent=1, ensure_ascii=False))
        return
    table = PlainTable("method", "what it does", "source")
    for method in all_methods().values():
        table.add_row(method.name, method.summary, method.source)
    PlainConsole().print(table)


@methods.command()
def show(
    name: Annotated[str, typer.Argument(help="The name of a method, or one of its aliases.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print the JSON schema of its parameters.")] = False,
) -> None:
    """Show what a method does, its source and its parameters."""
    chosen = method_class(name)
    if as_json:
        echo_json(json.dumps(chosen.model_json_schema(), indent=1, ensure_ascii=False))
        return
    console = PlainConsole()
    console.print(f"{chosen.name} ({chosen.source}): {chosen.summary}", soft_wrap=True)
    console.print_paragraphs(inspect.getdoc(chosen) or "")
    table = PlainTable("parameter", "default", "range", "meaning")
    rows = parameter_rows(chosen)
    for row in rows:
        table.add_row(*row)
    console.print(table if rows else "It has no parameters.")
