"""The commands of docs/score.md run as printed."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest

from deltamend.evaluation.record import write_evaluation
from tests.conftest import Printed
from tests.scoring.records import made_up_cell
from tests.scoring.test_lm_eval_folder import multiple_choice, write_run

PAGE = (Path(__file__).parents[2] / "docs" / "score.md").read_text(encoding="utf-8")


def score_commands() -> list[str]:
    # The logs of inspect are made in test_inspect_logs.
    return [line for line in re.findall(r"^    (deltamend score .*)$", PAGE, re.MULTILINE) if " logs/" not in line]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the files the page names."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "llama").mkdir()
    names = {"base": "base", "finetuned": "finetuned", "good": "dg-hard", "poor": "ties"}
    for model, of in made_up_cell().items():
        name = names[model]
        write_evaluation(of, tmp_path / f"{name}.json.gz")
        seeded = "base" if name == "base" else {"finetuned": "gsm8k-seed0"}.get(name, f"{name}-seed0")
        write_evaluation(of, tmp_path / "llama" / f"{seeded}.json.gz")
    right = {"base": [1, 1, 1, 0], "finetuned": [1, 0, 0, 0], "dg-hard": [1, 1, 0, 0]}
    for model, arc in right.items():
        sums = [int(model != "base")] * 40
        tasks = {"arc": multiple_choice(arc * 10), "sums": multiple_choice(sums)}
        write_run(tmp_path / "runs" / model / "org__model", tasks)
    (example,) = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
    (tmp_path / "cells.yaml").write_text(example)
    return tmp_path


def test_the_page_has_commands() -> None:
    assert len(score_commands()) >= 3


@pytest.mark.slow
@pytest.mark.parametrize("command", score_commands())
def test_commands_run_as_printed(command: str, folder: Path, deltamend_cli: Callable[..., Printed]) -> None:
    printed = deltamend_cli(*shlex.split(command)[1:])
    assert printed.code == 0, f"{folder}: {printed.err}"
