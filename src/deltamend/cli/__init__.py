"""The command line: one file a command, no logic of its own."""

from __future__ import annotations

import io
import os
import sys
import traceback

import typer

from deltamend.cli.compare import compare
from deltamend.cli.demo import demo
from deltamend.cli.evaluate import evaluate
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
app.command()(evaluate)
app.command()(demo)


_INTERRUPTED = 130
"""The exit code typer gives to a Ctrl-C, which it catches itself."""


def main() -> None:
    """Run the command line: exit 0 when done, 1 when it failed or was interrupted, 2 on wrong usage."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a terminal that cannot show a name is no reason to fail
    try:
        app()
    except DeltamendError as error:
        if "-vv" in sys.argv:
            traceback.print_exc()
        typer.echo(f"deltamend: {error}", err=True)
        sys.exit(2 if isinstance(error, UsageError) else 1)
    except SystemExit as ended:
        if ended.code != _INTERRUPTED:
            raise
        hint = "; the same command with --resume goes on" if sys.argv[1:2] in (["repair"], ["evaluate"]) else ""
        typer.echo(f"deltamend: interrupted{hint}", err=True)
        sys.stderr.flush()
        # Threads inside LAPACK cannot be stopped; a second Ctrl-C must not have to wait for them.
        os._exit(1)
