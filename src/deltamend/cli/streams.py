"""Standard output and error that may be full, closed or a pipe that nobody reads: what else a command does goes on."""

from __future__ import annotations

import errno
import io
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO


class CarefulStream:
    """A stream for text that takes note of the first error and writes nothing after it.

    Args:
        stream: the stream to write to; None where it is closed.
        number: its file descriptor as the system counts them, 1 or 2.
    """

    def __init__(self, stream: TextIO | None, number: int) -> None:
        self.error: OSError | None = None
        self._number = number
        self._closed = stream is None
        self._stream: TextIO = open(os.devnull, "w", encoding="utf-8") if stream is None else stream  # noqa: PTH123, SIM115

    def write(self, text: str) -> int:
        """Write `text`, or nothing after an error."""
        if not isinstance(text, str):
            raise TypeError("a stream for text")
        if self._closed and text:
            self._take_note(OSError(errno.EBADF, "it is closed"))
        if self.error is None:
            try:
                self._stream.write(text)
            except (OSError, ValueError) as error:
                self._take_note(error)
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        """Write each of `lines`."""
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        """Hand on what was written."""
        if self.error is None:
            try:
                self._stream.flush()
            except (OSError, ValueError) as error:
                self._take_note(error)

    def _take_note(self, error: OSError | ValueError) -> None:
        self.error = error if isinstance(error, OSError) else OSError(errno.EBADF, "it is closed")
        if not self._closed:
            # What is in the stream's buffer would be tried again at the end of the process, and fail once more.
            with suppress(OSError), open(os.devnull, "wb") as nowhere:  # noqa: PTH123
                os.dup2(nowhere.fileno(), self._number)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextmanager
def careful_streams() -> Iterator[CarefulStream]:
    """Replace standard output and error by careful ones while the block runs; yield the one for output."""
    _open_what_is_closed()
    before = sys.stdout, sys.stderr
    for stream in before:
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a name that the terminal cannot show is printed escaped
    out, err = CarefulStream(sys.stdout, 1), CarefulStream(sys.stderr, 2)
    sys.stdout, sys.stderr = out, err
    try:
        yield out
    finally:
        out.flush()
        err.flush()
        sys.stdout, sys.stderr = before


def _open_what_is_closed() -> None:
    """Put something in the place of a closed descriptor: the next file that is opened would get its number, and all prints."""
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # which takes the lowest number that is free
