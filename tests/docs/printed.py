"""What README and the pages of docs/ print: commands, and code in Python."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("**/*.md")])

_PROGRAMS = r"deltamend|python|\.venv/bin/\w+|make|pip|sh|inspect eval|\.ci/run"
_COMMAND = re.compile(rf"(?:[A-Z_]+=\S+ )*(?:{_PROGRAMS})(?: |$)")
_COMMENT = re.compile(r" +#.*$")


class Printed(NamedTuple):
    """One command, and the page that prints it, by its path in the repository."""

    page: str
    text: str


def printed_commands() -> list[Printed]:
    """Every command that a page prints in a block of code; a comment behind it is left out."""
    return [
        Printed(page.relative_to(ROOT).as_posix(), _COMMENT.sub("", line))
        for page in PAGES
        for line in _commands(page.read_text(encoding="utf-8"))
    ]


def _commands(text: str) -> Iterator[str]:
    """Lines of indented blocks that begin with a program, all lines of ```bash, those of ```console behind its prompt."""
    block: str | None = None
    for line in text.splitlines():
        if line.startswith("```"):
            block = None if block is not None else line.removeprefix("```").partition(" ")[0]
        elif block == "bash" and line and not line.startswith("#"):
            yield line
        elif block == "console" and line.startswith("$ "):
            yield line.removeprefix("$ ")
        elif block is None and line.startswith("    ") and _COMMAND.match(line.strip()):
            yield line.strip()


def commands_of(page: str) -> list[str]:
    """The commands of one page, in their order."""
    return [command.text for command in printed_commands() if command.page == page]


def blocks_of(page: str, language: str) -> list[str]:
    """The fenced blocks of code of one page in one language."""
    text = (ROOT / page).read_text(encoding="utf-8")
    return re.findall(rf"^```{language}(?: [^\n]*)?\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


def inline_commands() -> list[Printed]:
    """Every `deltamend …` inside a sentence or a table."""
    fence = re.compile(r"^```.*?^```$", re.DOTALL | re.MULTILINE)
    return [
        Printed(page.relative_to(ROOT).as_posix(), text.removeprefix("python -m "))
        for page in PAGES
        if page.parent.name != "results" or page.parent.parent.name == "docs"  # reports of studies escape their text
        for text in re.findall(
            r"`((?:python -m )?deltamend [a-z][^`]*)`", fence.sub("", page.read_text(encoding="utf-8"))
        )
    ]
