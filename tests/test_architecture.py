"""The rooms of the source: each imports only from rooms before it, and no name hides a module."""

from __future__ import annotations

import ast
import importlib
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "deltamend"
MODULES = sorted(SOURCE.rglob("*.py"))

ROOMS = (
    "errors", "progress", "records",
    "machine", "checkpoint", "language_models", "inputs", "spectrum", "matrices", "methods", "calibration",
    "repairing", "diagnosis", "evaluation", "scoring", "choosing", "_api",
    "recipes", "study", "report", "demo", "cli",
)  # fmt: skip
"""Left to right: a room may import from rooms to its left. CONTRIBUTING.md says what is in each."""

LONGEST_FILE, LONGEST_FUNCTION = 410, 60
COMMANDS = "a command, whose length is that of its table of options"
LONG_FUNCTIONS = {
    "cli/repair_command.py:repair": COMMANDS,
    "cli/compare_command.py:compare": COMMANDS,
    "cli/diagnose_command.py:diagnose": COMMANDS,
    "cli/evaluate_command.py:evaluate": COMMANDS,
    "cli/finetune_command.py:finetune": COMMANDS,
    "cli/score_command.py:score": COMMANDS,
    "cli/tune_command.py:tune": COMMANDS,
    "report/study_tables.py:csv_tables": "a list of columns for each file",
}
"""Functions that may be longer, and why; those of the public face count without their docstrings."""


def _place(path: Path) -> str:
    return path.relative_to(SOURCE).as_posix()


def _room(module: str) -> str:
    """The room of a dotted name."""
    return module.split(".")[1] if "." in module else "__init__"


def _imported(path: Path) -> Iterator[tuple[int, str]]:
    """Line and dotted name of every import of our own, wherever in the file it stands."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and re.match(r"deltamend(\.|$)", node.module):
            names = [f"deltamend.{alias.name}" for alias in node.names] if node.module == "deltamend" else [node.module]
            yield from ((node.lineno, name) for name in names)
        elif isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names if re.match(r"deltamend(\.|$)", alias.name))


@pytest.mark.parametrize("path", MODULES, ids=_place)
def test_a_room_imports_only_from_rooms_before_it(path: Path) -> None:
    own = path.relative_to(SOURCE).parts[0].removesuffix(".py")
    if own in ("__init__", "__main__"):
        return
    allowed = ROOMS[: ROOMS.index(own) + 1]
    wrong = [
        f"line {line}: {name}"
        for line, name in _imported(path)
        # The command line calls the public face, as a user of the library does.
        if _room(name) not in allowed and not (own == "cli" and (name == "deltamend" or _room(name) == "__version__"))
    ]
    assert wrong == []


def test_every_room_is_described() -> None:
    page = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    rooms = {path.name for path in SOURCE.iterdir() if (path / "__init__.py").exists()}
    assert rooms <= set(ROOMS)
    assert [room for room in sorted(rooms) if f"`{room}/`" not in page] == []


def test_no_loose_file_stands_beside_the_rooms() -> None:
    loose = {path.stem for path in SOURCE.glob("*.py")}
    assert loose == {"__init__", "__main__", "_api", "errors", "progress", "records"}


@pytest.mark.parametrize("package", sorted({path.parent for path in MODULES}), ids=lambda path: path.name)
def test_no_function_or_class_has_the_name_of_a_module_beside_it(package: Path) -> None:
    beside = {path.stem for path in package.glob("*.py")} | {
        path.name for path in package.iterdir() if (path / "__init__.py").exists()
    }
    clashes = []
    for path in package.glob("*.py"):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name in beside:
                clashes.append(f"{path.name}: {node.name}")
            if path.stem == "__init__" and isinstance(node, ast.ImportFrom):
                clashes += [
                    f"{path.name}: {alias.name}" for alias in node.names if (alias.asname or alias.name) in beside
                ]
    assert clashes == []


@pytest.mark.parametrize("path", MODULES, ids=_place)
def test_every_module_is_found_under_its_own_name(path: Path) -> None:
    if path.stem == "__main__":
        return
    name = ".".join(("deltamend", *path.relative_to(SOURCE).with_suffix("").parts)).removesuffix(".__init__")
    module = importlib.import_module(name)
    found: object = sys.modules["deltamend"]
    for part in name.split(".")[1:]:
        found = getattr(found, part)
    assert found is module


@pytest.mark.parametrize("path", MODULES, ids=_place)
def test_files_and_functions_are_short_enough_to_read_at_once(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= LONGEST_FILE
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef) and f"{_place(path)}:{node.name}" not in LONG_FUNCTIONS:
            docstring = ast.get_docstring(node, clean=False)
            length = (node.end_lineno or node.lineno) - node.lineno + 1 - len((docstring or "").splitlines())
            assert length <= LONGEST_FUNCTION, f"{node.name} has {length} lines"
