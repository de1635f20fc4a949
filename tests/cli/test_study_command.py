from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from deltamend.errors import DeltamendError
from tests.conftest import Printed
from tests.study.made_up import made_up_study, write_made_up

Cli = Callable[..., Printed]
STUDY = made_up_study()


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump(STUDY.model_dump(mode="json")))
    return path


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The folders in which a study is run from here on; a cell fails in each."""
    folders: list[Path] = []

    def fails(_study: object, out: Path, **_options: Any) -> None:
        folders.append(out)
        raise DeltamendError("tiny/sums/fp32/0: the GPU's memory is full")

    monkeypatch.setattr("deltamend.study.run.run_study", fails)
    return folders


def test_a_setting_that_means_nothing_is_refused_before_the_run(
    config: Path, tmp_path: Path, runs: list[Path], deltamend_cli: Cli
) -> None:
    printed = deltamend_cli("study", config, tmp_path / "out", "--draws", "5")
    assert printed.code == 2
    assert "draws" in printed.err
    assert not runs


@pytest.mark.slow
def test_results_are_written_also_where_a_cell_failed(
    config: Path, tmp_path: Path, runs: list[Path], deltamend_cli: Cli
) -> None:
    out = tmp_path / "out"
    write_made_up(STUDY, out)
    printed = deltamend_cli("study", config, out, "-q", "--draws", "100")
    assert (printed.code, runs) == (1, [out])
    assert printed.err == "deltamend: tiny/sums/fp32/0: the GPU's memory is full\n"
    assert (out / "results" / "README.md").is_file()


@pytest.mark.usefixtures("runs")
def test_where_no_cell_is_done_the_failure_is_all_that_is_said(
    config: Path, tmp_path: Path, deltamend_cli: Cli
) -> None:
    printed = deltamend_cli("study", config, tmp_path / "out", "-q")
    assert printed.err == "deltamend: tiny/sums/fp32/0: the GPU's memory is full\n"
    assert not (tmp_path / "out").exists()


def test_a_folder_that_cannot_be_one_is_one_line(config: Path, tmp_path: Path, deltamend_cli: Cli) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "locked" / ".lock").mkdir(parents=True)
    for name in ("file", "locked"):
        printed = deltamend_cli("study", config, tmp_path / name, "-q")
        assert printed.code == 1
        assert printed.err.startswith(f"deltamend: {tmp_path / name}: cannot be written (")
        assert printed.err.count("\n") == 1
    assert (tmp_path / "file").read_text() == "mine"
