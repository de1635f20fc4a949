"""`deltamend verify`: check a repaired model against its recorded hashes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from deltamend.checkpoint.verification import verify as verify_folder
from deltamend.cli.terminal import echo


def verify(out: Annotated[Path, typer.Argument(help="The folder of a repaired model or adapter.")]) -> None:
    """Check every file and tensor of OUT against the hashes recorded in its deltamend.json."""
    faults = verify_folder(out)
    for fault in faults:
        echo(f"{out}: {fault}", err=True)
    if faults:
        raise typer.Exit(1)
    echo(f"{out}: every file and tensor matches its recorded hash")
