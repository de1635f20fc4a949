"""Every script of benchmarks/ can be run as it says, and whatever names a script or its output names one that is there."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BENCHMARKS = ROOT / "benchmarks"
SCRIPTS = sorted(
    ".".join(path.relative_to(ROOT).with_suffix("").parts)
    for path in BENCHMARKS.glob("**/*.py")
    if "\ndef main(" in path.read_text(encoding="utf-8")
)
TEXTS = sorted(
    path
    for pattern in (
        "*.md",
        "Makefile",
        "docs/**/*.md",
        "src/**/*.py",
        "tests/**/*.py",
        "benchmarks/**/*.py",
        "benchmarks/**/*.md",
    )
    for path in ROOT.glob(pattern)
)


def test_there_are_scripts() -> None:
    assert len(SCRIPTS) > 25


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_script_says_what_it_does_and_how_it_is_run(
    script: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", [script, "--help"])
    module = importlib.import_module(script)
    with pytest.raises(SystemExit) as left:
        module.main()
    assert left.value.code == 0
    shown = capsys.readouterr().out
    assert re.sub(r"\s+", " ", shown).startswith(f"usage: python -m {script} [-h]")
    assert str(module.__doc__).strip() in shown


@pytest.mark.slow
def test_a_script_runs_from_the_root_of_the_repository() -> None:
    command = [sys.executable, "-m", "benchmarks.study.two_runs", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert (done.returncode, done.stderr) == (0, "")


def test_what_is_said_to_be_run_is_there() -> None:
    named = {
        (path.relative_to(ROOT).as_posix(), script)
        for path in TEXTS
        for script in re.findall(r"-m (benchmarks\.[a-z_0-9.]*[a-z_0-9])", path.read_text(encoding="utf-8"))
    }
    assert len(named) > 50
    assert [(path, script) for path, script in sorted(named) if script not in SCRIPTS] == []


def test_what_is_said_to_have_been_written_is_there() -> None:
    named = {
        (path.relative_to(ROOT).as_posix(), file)
        for path in TEXTS
        for file in re.findall(r"benchmarks/[a-z_0-9/]*\w+\.(?:py|md|txt|json)\b", path.read_text(encoding="utf-8"))
    }
    assert len(named) > 40
    assert [(path, file) for path, file in sorted(named) if not (ROOT / file).exists()] == []


def test_links_of_pages_lead_somewhere() -> None:
    links = [
        (page, target)
        for page in BENCHMARKS.glob("**/*.md")
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8"))
    ]
    assert len(links) >= 5
    assert [(page.name, target) for page, target in links if not (page.parent / target).exists()] == []


def test_outputs_lie_apart_in_folders_named_as_those_of_the_scripts() -> None:
    folders = {path.name for path in BENCHMARKS.iterdir() if (path / "__init__.py").exists()}
    results = {path.name for path in (BENCHMARKS / "results").iterdir() if path.is_dir()}
    assert results <= folders
    assert not list((BENCHMARKS / "results").rglob("*.py"))
