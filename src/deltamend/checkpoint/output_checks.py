"""Outputs against inputs: where OUT, its work folder and any other output may be, and one line for a write that fails.

An input is a file or a folder. What its links lead to belongs to it, such as the blobs of a hub snapshot. Places are compared by
device and inode, so that neither a link, nor a second mount, nor a hard link hides that two paths mean one place.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from deltamend.errors import OutputError, option
from deltamend.machine.regular_files import too_many_open

Inode = tuple[int, int]
"""Device and number."""


def work_folder_of(out: Path) -> Path:
    """The path of the work folder, which is beside OUT."""
    whole = Path(os.path.abspath(out))  # noqa: PTH100 - resolve() would follow a link that OUT is
    return whole.with_name(f".{whole.name}.deltamend-partial")


def check_output(out: Path, inputs: Sequence[Path], *, overwrite: bool) -> None:
    """Refuse an OUT that would overwrite an input or anything else that exists.

    Raises:
        OutputError: OUT or its work folder is an input or what a link of one leads to, is inside one, or contains one; OUT is
            a file, the root or a mount point; or OUT is not empty and `overwrite` is not set.
    """
    if not Path(os.path.abspath(out)).name or os.path.ismount(out):  # noqa: PTH100 - see work_folder_of
        raise OutputError(
            f"{out}: is the root or a mount point, which a rename cannot replace; give a folder inside it"
        )
    refuse_inputs_at({"OUT": out, "the folder that OUT is made in": work_folder_of(out)}, inputs)
    with output_errors(out):
        if out.is_symlink() or (out.exists() and not out.is_dir()):
            raise OutputError(f"{out}: exists and is not a folder; give another OUT")
        if not overwrite and out.is_dir() and any(out.iterdir()):
            raise OutputError(
                f"{out}: exists and is not empty; give another OUT, or {option('overwrite', 'True')} to replace it once the new one is complete"
            )


def refuse_inputs_at(places: Mapping[str, Path], inputs: Sequence[Path]) -> None:
    """Refuse folders to be replaced or filled that touch an input.

    Args:
        places: the folders, by what the error calls them.
        inputs: the files and folders that are read; those that do not exist are left out.

    Raises:
        OutputError: a folder is an input or what a link of one leads to, is inside one, or contains one.
    """
    sources = [_Source(source) for source in inputs if os.path.exists(source)]  # noqa: PTH110 - Path.exists may raise
    for what, place in places.items():
        held = _inodes_in(place)
        for source in sources:
            if how := source.touched_by(place, held):
                raise OutputError(f"{place}: {what} {how} the input {source.given}; give a folder outside the inputs")


def refuse_inside(folder: Path, inputs: Sequence[Path]) -> None:
    """Refuse a folder to write into that is an input or lies inside one; inputs may lie inside it.

    Raises:
        OutputError: it does.
    """
    for source in (_Source(source) for source in inputs if os.path.exists(source)):  # noqa: PTH110 - see above
        if (how := source.touched_by(folder, set())) in {"is", "lies inside"}:
            raise OutputError(f"{folder}: {how} the input {source.given}; give a folder outside the inputs")


def check_output_file(out: Path, inputs: Sequence[Path], *, overwrite: bool) -> None:
    """Refuse an output file that would overwrite an input or anything else that exists.

    Args:
        out: the file. A link there is replaced and not followed; its target is looked at too, as whoever gives it means that.
        inputs: the files and folders that are read; those that do not exist are left out.
        overwrite: whether a file that is there may be replaced.

    Raises:
        OutputError: `out` is an input, another name of one, or lies in one; it exists, and is not a file or may not be
            replaced; or its folder does not exist.
    """
    parent = out.absolute().parent
    if not parent.is_dir():
        raise OutputError(f"{out}: its folder does not exist; make it, or give another name")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise OutputError(f"{out}: cannot be written (no permission in {parent}); give a file in another folder")
    for source in (_Source(source) for source in inputs if os.path.exists(source)):  # noqa: PTH110 - see above
        for place in (out.parent.resolve() / out.name, Path(os.path.realpath(out))):
            if source.touched_by(place, _inodes_in(place)):
                raise OutputError(f"{out}: is or belongs to the input {source.given}; give a file outside the inputs")
    if os.path.lexists(out):
        if not out.is_file():
            raise OutputError(f"{out}: exists and is not a file; give another name")
        if not overwrite:
            raise OutputError(f"{out}: exists; give another name, or {option('overwrite', 'True')} to replace it")


def check_output_files(files: Mapping[str, Path | None], inputs: Sequence[Path]) -> None:
    """Refuse the further files of a command, such as its page and its table, before the work begins.

    A file that is there is replaced, unless it is an input or another output.

    Args:
        files: each file by the option that names it; None where it is not asked for.
        inputs: see `check_output_file`; OUT and whatever else is written may be among them.

    Raises:
        OutputError: see `check_output_file`; or two of the files are one.
    """
    seen: dict[Path, str] = {}
    for name, file in files.items():
        if file is None:
            continue
        check_output_file(file, inputs, overwrite=True)
        place = Path(os.path.realpath(file))
        if place in seen:
            raise OutputError(f"{file}: is given to {option(seen[place])} and to {option(name)}; give two names")
        seen[place] = name


class _Source:
    """An input, and every place that reading it leads to."""

    def __init__(self, given: Path) -> None:
        self.given = given
        self._real = Path(os.path.realpath(given))
        self._self = _inode(self._real)
        self._files: set[Inode] = set()
        self._above = set(_inodes_above(self._real))
        self._linked: set[Inode] = set()
        for entry, kind in _walk(self._real):
            if stat.S_ISLNK(kind):
                target = Path(os.path.realpath(entry))
                self._linked |= {found for found in (_inode(target),) if found is not None}
                self._above |= set(_inodes_above(target))
            elif stat.S_ISREG(kind) and (found := _inode(entry)) is not None:
                self._files.add(found)

    def touched_by(self, place: Path, held: set[Inode]) -> str:
        """How a place touches this input, as the middle of a sentence; "" where it does not.

        Args:
            place: of an output, which need not exist.
            held: the inodes of the files that are there.
        """
        own = _inode(place)
        if own is not None and own == self._self:
            return "is"
        if self._self in set(_inodes_above(Path(os.path.realpath(place)))):
            return "lies inside"
        if own is not None and own in self._linked | self._files:
            return "is what a link leads to in"
        if own is not None and own in self._above:
            return "contains"
        return "holds a file of" if held & (self._files | self._linked) else ""


def _inode(path: Path) -> Inode | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _inodes_above(path: Path) -> Iterator[Inode]:
    """Those of the folders that a path lies in, as far as they exist."""
    return (found for place in path.parents if (found := _inode(place)) is not None)


def _inodes_in(place: Path) -> set[Inode]:
    """Those of the files of a folder."""
    return {found for entry, kind in _walk(place) if stat.S_ISREG(kind) and (found := _inode(entry)) is not None}


def _walk(folder: Path) -> Iterator[tuple[Path, int]]:
    """Everything in a folder and its subfolders, with its kind; links are not followed, and what cannot be listed is left out."""
    waiting = [folder]
    while waiting:
        with suppress(OSError), os.scandir(waiting.pop()) as entries:
            for entry in entries:
                kind = entry.stat(follow_symlinks=False).st_mode
                yield Path(entry.path), kind
                if stat.S_ISDIR(kind):
                    waiting.append(Path(entry.path))


@contextmanager
def output_errors(path: Path) -> Iterator[None]:
    """Turn an error of the operating system into an `OutputError` that names `path`."""
    try:
        yield
    except OSError as error:
        if error.errno in {errno.ENOSPC, errno.EDQUOT}:
            raise OutputError(f"{path}: the disk is full; free space there or give another OUT") from error
        if too_many := too_many_open(error):
            raise OutputError(f"{path}: cannot be written, {too_many}") from error
        raise OutputError(
            f"{path}: cannot be written ({error.strerror}); check its permissions or give another OUT"
        ) from error
