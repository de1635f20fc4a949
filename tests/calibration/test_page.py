from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

from deltamend.cli.commands import command_line
from tests.calibration.conftest import Task

PAGE = Path(__file__).parents[2] / "docs" / "calibration.md"


@pytest.mark.slow
def test_the_commands_of_the_page_run_in_order(task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "texts.jsonl").write_bytes(task.texts.read_bytes())
    commands = re.findall(r"^    deltamend (.*)$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    assert len(commands) == 6
    for number, command in enumerate(commands):
        words = {"BASE": str(task.base), "FINETUNED": str(task.finetuned), "OUT": f"out{number}"}
        ran = CliRunner().invoke(command_line(), [words.get(word, word) for word in shlex.split(command)])
        assert ran.exit_code == 0, f"{command}: {ran.output} {ran.exception}"
    assert all((tmp_path / f"out{number}" / "deltamend.json").exists() for number in (1, 3, 5))
