"""The command line: one file for each command, which calls the public functions and prints their results."""

from __future__ import annotations

import errno
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
from deltamend.cli.compare_command import COMPARE_EXAMPLES, compare
from deltamend.cli.demo_command import demo
from deltamend.cli.diagnose_command import DIAGNOSE_EXAMPLES, diagnose
from deltamend.cli.diff_command import DIFF_EXAMPLES, diff
from deltamend.cli.evaluate_command import evaluate
from deltamend.cli.inspect_command import inspect
from deltamend.cli.methods_command import methods
from deltamend.cli.options import spelled_on_command_line
from deltamend.cli.push_command import push
from deltamend.cli.repair_command import REPAIR_EXAMPLES, repair
from deltamend.cli.score_command import score
from deltamend.cli.streams import careful_streams
from deltamend.cli.study_command import study
from deltamend.cli.terminal import echo
from deltamend.cli.tune_command import TUNE_EXAMPLES, tune
from deltamend.cli.verify_command import verify
from deltamend.errors import DeltamendError, UsageError
from deltamend.machine.children import safe_children

app = typer.Typer(
    name="deltamend",
    help="Repair a fine-tuned language model after the fact, from its base and fine-tuned checkpoints alone.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def _print_version(asked: bool) -> None:
    if asked:
        echo(f"deltamend {__version__}")
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


app.command(epilog=REPAIR_EXAMPLES)(repair)
app.command()(verify)
app.command()(inspect)
app.command(epilog=DIFF_EXAMPLES)(diff)
app.command()(push)
app.add_typer(methods, name="methods")
app.command(epilog=COMPARE_EXAMPLES)(compare)
app.command(epilog=DIAGNOSE_EXAMPLES)(diagnose)
app.add_typer(calibrate, name="calibrate")
app.command()(evaluate)
app.command()(score)
app.command(epilog=TUNE_EXAMPLES)(tune)
app.command()(study)
app.command()(demo)


_INTERRUPTED = 130
"""The exit code of typer after a Ctrl-C, which typer catches itself."""


def main() -> None:
    """Run the command line. It exits with 0 on success, 1 after a failure or an interruption, and 2 after wrong usage."""
    with careful_streams() as output:
        code = _run()
        output.flush()
        if output.error is not None and output.error.errno != errno.EPIPE:  # nobody reads on: `deltamend … | head`
            echo(
                f"deltamend: standard output cannot be written ({output.error.strerror}); everything else that was asked for "
                f"is {'done' if code == 0 else 'as said above'}",
                err=True,
            )
        code = code or int(output.error is not None)
    if code:
        sys.exit(code)


def _run() -> int:
    """Run the command; return its exit code."""
    try:
        with _second_ctrl_c_ends_at_once(), safe_children():
            app()
    except DeltamendError as error:
        if "-vv" in sys.argv:
            traceback.print_exc()
        echo(f"deltamend: {error.spelled(spelled_on_command_line)}", err=True)
        return 2 if isinstance(error, UsageError) else 1
    except SystemExit as ended:
        return ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    return 0


@contextmanager
def _second_ctrl_c_ends_at_once() -> Iterator[None]:
    """Print a single line after a Ctrl-C, and end at once after a second one, wherever the program is by then."""
    usual = signal.getsignal(signal.SIGINT)
    # Only the main thread can set a handler, and a handler that somebody else has set, to ignore Ctrl-C, has to stay.
    handled_here = usual is signal.default_int_handler and threading.current_thread() is threading.main_thread()

    def first(_number: int, _frame: object) -> None:
        signal.signal(signal.SIGINT, second)
        raise KeyboardInterrupt

    def second(_number: int, _frame: object) -> None:
        os.write(2, f"{_interrupted()}\n".encode())  # not by sys.stderr, which may be in the middle of a write
        os._exit(1)

    if handled_here:
        signal.signal(signal.SIGINT, first)
    try:
        yield
    except (KeyboardInterrupt, SystemExit) as ended:
        if isinstance(ended, SystemExit) and ended.code != _INTERRUPTED:
            raise
        if handled_here:
            signal.signal(signal.SIGINT, signal.SIG_IGN)
        echo(_interrupted(), err=True)
        sys.stderr.flush()
        # A normal exit would wait for threads inside LAPACK, which cannot be stopped.
        os._exit(1)
    finally:
        if handled_here:
            signal.signal(signal.SIGINT, usual)


def _interrupted() -> str:
    can_resume = sys.argv[1:2] in (["repair"], ["evaluate"])
    hint = "; run the same command with --resume to continue" if can_resume else ""
    return f"deltamend: interrupted{hint}"
