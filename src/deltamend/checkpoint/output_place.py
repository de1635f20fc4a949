"""Where OUT and its work folder may lie, and what a failed write means for a person."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from deltamend.errors import OutputError


def work_folder_of(out: Path) -> Path:
    """The work folder beside OUT."""
    whole = Path(os.path.abspath(out))  # noqa: PTH100 - resolve() would follow a link that OUT is
    return whole.with_name(f".{whole.name}.deltamend-partial")


def check_output(out: Path, inputs: Sequence[Path], *, overwrite: bool) -> None:
    """Refuse an OUT that would harm an input or something that is already there.

    Raises:
        OutputError: OUT or its work folder is, lies inside or holds an input; OUT is a file, the root, a mount point, or
            not empty without `overwrite`.
    """
    if not Path(os.path.abspath(out)).name or os.path.ismount(out):  # noqa: PTH100 - see work_folder_of
        raise OutputError(f"{out}: cannot be put in place by a rename; give a folder inside it")
    for place in (Path(os.path.realpath(out)), Path(os.path.realpath(work_folder_of(out)))):
        for source in inputs:
            other = Path(os.path.realpath(source))
            if place.is_relative_to(other) or other.is_relative_to(place):
                raise OutputError(
                    f"{out}: is, lies inside or holds the input {source} (or its work folder {place.name} does); "
                    "give a folder outside the inputs"
                )
    with output_errors(out):
        if out.is_symlink() or (out.exists() and not out.is_dir()):
            raise OutputError(f"{out}: exists and is not a folder; give another OUT")
        if not overwrite and out.is_dir() and any(out.iterdir()):
            raise OutputError(
                f"{out}: exists and is not empty; give another OUT, or --overwrite to replace it once the new one is whole"
            )


@contextmanager
def output_errors(path: Path) -> Iterator[None]:
    """Turn what the operating system says into one line."""
    try:
        yield
    except OSError as error:
        if error.errno in {errno.ENOSPC, errno.EDQUOT}:
            raise OutputError(f"{path}: the disk is full; free space there or give another OUT") from error
        raise OutputError(
            f"{path}: cannot be written ({error.strerror}); check its permissions or give another OUT"
        ) from error
