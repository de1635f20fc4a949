"""The errors that a user can cause and fix. Each is one line that names the file, tensor or field and says what to do.

The advice in an error often names an option, and an option is written differently in Python, `out_dtype="fp32"`, and on the
command line, `--out-dtype fp32`. The library therefore puts `option("out_dtype", "fp32")` into the text of an error, and the
code that shows the error chooses the spelling.
"""

from __future__ import annotations

import re
from collections.abc import Callable

Spelling = Callable[[str, str | None], str]
"""Writes an option, given its name in Python and its value. The value is None where only the name is mentioned."""

# Characters of Unicode's private use area mark an option in a text. Names of tensors cannot be mistaken for an option, as errors
# quote them with repr(), which escapes such characters.
_OPEN, _CLOSE = "\ue000", "\ue001"
_OPTION = re.compile(f"{_OPEN}([a-z_]+)(?:=([^{_CLOSE}]*))?{_CLOSE}")


def option(name: str, value: str | None = None) -> str:
    """Mark an option in the text of an error, so that it can be spelled for Python or for the command line later.

    Args:
        name: the name of the argument in Python, such as "out_dtype".
        value: the value that the error recommends, such as "fp32"; None to mention the option without a value.
    """
    return f"{_OPEN}{name}{_CLOSE}" if value is None else f"{_OPEN}{name}={value}{_CLOSE}"


def spelled_in_python(name: str, value: str | None) -> str:
    """Write an option as an argument of a Python call, such as `out_dtype="fp32"`."""
    if value is None:
        return name
    if name == "parameters":
        key, _, given = value.partition("=")
        return f'{name}={{"{key}": {given}}}'
    return f"{name}={value}" if value in ("True", "False") or value.isdigit() else f'{name}="{value}"'


class DeltamendError(Exception):
    """The base class of every error that deltamend raises on purpose. The command line prints its text and exits with 1."""

    def __str__(self) -> str:
        return self.spelled(spelled_in_python)

    def spelled(self, spelling: Spelling) -> str:
        """The text of the error, with every option that it mentions written by `spelling`."""
        return spell(super().__str__(), spelling)


def spell(text: str, spelling: Spelling) -> str:
    """Write every option that `option` marked in a text with `spelling`; the rest of the text stays as it is."""
    return _OPTION.sub(lambda found: spelling(found[1], found[2]), text)


class CheckpointError(DeltamendError):
    """A checkpoint cannot be read: it is missing, truncated, corrupt, quantised, or points outside its folder."""


class PairingError(DeltamendError):
    """BASE and FINETUNED do not belong together: they differ in architecture or shapes, or share no tensor."""


class OutputError(DeltamendError):
    """The output cannot be written: it already exists, lies inside an input, or the disk is full."""


class UsageError(DeltamendError):
    """An option or argument is invalid or missing. The command line exits with 2."""


class MethodError(UsageError):
    """The method does not exist, or one of its parameters is invalid."""


class FilterError(DeltamendError):
    """A tensor cannot be repaired: it holds NaN or Inf, or no algorithm gave a result that passed the accuracy checks."""


class EvaluationError(DeltamendError):
    """An evaluation cannot be run, read or compared: its file is damaged, a task is unknown, or the items do not match."""
