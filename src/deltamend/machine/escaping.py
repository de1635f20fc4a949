"""Text of others where it leaves the program: on a terminal, in JSON, Markdown, LaTeX and HTML it is only text.

A name in a checkpoint or a record may hold escape sequences that a terminal obeys, marks that turn the direction of reading
round, or line ends that begin a heading or a line that looks like ours. Inside the program text stays as it is; it is escaped
once, by whatever prints or writes it.
"""

from __future__ import annotations

import json
import re
import unicodedata
from typing import Any

_LATEX = {
    "\\": r"\textbackslash{}",
    **{character: f"\\{character}" for character in "&%$#_{}"},
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "−": "$-$",
    "δ": r"$\delta$",
}


def printable(text: str) -> str:
    r"""Text of several lines in which nothing acts: control, format and unassigned characters as `\x1b` or `\u202e`."""
    return text if text.isprintable() else "".join(_shown(character, "\n\t") for character in text)


def one_line(text: str) -> str:
    r"""Text of one line in which nothing acts; a line end is shown as `\n`."""
    return text if text.isprintable() else "".join(_shown(character, "") for character in text)


def _shown(character: str, kept: str) -> str:
    if character.isprintable() or character in kept or unicodedata.category(character) == "Zs":
        return character
    return character.encode("unicode_escape").decode("ascii")


def printable_json(text: str) -> str:
    """JSON of the same value in which nothing acts on a terminal; it may hold surrogates, which UTF-8 cannot."""
    if text.isprintable():
        return text
    shown = (
        character if character == "\n" or _shown(character, "") == character else json.dumps(character)[1:-1]
        for character in text
    )
    return "".join(shown)


def printable_value(value: Any) -> Any:
    """A value for JSON, with every text in it, keys included, as `printable` gives it."""
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, dict):
        return {printable_value(key): printable_value(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [printable_value(inner) for inner in value]
    return value


def markdown_text(text: str) -> str:
    """Text that Markdown shows as it stands, in a heading, a table or a list."""
    return re.sub(r"([\\`*_{}\[\]<>#|!~&$])", r"\\\1", one_line(text))


def markdown_code(text: str) -> str:
    """Text as a code span of Markdown, also in a table."""
    return f"`{one_line(text).replace('`', chr(39)).replace('|', chr(92) + '|')}`"


def latex_text(text: str) -> str:
    """Text that LaTeX shows as it stands."""
    return "".join(_LATEX.get(character, character) for character in one_line(text))
