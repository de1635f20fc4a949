"""Children import nothing from the current folder, and nothing else in the source starts a process."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

from deltamend import cli
from deltamend.machine.children import SAFE_PATH, environment, safe_children

SOURCE = Path(__file__).parents[2] / "src" / "deltamend"
STARTERS = {"subprocess", "multiprocessing", "concurrent.futures.process", "pty", "ptyprocess"}
CALLS = {"ProcessPoolExecutor", "fork", "forkpty", "posix_spawn", "posix_spawnp", "popen", "system", "execv", "execve"}

POOL = """
import os, sys
from deltamend.machine.children import fresh_processes
if __name__ == "__main__":
    with fresh_processes(1, {"OMP_NUM_THREADS": "1"}, int) as pool:
        assert pool.executor.submit(os.getpid).result() != os.getpid()
        pool.executor.submit(pool.messages.put, 3).result()
        assert pool.messages.get() == 3
"""
CHILD = """
import pathlib, sys
from deltamend.machine.children import python_child
child = python_child(pathlib.Path(sys.argv[1]))
print(child.communicate(b"")[0].decode(), end="")
"""
OF_A_LIBRARY = """
import subprocess, sys
from deltamend.machine.children import safe_children
with safe_children():
    subprocess.run([sys.executable, "-m", "pip", "--version"], check=True, stdout=subprocess.DEVNULL)
    subprocess.run([sys.executable, "-c", "import multiprocessing.resource_tracker, json"], check=True)
"""


@pytest.fixture
def trapped(tmp_path: Path) -> Path:
    """A folder with a file for every module that a child may import, each of which leaves a mark when it runs."""
    folder = tmp_path / "trapped"
    folder.mkdir()
    names = {*sys.stdlib_module_names, "pip", "numpy", "torch", "jinja2", "transformers", "deltamend", "sitecustomize"}
    for name in names:
        (folder / f"{name}.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'a').write({name!r})\n")
    return folder


def _run(program: str, folder: Path, *arguments: str, safe: bool = True) -> str:
    command = [sys.executable, *(["-P"] if safe else []), "-c", program, *arguments]
    environment = {**os.environ, "PYTHONPATH": str(SOURCE.parent)}
    environment.pop(SAFE_PATH, None)
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 or not safe, done.stderr
    return done.stdout


def test_the_trap_would_catch_an_ordinary_child(trapped: Path) -> None:
    _run("import multiprocessing", trapped, safe=False)
    assert (trapped.parent / "ran").exists()


@pytest.mark.slow
@pytest.mark.parametrize("program", [POOL, OF_A_LIBRARY], ids=["pool", "child of a library"])
def test_a_child_runs_nothing_of_the_current_folder(trapped: Path, tmp_path: Path, program: str) -> None:
    main = tmp_path / "main.py"  # a spawned process imports the file that its parent was started with
    main.write_text(program)
    _run(f"import runpy; runpy.run_path({str(main)!r}, run_name='__main__')", trapped)
    assert not (tmp_path / "ran").exists()


@pytest.mark.slow
def test_a_program_of_ours_runs_nothing_of_the_current_folder(trapped: Path, tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text("import sys, json, jinja2\nprint(sys.flags.safe_path, len(sys.stdin.read()))\n")
    assert _run(CHILD, trapped, str(program)) == "True 0\n"
    assert not (tmp_path / "ran").exists()


def test_only_one_place_starts_processes() -> None:
    found = []
    for path in sorted(SOURCE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                found += [path.name for alias in node.names if alias.name in STARTERS]
            elif isinstance(node, ast.ImportFrom):
                names = {alias.name for alias in node.names}
                if node.module in STARTERS - {"concurrent.futures.process"} or names & CALLS:
                    found.append(path.name)
            elif isinstance(node, ast.Attribute) and node.attr in CALLS and getattr(node.value, "id", "") == "os":
                found.append(path.name)
    assert set(found) == {"children.py"}


def test_variables_are_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DELTAMEND_TEST_A", "before")
    monkeypatch.delenv("DELTAMEND_TEST_B", raising=False)
    with environment({"DELTAMEND_TEST_A": "x", "DELTAMEND_TEST_B": "y"}), safe_children():
        assert (os.environ["DELTAMEND_TEST_A"], os.environ["DELTAMEND_TEST_B"], os.environ[SAFE_PATH]) == (
            "x",
            "y",
            "1",
        )
    assert os.environ["DELTAMEND_TEST_A"] == "before"
    assert "DELTAMEND_TEST_B" not in os.environ


def test_the_command_line_starts_no_child_that_imports_from_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(SAFE_PATH, raising=False)
    seen = []
    monkeypatch.setattr(cli, "command_line", lambda _wanted: lambda: seen.append(os.environ.get(SAFE_PATH)))
    cli.main()
    assert seen == ["1"]
