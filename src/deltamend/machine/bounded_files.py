"""Read a whole file that somebody else may have made: regular files only, and no more of it than its kind needs."""

from __future__ import annotations

import errno
import lzma
import os
import zlib
from collections.abc import Iterator
from pathlib import Path

from deltamend.machine.regular_files import open_regular

_GZIP, _XZ = b"\x1f\x8b", b"\xfd7zXZ"
_RATIO, _ALWAYS = 200, 10_000_000
"""Times its size that a packed file may unpack to, and the bytes that any may: records of evaluations reach 40 times."""


class UnreadableError(Exception):
    """A file cannot be read, or should not be; the text is the reason, without the file's name, fit to stand in brackets."""


def entries_below(folder: Path, deepest: int = 50) -> Iterator[Path]:
    """Everything in a folder and in the folders in it, which are not entered where they are links.

    Args:
        folder: the folder.
        deepest: how many levels it may have.

    Raises:
        UnreadableError: it cannot be listed, or has more levels.
    """
    level = [folder]
    for _ in range(deepest):
        try:
            entries = [path for one in level for path in sorted(one.iterdir())]
        except OSError as error:
            raise UnreadableError(error.strerror) from error
        yield from entries
        level = [path for path in entries if path.is_dir() and not path.is_symlink()]
        if not level:
            return
    raise UnreadableError(f"folders in more than {deepest} levels")


def read_bytes(path: Path, most: int) -> bytes:
    """The content of a regular file. A pipe, a socket or a device is never waited for.

    Args:
        path: the file; a link is followed.
        most: bytes that it may have.

    Raises:
        UnreadableError: it is missing, no regular file, larger, or cannot be read.
    """
    try:
        with os.fdopen(open_regular(path), "rb") as file:
            content = file.read(most + 1)  # what the system says of the size of a file in /proc is 0
    except OSError as error:
        if error.errno == errno.EINVAL:  # which `open_regular` says of pipes, folders and devices
            raise UnreadableError("not a regular file") from None
        raise UnreadableError(error.strerror) from error
    except ValueError as error:  # a NUL in the name
        raise UnreadableError(str(error)) from error
    except MemoryError as error:
        raise UnreadableError("larger than the free memory") from error
    if len(content) > most:
        raise UnreadableError(f"larger than {most:,} bytes, far more than such a file needs")
    return content


def read_text(path: Path, most: int) -> str:
    """The content of a regular file of text in UTF-8; see `read_bytes` for what is raised, also where it is no such text."""
    try:
        return read_bytes(path, most).decode("utf-8")
    except UnicodeDecodeError as error:
        raise UnreadableError(f"not UTF-8 at byte {error.start}") from error


def read_unpacked(path: Path, most: int) -> bytes:
    """The content of a regular file, unpacked where its first bytes are those of gzip or xz.

    Args:
        path: the file.
        most: bytes that it may have once it is unpacked.

    Raises:
        UnreadableError: see `read_bytes`; or it is damaged, breaks off, or unpacks to more, or to much more than records do.
    """
    content = read_bytes(path, most)
    packed_by_gzip = content.startswith(_GZIP)
    if not packed_by_gzip and not content.startswith(_XZ):
        return content
    limit = min(most, max(_ALWAYS, _RATIO * len(content)))
    unpacker = zlib.decompressobj(wbits=31) if packed_by_gzip else lzma.LZMADecompressor(memlimit=1 << 28)
    try:
        found = unpacker.decompress(content, limit + 1)
    except (zlib.error, lzma.LZMAError, EOFError) as error:
        raise UnreadableError(f"damaged: {error}") from error
    if len(found) > limit:
        raise UnreadableError(f"unpacks to more than {limit:,} bytes, far more than such a file needs")
    if not unpacker.eof:
        raise UnreadableError("breaks off")
    return found
