"""Where OUT and its work folder may be, and one line for a write that fails."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from deltamend.errors import OutputError, option


def work_folder_of(out: Path) -> Path:
    """The path of the work folder, which is beside OUT."""
    whole = Path(os.path.abspath(out))  # noqa: PTH100 - resolve() would follow a link that OUT is
    return whole.with_name(f".{whole.name}.deltamend-partial")


def check_output(out: Path, inputs: Sequence[Path], *, overwrite: bool) -> None:
    """Refuse an OUT that would overwrite an input or anything else that exists.

    Raises:
        OutputError: OUT or its work folder is an input, is inside one, or contains one; OUT is a file, the root or a mount
            point; or OUT is not empty and `overwrite` is not set.
    """
    if not Path(os.path.abspath(out)).name or os.path.ismount(out):  # noqa: PTH100 - see work_folder_of
        raise OutputError(
            f"{out}: is the root or a mount point, which a rename cannot replace; give a folder inside it"
        )
    places = {"OUT": out, "the folder that OUT is made in": work_folder_of(out)}
    for what, place in ((what, Path(os.path.realpath(place))) for what, place in places.items()):
        for source in inputs:
            other = Path(os.path.realpath(source))
            if place.is_relative_to(other) or other.is_relative_to(place):
                how = "is" if place == other else "lies inside" if place.is_relative_to(other) else "contains"
                raise OutputError(f"{out}: {what} {how} the input {source}; give a folder outside the inputs")
    with output_errors(out):
        if out.is_symlink() or (out.exists() and not out.is_dir()):
            raise OutputError(f"{out}: exists and is not a folder; give another OUT")
        if not overwrite and out.is_dir() and any(out.iterdir()):
            raise OutputError(
                f"{out}: exists and is not empty; give another OUT, or {option('overwrite', 'True')} to replace it once the new one is complete"
            )


@contextmanager
def output_errors(path: Path) -> Iterator[None]:
    """Turn an error of the operating system into an `OutputError` that names `path`."""
    try:
        yield
    except OSError as error:
        if error.errno in {errno.ENOSPC, errno.EDQUOT}:
            raise OutputError(f"{path}: the disk is full; free space there or give another OUT") from error
        raise OutputError(
            f"{path}: cannot be written ({error.strerror}); check its permissions or give another OUT"
        ) from error
