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

from deltamend.cli.commands import command_line, wanted_by
from deltamend.cli.streams import careful_streams
from deltamend.errors import DeltamendError, UsageError
from deltamend.machine.children import safe_children

_INTERRUPTED = 130
"""The exit code of typer after a Ctrl-C, which typer catches itself."""


def main() -> None:
    """Run the command line. It exits with 0 on success, 1 after a failure or an interruption, and 2 after wrong usage."""
    with careful_streams() as output:
        code = _run()
        output.flush()
        if output.error is not None and output.error.errno != errno.EPIPE:  # nobody reads on: `deltamend … | head`
            _tell(
                f"deltamend: standard output cannot be written ({output.error.strerror}); everything else that was asked for "
                f"is {'done' if code == 0 else 'as said above'}"
            )
        code = code or int(output.error is not None)
    if code:
        sys.exit(code)


def _tell(line: str) -> None:
    """Print a line to standard error."""
    from deltamend.cli.terminal import echo

    echo(line, err=True)


def _run() -> int:
    """Run the command; return its exit code."""
    try:
        with _second_ctrl_c_ends_at_once(), safe_children():
            command_line(wanted_by(sys.argv[1:]))()
    except DeltamendError as error:
        if "-vv" in sys.argv:
            traceback.print_exc()
        from deltamend.cli.options import spelled_on_command_line

        _tell(f"deltamend: {error.spelled(spelled_on_command_line)}")
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
        _tell(_interrupted())
        sys.stderr.flush()
        # A normal exit would wait for threads inside LAPACK, which cannot be stopped.
        os._exit(1)
    finally:
        if handled_here:
            signal.signal(signal.SIGINT, usual)


def _interrupted() -> str:
    can_resume = sys.argv[1:2] in (["repair"], ["evaluate"], ["finetune"])
    hint = "; run the same command with --resume to continue" if can_resume else ""
    return f"deltamend: interrupted{hint}"
