"""`deltamend recipes`: list the training recipes that can be chosen with --recipe, or show one."""

from __future__ import annotations

import inspect
import json
from typing import Annotated

import typer

from deltamend.cli.terminal import PlainConsole, PlainTable, echo_json
from deltamend.recipes.pages import example_command, needs_of, setting_rows
from deltamend.recipes.registry import all_recipes, recipe_class

recipes = typer.Typer(
    invoke_without_command=True, rich_markup_mode=None, help="List the training recipes, or show one with its settings."
)


@recipes.callback()
def list_recipes(
    context: typer.Context, as_json: Annotated[bool, typer.Option("--json", help="Print the list as JSON.")] = False
) -> None:
    """List the training recipes, or show one with its settings."""
    if context.invoked_subcommand is not None:
        return
    if as_json:
        rows = [
            {"name": one.name, "summary": one.summary, "source": one.source, "needs": one.needs}
            for one in all_recipes().values()
        ]
        echo_json(json.dumps(rows, indent=1, ensure_ascii=False))
        return
    table = PlainTable("recipe", "what it does", "source")
    for one in all_recipes().values():
        table.add_row(one.name, one.summary, one.source)
    PlainConsole().print(table)


@recipes.command()
def show(
    name: Annotated[str, typer.Argument(help="The name of a recipe.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print the JSON schema of its settings.")] = False,
) -> None:
    """Show what a recipe does, its source, what it needs and its settings."""
    chosen = recipe_class(name)
    if as_json:
        echo_json(json.dumps(chosen.model_json_schema(), indent=1, ensure_ascii=False))
        return
    console = PlainConsole()
    console.print(f"{chosen.name} ({chosen.source}): {chosen.summary}", soft_wrap=True)
    console.print_paragraphs(f"{inspect.getdoc(chosen)}\n\n{needs_of(chosen)}")
    table = PlainTable("setting", "default", "range", "meaning")
    rows = setting_rows(chosen)
    for row in rows:
        table.add_row(*row)
    console.print(table if rows else "It has no settings.")
    console.print(example_command(chosen), soft_wrap=True)
