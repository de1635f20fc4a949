"""The command line in a fork of this process, which has imported everything: for fault runs of hundreds of commands."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import NoReturn

FAILED = 99
"""The exit code where the command line ended in an exception instead of an exit code of its own."""


def become_command_line(arguments: list[str], open_streams: Callable[[], None], tell: Callable[[], None]) -> NoReturn:
    """Run `deltamend` with these arguments in this process, a fork, and end it with the exit code.

    `open_streams` sets the standard streams, and limits if there are any. `tell` writes the exception that is being handled.
    """
    code = FAILED
    try:
        open_streams()
        sys.argv = ["deltamend", *arguments]
        from deltamend.cli import main

        try:
            main()
            code = 0
        except SystemExit as ended:
            code = ended.code if isinstance(ended.code, int) else 1
        except BaseException:
            tell()
        if sys.stderr is not None:
            sys.stderr.flush()
    finally:
        os._exit(code)
