"""Text of others is only text, wherever it leaves the program."""

from __future__ import annotations

import ast
import json
import re
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jinja2 import DictLoader

from deltamend.cli.terminal import PlainConsole, PlainTable
from deltamend.machine.escaping import (
    latex_text,
    markdown_code,
    markdown_text,
    one_line,
    printable,
    printable_json,
    printable_value,
)
from deltamend.records import Record
from deltamend.report import page_templates
from deltamend.report.score_tables import Table, latex, markdown

SOURCE = Path(__file__).parents[2] / "src" / "deltamend"
ACTS = ["\x1b]0;title\x07", "\x1b[2J", "\x9b31m", "\r", "\n# heading", "\u202ereversed", "\u2066", "\u200b", "\u2028", "\x00",
        "\udce9", "\U000e0041", "\ufeff", "\x85", "\x7f", "\b\b\b"]  # fmt: skip
texts = st.text(st.characters(exclude_categories=()), max_size=30) | st.sampled_from(ACTS).flatmap(
    lambda acts: st.tuples(st.text(max_size=5), st.just(acts), st.text(max_size=5)).map("".join)
)


def acts(text: str, kept: str = "") -> list[str]:
    """Characters that a terminal obeys, that turn reading round, or that end a line."""
    return [
        one
        for one in text
        if one not in kept and unicodedata.category(one) in ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")
    ]


@pytest.mark.slow
@given(texts)
@settings(max_examples=300, deadline=None)
def test_nothing_acts_in_what_is_shown(text: str) -> None:
    assert acts(one_line(text)) == []
    assert acts(printable(text), "\n\t") == []
    assert one_line(one_line(text)) == one_line(text)
    for escaped in (markdown_text(text), markdown_code(text), latex_text(text)):
        assert acts(escaped) == []


@pytest.mark.slow
@given(st.dictionaries(texts, st.lists(texts, max_size=3), max_size=3))
@settings(max_examples=200, deadline=None)
def test_json_for_a_terminal_is_the_same_value(value: dict[str, list[str]]) -> None:
    for indent in (None, 1):
        shown = printable_json(json.dumps(value, ensure_ascii=False, indent=indent))
        assert acts(shown, "\n") == []
        assert json.loads(shown) == json.loads(json.dumps(value))


@pytest.mark.slow
@given(texts)
@settings(max_examples=200, deadline=None)
def test_a_console_and_a_table_show_text_in_one_line(text: str) -> None:
    console = PlainConsole(width=500, force_terminal=False, color_system=None)
    with console.capture() as captured:
        console.print(f"before {text} after", soft_wrap=True)
    assert acts(captured.get()[:-1]) == []
    table = PlainTable("name", "[bold]x")
    table.add_row(text, "[red]1")
    with console.capture() as captured:
        console.print(table)
    assert acts(captured.get(), "\n") == []
    assert "[red]1" in captured.get()


@given(texts)
@settings(max_examples=200, deadline=None)
def test_tables_for_papers_keep_their_form(text: str) -> None:
    table = Table(text, ("a", text), ((text, "1"), ("b", text)))
    shown = markdown([table], [text])
    assert acts(shown, "\n") == []
    lines = shown.rstrip("\n").split("\n")
    assert len(lines) == 8
    for line in lines[2:6]:
        assert len(re.findall(r"(?<!\\)(?:\\\\)*\|", line)) == 3  # no cell opens another
    assert re.search(r"(?<!\\)(\\\\)*<", shown) is None
    assert acts(latex([table]), "\n") == []


@given(texts)
@settings(max_examples=100, deadline=None)
def test_a_code_span_holds_all_of_it(text: str) -> None:
    assert markdown_code(text).count("`") == 2


@pytest.mark.slow
@given(texts)
@settings(max_examples=100, deadline=None)
def test_nothing_acts_in_a_page(text: str) -> None:
    with pytest.MonkeyPatch.context() as patched:
        source = "<p>{{ text }}</p><script type='application/json'>{{ [text] | tojson }}</script>"
        patched.setattr(page_templates, "PackageLoader", lambda _: DictLoader({"x": source}))
        shown = page_templates.page_template("x").render(text=text)
    assert acts(shown, "\n\t") == []
    inside = shown.partition("<p>")[2].partition("</p>")[0]
    assert "<" not in inside
    assert json.loads(re.search(r"json'>(.*)</script>", shown, re.DOTALL)[1]) == printable_value([text])  # type: ignore[index]


class _Named(Record):
    name: str
    others: dict[str, list[str]]


@given(texts, st.sampled_from([None, 1]))
@settings(max_examples=100, deadline=None)
def test_a_record_can_be_written_whatever_its_names(text: str, indent: int | None) -> None:
    record = _Named(name=text, others={text: [text]})
    written = record.model_dump_json(indent=indent).encode()
    assert json.loads(written)["name"] == text.encode(errors="backslashreplace").decode()


def test_only_one_place_prints() -> None:
    """Commands print with what `terminal.py` gives them."""
    found = set()
    for path in sorted((SOURCE / "cli").glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module in ("rich.console", "rich.table", "rich"):
                found |= {
                    (path.name, alias.name) for alias in node.names if alias.name in ("Console", "Table", "print")
                }
            if isinstance(node, ast.Attribute) and node.attr in ("echo", "secho"):
                found.add((path.name, node.attr))
            if isinstance(node, ast.Call) and ast.unparse(node.func) in (
                "sys.stdout.write",
                "sys.stderr.write",
                "print",
            ):
                found.add((path.name, ast.unparse(node.func)))
    assert found == {("terminal.py", "Console"), ("terminal.py", "Table")}
