"""What commands print: a progress bar on a terminal, and counts with their nouns."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as ProgressBar

from deltamend.progress import Progress


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
        yield lambda name, share: bar.update(task, completed=share, description=name)


def counted(count: int, singular: str, plural: str | None = None) -> str:
    """A number with its noun, such as "1 matrix" or "2 matrices".

    Args:
        count: the number.
        singular: the noun for one thing.
        plural: the noun for any other number; None to add an s to the singular.
    """
    return f"{count} {singular if count == 1 else plural or singular + 's'}"
