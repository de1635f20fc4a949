"""Start other Python processes, which import nothing from the folder that the program runs in.

Python puts the current folder before its own library when it is started with `-c` or `-m`, as `multiprocessing` does. In a
folder that somebody else has filled, a file `multiprocessing.py` would run.
"""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

Child = subprocess.Popen[bytes]
"""A process that `python_child` started."""
SAFE_PATH = "PYTHONSAFEPATH"
"""The variable that keeps the current folder out of the paths that a Python process imports from."""


@contextmanager
def environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Within the block these environment variables are set, for this process and for those that it starts.

    Args:
        variables: the value of each by its name.
    """
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextmanager
def safe_children() -> Iterator[None]:
    """Within the block no Python process that this one starts, by whatever library, imports from the current folder."""
    with environment({SAFE_PATH: "1"}):
        yield


class Processes(NamedTuple):
    """Processes that wait for work, and a queue through which they can send messages.

    Attributes:
        executor: what work is handed to.
        messages: a queue that the processes share; its proxy has no public type.
    """

    executor: ProcessPoolExecutor
    messages: Any


@contextmanager
def fresh_processes(
    count: int, variables: Mapping[str, str], initializer: Callable[..., object], *arguments: Any
) -> Iterator[Processes]:
    """Processes that start afresh, and are ended with the block.

    Args:
        count: how many.
        variables: environment variables of theirs; libraries read some as they are imported.
        initializer: called first in each, with `arguments`.
        arguments: for the initializer.
    """
    context = multiprocessing.get_context("spawn")
    with (
        environment({**variables, SAFE_PATH: "1"}),
        context.Manager() as manager,
        ProcessPoolExecutor(count, mp_context=context, initializer=initializer, initargs=arguments) as executor,
    ):
        try:
            yield Processes(executor, manager.Queue())
        except BaseException:
            executor.shutdown(wait=False, cancel_futures=True)
            raise


def python_child(program: Path, *arguments: str, variables: Mapping[str, str] | None = None) -> Child:
    """Start a program of ours in a process of its own, which is spoken to over its stdin and stdout.

    Args:
        program: a Python file; it can import installed packages, and need not be able to import this one.
        arguments: of the program.
        variables: environment variables of its own.
    """
    return subprocess.Popen(  # noqa: S603 - our own program, by our own interpreter
        [sys.executable, "-P", os.fspath(program), *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={**os.environ, **(variables or {}), SAFE_PATH: "1"},
        start_new_session=True,  # a Ctrl-C is for the parent, which ends its child
    )
