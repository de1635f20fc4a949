"""`deltamend verify`: is what is on disk what was written."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from deltamend.checkpoint.verification import verify as verify_folder


def verify(out: Annotated[Path, typer.Argument(help="A folder that deltamend wrote.")]) -> None:
    """Check every file and tensor of OUT against its deltamend.json."""
    faults = verify_folder(out)
    for fault in faults:
        typer.echo(f"{out}: {fault}", err=True)
    if faults:
        raise typer.Exit(1)
    typer.echo(f"{out}: every file and tensor is as it was written")
