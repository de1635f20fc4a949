"""The list of commands is printed without importing any of them."""

from __future__ import annotations

import subprocess
import sys

import pytest
import typer.main
from typer.testing import CliRunner

from deltamend.cli.commands import SUMMARIES, command_line, wanted_by


def test_the_list_says_what_the_commands_say_of_themselves() -> None:
    whole = CliRunner().invoke(command_line(), ["--help"]).output
    assert CliRunner().invoke(command_line(()), ["--help"]).output == whole
    group = typer.main.get_command(command_line())
    for name, command in group.commands.items():  # type: ignore[attr-defined]
        assert " ".join(command.help.split("\n\n")[0].split()) == SUMMARIES[name]


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        ([], []),
        (["--help"], []),
        (["repair", "score"], ["repair"]),
        (["--version", "diff"], ["diff"]),
        (["rapair"], []),
    ],
)
def test_the_command_that_is_named_is_imported(arguments: list[str], wanted: list[str]) -> None:
    assert wanted_by(arguments) == wanted


def test_completion_needs_all_commands(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("_DELTAMEND_COMPLETE", "complete_bash")
    assert list(wanted_by([])) == list(SUMMARIES)


def test_help_imports_no_large_library() -> None:
    program = """
import sys
from deltamend.cli import main
sys.argv = ["deltamend", "--help"]
main()
print([name for name in ("numpy", "pydantic", "scipy", "rich", "torch") if name in sys.modules])
"""
    shown = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert shown.splitlines()[-1] == "[]"
    assert "repair" in shown


def test_the_command_repair_imports_no_library_that_its_usual_methods_do_without() -> None:
    program = """
import sys
import deltamend._api
import deltamend.cli.repair_command
late = ("scipy.linalg", "scipy.optimize", "scipy.special", "scipy.stats", "torch")
print([name for name in late if name in sys.modules])
"""
    shown = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert shown.splitlines()[-1] == "[]"
