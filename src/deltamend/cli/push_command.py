"""`deltamend push`: put a repaired model on the Hugging Face hub."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from deltamend.checkpoint.hub_upload import plan_upload, upload


def push(
    out: Annotated[Path, typer.Argument(help="A folder that deltamend wrote.")],
    repo: Annotated[str, typer.Argument(help="org/name on the Hugging Face hub.")],
    yes: Annotated[bool, typer.Option("--yes", help="Upload; without it nothing leaves this machine.")] = False,
    public: Annotated[bool, typer.Option("--public", help="Make a new repository public.")] = False,
) -> None:
    """Verify OUT and upload it; without --yes only say what would be uploaded."""
    plan = plan_upload(out, repo, private=not public)
    if plan.local_base is not None:
        typer.echo(f"note: adapter_config.json names {plan.local_base} as its base, a folder of this machine", err=True)
    if not yes:
        for file in plan.files:
            typer.echo(f"  {file.size:>14,}  {file.name}")
        visibility = "private" if plan.private else "public"
        typer.echo(
            f"would upload {len(plan.files)} files, {plan.nbytes / 1e6:,.1f} MB, to {plan.repo} ({visibility} if it is new); "
            "--yes does it"
        )
        return
    typer.echo(f"uploaded {out} to {upload(plan)}")
