"""The errors a person can cause and cure: one line that names the file, tensor or field and says what to do.

An error's advice often names an option, and an option has two spellings: `out_dtype="fp32"` in Python and `--out-dtype fp32` on the
command line. So the library writes `option("out_dtype", "fp32")` into its text, and whoever shows the error spells it.
"""

from __future__ import annotations

import re
from collections.abc import Callable

Spelling = Callable[[str, str | None], str]
"""How an option is written, from its name in Python and its value; the value is None where only the name is meant."""

# From Unicode's private use area, so that no name of a file or tensor is taken for an option.
_OPEN, _CLOSE = "\ue000", "\ue001"
_OPTION = re.compile(f"{_OPEN}([a-z_]+)(?:=([^{_CLOSE}]*))?{_CLOSE}")


def option(name: str, value: str | None = None) -> str:
    """An option as part of an error's text; `DeltamendError` spells it for the reader.

    Args:
        name: the name of the argument in Python, such as "out_dtype".
        value: the value that is advised, such as "fp32"; None where only the option itself is meant.
    """
    return f"{_OPEN}{name}{_CLOSE}" if value is None else f"{_OPEN}{name}={value}{_CLOSE}"


def spelled_in_python(name: str, value: str | None) -> str:
    """An option as an argument of a Python call: `out_dtype="fp32"`."""
    if value is None:
        return name
    return f"{name}={value}" if value in ("True", "False") or value.isdigit() else f'{name}="{value}"'


class DeltamendError(Exception):
    """Base of every error deltamend raises on purpose. The command line prints its text and exits 1."""

    def __str__(self) -> str:
        return self.spelled(spelled_in_python)

    def spelled(self, spelling: Spelling) -> str:
        """The text of the error, with the options that it names spelled in this way."""
        return spell(super().__str__(), spelling)


def spell(text: str, spelling: Spelling) -> str:
    """A text with the options that it names spelled in this way."""
    return _OPTION.sub(lambda found: spelling(found[1], found[2]), text)


class CheckpointError(DeltamendError):
    """A checkpoint cannot be read: it is missing, truncated, corrupt, quantised, or points outside its folder."""


class PairingError(DeltamendError):
    """BASE and FINETUNED do not belong together: they differ in architecture or shapes, or share no tensor."""


class OutputError(DeltamendError):
    """OUT cannot be written: it exists already, lies inside an input, or the disk is full."""


class UsageError(DeltamendError):
    """An option has an invalid value. The command line exits 2."""


class MethodError(UsageError):
    """There is no such method, or one of its parameters is invalid."""


class FilterError(DeltamendError):
    """A tensor cannot be filtered: it holds NaN or Inf, or no algorithm gave a result that passes its checks."""


class EvaluationError(DeltamendError):
    """An evaluation cannot be made, read or compared: a damaged record, an unknown task, items that do not match."""
