"""What the documentation site makes from the program itself, and how it treats links; `make docs` builds the whole of it."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, get_args

import pytest
import typer.main
from mkdocs.structure.files import InclusionLevel
from pydantic import BaseModel

import deltamend
from deltamend.checkpoint import manifest
from deltamend.cli.commands import command_line

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def hooks() -> ModuleType:
    """docs/hooks.py, which is no part of a package."""
    spec = importlib.util.spec_from_file_location("hooks", ROOT / "docs" / "hooks.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def on_page(hooks: ModuleType, source: str, markdown: str) -> str:
    """The Markdown of a page after the hook, in a site that has docs/score.md and nothing else."""
    page = SimpleNamespace(file=SimpleNamespace(src_uri=source))
    files = [
        SimpleNamespace(src_uri="score.md", inclusion=InclusionLevel.INCLUDED),
        SimpleNamespace(src_uri="hooks.py", inclusion=InclusionLevel.EXCLUDED),
    ]
    text: str = hooks.on_page_markdown(markdown, page, None, files)
    return text


def all_commands(command: Any, path: str) -> list[tuple[str, Any]]:
    below = [all_commands(one, f"{path} {name}") for name, one in getattr(command, "commands", {}).items()]
    return [(path, command), *(pair for pairs in below for pair in pairs)]


def test_the_page_of_commands_has_every_command_with_its_arguments_and_options(hooks: ModuleType) -> None:
    page = hooks.commands()
    found = all_commands(typer.main.get_command(command_line()), "deltamend")
    assert len(found) > 15
    for path, command in found:
        (section,) = (part for part in page.split("\n## ") if part.removeprefix("## ").startswith(f"{path}\n"))
        for parameter in command.params:
            names = [parameter.name.upper()] if parameter.param_type_name == "argument" else parameter.opts
            assert all(name in section for name in names), f"{path}: {parameter.name}"


def test_a_pipe_in_a_help_text_does_not_end_its_cell(hooks: ModuleType) -> None:
    assert hooks._text("a | b, `c | d`, 1*2*3, <str>") == r"a \| b, `c \| d`, 1\*2\*3, \<str\>"


def test_the_python_page_has_every_public_name_once(hooks: ModuleType) -> None:
    entries = [line for line in hooks.python_api().splitlines() if line.startswith("::: ")]
    assert sorted(entries) == sorted(f"::: deltamend.{name}" for name in deltamend.__all__ if name != "__version__")


def test_the_python_page_has_the_fields_of_records(hooks: ModuleType) -> None:
    page = hooks.python_api()
    options = page.split("::: deltamend.RepairOptions\n")[1].split(":::")[0]
    assert "| `rounding` | `nearest` or `stochastic` or `compensated` | `nearest` |" in options
    manifest_fields = page.split("::: deltamend.Manifest\n")[1].split(":::")[0]
    assert "| `tensors` | list of [TensorRecord](#deltamend.TensorRecord) |" in manifest_fields


def test_every_field_of_the_manifest_is_on_its_page_and_described(hooks: ModuleType) -> None:
    page = hooks.manifest()
    records = [kind for kind in vars(manifest).values() if isinstance(kind, type) and issubclass(kind, BaseModel)]
    shown = [kind for kind in records if kind.__module__ == manifest.__name__ and kind.model_fields]
    assert len(shown) >= 9
    for kind in shown:
        if kind is manifest.MatrixRepair:  # its fields are those of a tensor and of a part
            continue
        section = page.split(f"### {kind.__name__}\n")[1].split("### ")[0]
        for name, field in kind.model_fields.items():
            assert field.description, f"{kind.__name__}.{name} has no description"
            assert f"| `{name}` |" in section


def test_every_field_of_a_study_is_described(hooks: ModuleType) -> None:
    rows = [line for line in hooks.study().splitlines() if line.startswith("| `")]
    assert len(rows) > 70
    assert not [row for row in rows if row.endswith("|  |")]
    assert "[Regime](#regime)" in hooks.study()


def test_types_and_defaults_are_in_words(hooks: ModuleType) -> None:
    page = hooks.study()
    assert "| `sums` | list of 2 × integer or none | none |" in page
    assert "| `weights` | `float32` or `bfloat16` | `float32` |" in page
    assert "| `repairs` | list of [Repair](#repair) | required |" in page
    assert "| `parameters` | mapping of text to any | empty |" in page


def test_every_outcome_is_explained() -> None:
    page = (ROOT / "docs" / "reference" / "deltamend-json.md").read_text(encoding="utf-8")
    assert all(f"| `{outcome}` |" in page for outcome in get_args(manifest.MatrixOutcome))


def test_every_marker_is_filled(hooks: ModuleType) -> None:
    markers = [
        marker
        for page in (ROOT / "docs").glob("**/*.md")
        for marker in hooks._MARKER.findall(page.read_text(encoding="utf-8"))
    ]
    assert sorted(markers) == sorted(hooks.GENERATORS)


def test_a_link_out_of_the_docs_leads_to_a_page_with_that_file(hooks: ModuleType) -> None:
    text = on_page(
        hooks, "results/README.md", "[a](../../studies/smollm2.yaml) [b](../score.md#tests) [c](https://a/b)"
    )
    assert text == "[a](../repository/studies/smollm2.yaml.md) [b](../score.md#tests) [c](https://a/b)"


def test_a_page_of_the_repository_links_to_pages_of_the_site(hooks: ModuleType) -> None:
    text = on_page(hooks, "repository/CONTRIBUTING.md", "[a](docs/score.md) [b](pyproject.toml) [c](gone.md)")
    assert text == "[a](../score.md) [b](pyproject.toml.md) [c](gone.md)"


@pytest.mark.parametrize(
    ("markup", "loads"),
    [
        ('<script src="https://cdn.example/x.js"></script>', True),
        ('<link rel="stylesheet" href="https://fonts.example/css">', True),
        ('<img alt="" src="//example/x.png">', True),
        ('<a href="https://arxiv.org/abs/2605.20296">', False),
        ('<script src="assets/x.js"></script>', False),
        ('<link rel="canonical" href="https://example/">', False),
    ],
)
def test_what_a_page_loads_from_the_network_is_a_warning(
    hooks: ModuleType, caplog: pytest.LogCaptureFixture, markup: str, loads: bool
) -> None:
    page = SimpleNamespace(file=SimpleNamespace(src_uri="index.md"))
    assert hooks.on_post_page(markup, page, None) == markup
    assert bool(caplog.records) is loads


def test_every_page_stands_in_the_navigation() -> None:
    navigation = (ROOT / "mkdocs.yml").read_text(encoding="utf-8").partition("\nnav:\n")[2]
    pages = {str(page.relative_to(ROOT / "docs")) for page in (ROOT / "docs").rglob("*.md")}
    assert {page for page in pages if page not in navigation} == set()
