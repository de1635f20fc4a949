"""`deltamend methods`: what can be chosen with --method."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from deltamend.methods.registry import all_methods, method_class


def methods(name: Annotated[str | None, typer.Argument(help="Show one method's parameters.")] = None) -> None:
    """List the methods, or the parameters of one."""
    console = Console()
    if name is None:
        table = Table("method", "what it does", "source")
        for method in all_methods().values():
            table.add_row(method.name, method.summary, method.source)
        console.print(table)
        return
    chosen = method_class(name)
    console.print(f"{chosen.name}: {chosen.summary} ({chosen.source})", highlight=False)
    table = Table("parameter", "default", "meaning")
    for field, info in chosen.model_fields.items():
        table.add_row(field, str(info.get_default()), info.description or "")
    console.print(table if chosen.model_fields else "It has no parameters.")
