"""`deltamend push`: put a repaired model on the Hugging Face hub."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from deltamend.checkpoint.hub_upload import plan_upload, upload
from deltamend.cli.terminal import echo


def push(
    out: Annotated[Path, typer.Argument(help="The folder of a repaired model or adapter.")],
    repo: Annotated[str, typer.Argument(help="The repository on the Hugging Face hub, as org/name.")],
    yes: Annotated[
        bool, typer.Option("--yes", help="Upload. Without this option, only show what would be uploaded.")
    ] = False,
    public: Annotated[
        bool, typer.Option("--public", help="Make the repository public if it is new; by default it is private.")
    ] = False,
) -> None:
    """Verify OUT and upload it to the Hugging Face hub. Without --yes, only show what would be uploaded."""
    plan = plan_upload(out, repo, private=not public)
    if plan.local_base is not None:
        echo(
            f"note: adapter_config.json names {plan.local_base} as its base, which is a folder on this machine: others cannot load it",
            err=True,
        )
    if not yes:
        for file in plan.files:
            echo(f"  {file.size:>14,}  {file.name}")
        visibility = "private" if plan.private else "public"
        echo(
            f"would upload {len(plan.files)} files, {plan.nbytes / 1e6:,.1f} MB, to {plan.repo} ({visibility} if it is new); "
            "give --yes to upload it"
        )
        return
    echo(f"uploaded {out} to {upload(plan)}")
