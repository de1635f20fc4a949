"""What commands print: a progress bar on a terminal, and counts with their nouns."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TextIO

from rich.console import Console
from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as ProgressBar
from rich.table import Table
from rich.text import Text

from deltamend.machine.escaping import one_line, printable_json
from deltamend.progress import Progress


class PlainConsole(Console):
    """A console on which text is only text: no markup, no emoji names, and nothing that a terminal obeys.

    Args:
        options: those of rich's own console.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"highlight": False, "markup": False, "emoji": False, **options})

    def print(self, *objects: Any, **options: Any) -> None:
        """Print a line of text, or what rich can draw. A line end in a text is shown as such; give each line by itself."""
        super().print(*(one_line(one) if isinstance(one, str) else one for one in objects), **options)

    def print_paragraphs(self, text: str) -> None:
        """Print text whose paragraphs are parted by empty lines, each filled anew to the width of the terminal and after an empty line."""
        for paragraph in text.split("\n\n"):
            super().print()
            self.print(" ".join(paragraph.split()))


class PlainTable(Table):
    """A table whose cells are only text, each in one line."""

    def add_row(self, *cells: Any, **options: Any) -> None:
        """Add a row; text in it is shown as it stands."""
        shown = (Text(one_line(cell)) if isinstance(cell, str) else cell for cell in cells)
        super().add_row(*shown, **options)


def echo(text: str, *, err: bool = False) -> None:
    """Print one line of text, on standard error if `err`."""
    _write(one_line(text), sys.stderr if err else sys.stdout)


def echo_json(text: str) -> None:
    """Print JSON to standard output."""
    _write(printable_json(text), sys.stdout)


def _write(text: str, stream: TextIO) -> None:
    stream.write(f"{text}\n")
    stream.flush()


@contextmanager
def progress_bar(quiet: bool, doing: str) -> Iterator[Progress]:
    """Show a progress bar if the output goes to a terminal.

    Args:
        quiet: show nothing in any case.
        doing: what the command is doing, such as "repairing".

    Yields:
        The callback that moves the bar.
    """
    columns = (
        TextColumn(doing),
        BarColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.description}", markup=False),
    )
    console = Console(stderr=True)
    with ProgressBar(*columns, console=console, disable=quiet or not console.is_terminal, transient=True) as bar:
        task = bar.add_task("", total=1.0)
        yield lambda name, share: bar.update(task, completed=share, description=one_line(name))


def counted(count: int, singular: str, plural: str | None = None) -> str:
    """A number with its noun, such as "1 matrix" or "2 matrices".

    Args:
        count: the number.
        singular: the noun for one thing.
        plural: the noun for any other number; None to add an s to the singular.
    """
    return f"{count} {singular if count == 1 else plural or singular + 's'}"
