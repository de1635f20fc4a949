"""Every message that the page of troubleshooting quotes is in the source of the program."""

from __future__ import annotations

import ast
import re

import pytest

from tests.docs.printed import ROOT

PAGE = (ROOT / "docs/troubleshooting.md").read_text(encoding="utf-8")
QUOTED = re.findall(r"^\| `([^`]+)` \|", PAGE, re.MULTILINE)


@pytest.fixture(scope="module")
def texts() -> list[str]:
    """Every text in the source; what is filled in when it is printed, a name or a figure, is a line break."""
    found = []
    for path in (ROOT / "src").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                parts = (part.value if isinstance(part, ast.Constant) else "\n" for part in node.values)
                found.append("".join(map(str, parts)))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return found


def test_the_page_quotes_messages() -> None:
    assert len(QUOTED) >= 40
    assert len(set(QUOTED)) == len(QUOTED)


@pytest.mark.parametrize("quoted", QUOTED)
def test_a_quoted_message_is_one_of_the_program(quoted: str, texts: list[str]) -> None:
    pattern = re.compile(r"\n".join(re.escape(part) for part in quoted.split("…")))
    assert any(pattern.search(text) for text in texts)
