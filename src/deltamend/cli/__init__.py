"""The command line: one file a command, no logic of its own."""

from __future__ import annotations

import os
import sys
import traceback

import typer

from deltamend.cli.compare import compare
from deltamend.cli.demo import demo
from deltamend.cli.methods import methods
from deltamend.cli.repair import repair
from deltamend.cli.verify import verify
from deltamend.errors import DeltamendError, UsageError

app = typer.Typer(
    name="deltamend",
    help="Repair a fine-tuned language model after the fact, from its base and fine-tuned checkpoints alone.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.command()(repair)
app.command()(verify)
app.add_typer(methods, name="methods")
app.command()(compare)
app.command()(demo)


def main() -> None:
    """Run the command line: exit 0 when done, 1 when it failed, 2 on wrong usage."""
    try:
        app()
    except (DeltamendError, KeyboardInterrupt) as error:
        if "-vv" in sys.argv:
            traceback.print_exc()
        interrupted = isinstance(error, KeyboardInterrupt)
        message = "interrupted; the same command with --resume goes on" if interrupted else str(error)
        typer.echo(f"deltamend: {message}", err=True)
        sys.stderr.flush()
        if isinstance(error, UsageError):
            sys.exit(2)
        # Threads inside LAPACK cannot be stopped; a second Ctrl-C must not have to wait for them.
        os._exit(1) if interrupted else sys.exit(1)
