"""The command line: one file a command, no logic of its own."""

from __future__ import annotations

import io
import os
import signal
import sys
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated

import typer

from deltamend import __version__
from deltamend.cli.calibrate_command import calibrate
from deltamend.cli.compare_command import compare
from deltamend.cli.demo_command import demo
from deltamend.cli.diagnose_command import diagnose
from deltamend.cli.diff_command import diff
from deltamend.cli.evaluate_command import evaluate
from deltamend.cli.inspect_command import inspect
from deltamend.cli.methods_command import methods
from deltamend.cli.options import spelled_on_command_line
from deltamend.cli.push_command import push
from deltamend.cli.repair_command import repair
from deltamend.cli.score_command import score
from deltamend.cli.study_command import study
from deltamend.cli.tune_command import tune
from deltamend.cli.verify_command import verify
from deltamend.errors import DeltamendError, UsageError

app = typer.Typer(
    name="deltamend",
    help="Repair a fine-tuned language model after the fact, from its base and fine-tuned checkpoints alone.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def _print_version(asked: bool) -> None:
    if asked:
        typer.echo(f"deltamend {__version__}")
        raise typer.Exit


@app.callback()
def start(
    _version: Annotated[
        bool,
        typer.Option(
            "--version", help="Print the version of deltamend and exit.", is_eager=True, callback=_print_version
        ),
    ] = False,
) -> None:
    """Repair a fine-tuned language model after the fact, from its base and fine-tuned checkpoints alone."""


app.command()(repair)
app.command()(verify)
app.command()(inspect)
app.command()(diff)
app.command()(push)
app.add_typer(methods, name="methods")
app.command()(compare)
app.command()(diagnose)
app.add_typer(calibrate, name="calibrate")
app.command()(evaluate)
app.command()(score)
app.command()(tune)
app.command()(study)
app.command()(demo)


_INTERRUPTED = 130
"""The exit code typer gives to a Ctrl-C, which it catches itself."""


def main() -> None:
    """Run the command line: exit 0 when done, 1 when it failed or was interrupted, 2 on wrong usage."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a terminal that cannot show a name is no reason to fail
    try:
        with _second_ctrl_c_ends_at_once():
            app()
    except DeltamendError as error:
        if "-vv" in sys.argv:
            traceback.print_exc()
        typer.echo(f"deltamend: {error.spelled(spelled_on_command_line)}", err=True)
        sys.exit(2 if isinstance(error, UsageError) else 1)


@contextmanager
def _second_ctrl_c_ends_at_once() -> Iterator[None]:
    """One line for a Ctrl-C, also when a second one comes while the first unwinds, which may be anywhere."""
    usual = signal.getsignal(signal.SIGINT)
    # Elsewhere than in the main thread no handler can be set, and one that ignores Ctrl-C is somebody's wish.
    ours = usual is signal.default_int_handler and threading.current_thread() is threading.main_thread()

    def first(_number: int, _frame: object) -> None:
        signal.signal(signal.SIGINT, second)
        raise KeyboardInterrupt

    def second(_number: int, _frame: object) -> None:
        os.write(2, f"{_interrupted()}\n".encode())  # the stream may be in the middle of a write
        os._exit(1)

    if ours:
        signal.signal(signal.SIGINT, first)
    try:
        yield
    except (KeyboardInterrupt, SystemExit) as ended:
        if isinstance(ended, SystemExit) and ended.code != _INTERRUPTED:
            raise
        if ours:
            signal.signal(signal.SIGINT, signal.SIG_IGN)
        typer.echo(_interrupted(), err=True)
        sys.stderr.flush()
        # Threads inside LAPACK cannot be stopped, and nobody should have to wait for them.
        os._exit(1)
    finally:
        if ours:
            signal.signal(signal.SIGINT, usual)


def _interrupted() -> str:
    hint = "; the same command with --resume goes on" if sys.argv[1:2] in (["repair"], ["evaluate"]) else ""
    return f"deltamend: interrupted{hint}"
