"""What the package says of itself: its metadata, its wheel, and the files that tools and people read beside the code."""

from __future__ import annotations

import re
import runpy
import subprocess
import sys
import tomllib
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PROJECT: dict[str, Any] = PYPROJECT["project"]
WORKFLOWS = sorted((ROOT / ".github/workflows").glob("*.yml"))
FORMS = sorted(path for path in (ROOT / ".github/ISSUE_TEMPLATE").glob("*.yml") if path.name != "config.yml")
MAKE = re.compile(r"(?:^|[\s`;&|])make ([a-z][\w-]*)", re.MULTILINE)


def make_targets() -> set[str]:
    """The targets that the Makefile gives people to type."""
    (names,) = re.findall(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    return set(names.split())


def run_steps(workflow: Path) -> list[str]:
    jobs = yaml.safe_load(workflow.read_text(encoding="utf-8"))["jobs"]
    return [step["run"] for job in jobs.values() for step in job["steps"] if "run" in step]


def requirements() -> list[Requirement]:
    extras = PROJECT["optional-dependencies"].values()
    return [Requirement(text) for text in [*PROJECT["dependencies"], *(text for extra in extras for text in extra)]]


def test_type_checkers_may_rely_on_the_annotations() -> None:
    assert (ROOT / "src/deltamend/py.typed").read_bytes() == b""
    assert "Typing :: Typed" in PROJECT["classifiers"]


def test_every_url_is_of_the_one_home() -> None:
    home = PROJECT["urls"]["Homepage"]
    assert home.startswith("https://")
    assert {"Homepage", "Documentation", "Changelog", "Issues"} <= PROJECT["urls"].keys()
    assert all(url == home or url.startswith(f"{home}/") for url in PROJECT["urls"].values())


@pytest.mark.parametrize("name", ["Documentation", "Changelog"])
def test_what_a_url_leads_to_is_in_the_repository(name: str) -> None:
    path = re.fullmatch(r".*/(?:tree|blob)/main/(.*)", PROJECT["urls"][name])
    assert path is not None
    assert (ROOT / path[1]).exists()


def test_the_citation_is_of_this_version_and_names_the_paper() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["cff-version"] == "1.2.0"
    assert citation["title"] == PROJECT["name"]
    assert citation["version"] == PROJECT["version"]
    assert citation["abstract"] == PROJECT["description"]
    assert citation["license"] == PROJECT["license"]
    (paper,) = citation["references"]
    assert [author["family-names"] for author in paper["authors"]] == ["Abro", "Tahir"]
    assert paper["url"] == "https://arxiv.org/abs/2605.20296"


def test_the_changelog_has_the_version_or_what_will_be_in_it() -> None:
    headings = re.findall(r"^## (.*)$", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert headings
    for heading in headings:
        assert re.fullmatch(r"Unreleased(, to become [\d.]+)?|[\d.]+ - \d{4}-\d{2}-\d{2}", heading), heading
    assert PROJECT["version"] in headings[0] or any(heading.startswith(PROJECT["version"]) for heading in headings)


def test_there_are_workflows() -> None:
    assert [path.name for path in WORKFLOWS] == ["ci.yml"]


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.name)
def test_a_workflow_runs_targets_of_the_makefile(workflow: Path) -> None:
    named = {target for step in run_steps(workflow) for target in MAKE.findall(step)}
    assert named == {"demo", "docs", "test", "test-lowest", "wheel"}
    assert named <= make_targets()


@pytest.mark.parametrize("path", [".ci/run", "README.md", "CONTRIBUTING.md", "RELEASING.md"])
def test_every_target_that_is_told_of_exists(path: str) -> None:
    text = (ROOT / path).read_text(encoding="utf-8")
    if path.endswith(".md"):  # in prose "make" is a verb
        text = "\n".join(re.findall(r"^    .*$|`make [^`]*`", text, re.MULTILINE)).replace("`", "")
    named = set(MAKE.findall(text))
    assert named
    assert named <= make_targets()


def test_what_the_readme_lets_people_run_is_run_by_ci() -> None:
    told = re.findall(r"^ *make ([\w-]+)", (ROOT / "README.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert told
    assert set(told) <= set(MAKE.findall((ROOT / ".ci/run").read_text(encoding="utf-8")))


def test_the_workflow_runs_every_python_that_the_metadata_names() -> None:
    jobs = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text(encoding="utf-8"))["jobs"]
    pythons = jobs["test"]["strategy"]["matrix"]["python"]
    prefix = "Programming Language :: Python :: "
    assert pythons == [name.removeprefix(prefix) for name in PROJECT["classifiers"] if name.startswith(prefix)]
    assert PROJECT["requires-python"] == f">={pythons[0]}"
    assert jobs["lowest"]["steps"][1]["with"]["python-version"] == pythons[0]


def test_the_hooks_are_the_linters_of_the_makefile() -> None:
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))["repos"][0]["hooks"]
    (lint,) = re.findall(r"^lint:.*\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    commands = [line.removesuffix(" .").removesuffix(" --check") for line in re.findall(r"\$\(BIN\)/(.*)", lint)]
    assert [hook["entry"].removeprefix(".venv/bin/").removesuffix(" --fix") for hook in hooks] == commands


@pytest.mark.parametrize("page", ["CHANGELOG.md", "RELEASING.md", "SECURITY.md"])
def test_links_lead_somewhere(page: str) -> None:
    links = re.findall(r"\]\(([^)#\s]+)[)#]", (ROOT / page).read_text(encoding="utf-8"))
    assert links
    for link in links:
        assert link.startswith("https://") or (ROOT / link).exists(), f"{page} links to {link}"


@pytest.mark.parametrize("form", FORMS, ids=lambda path: path.name)
def test_an_issue_form_asks_for_something(form: Path) -> None:
    content = yaml.safe_load(form.read_text(encoding="utf-8"))
    assert content["name"]
    assert content["description"]
    fields = [field for field in content["body"] if field["type"] != "markdown"]
    assert any(field.get("validations", {}).get("required") for field in fields)
    assert len({field["id"] for field in fields}) == len(fields)


def test_every_requirement_has_a_lowest_version(tmp_path: Path) -> None:
    lowest_versions = runpy.run_path(str(ROOT / ".ci/lowest.py"))["lowest_versions"]
    lowest = lowest_versions(ROOT / "pyproject.toml")
    own = PROJECT["name"]
    assert lowest.keys() == {requirement.name for requirement in requirements() if requirement.name != own}
    for requirement in requirements():
        assert requirement.name == own or lowest[requirement.name] in requirement.specifier, requirement

    (tmp_path / "pyproject.toml").write_text(
        '[project]\nname = "x"\ndependencies = ["a>=1.9", "b>=2,<3"]\noptional-dependencies = {c = ["a[d]>=1.10", "x[e]"]}\n'
    )
    assert lowest_versions(tmp_path / "pyproject.toml") == {"a": "1.10", "b": "2"}
    (tmp_path / "pyproject.toml").write_text(
        '[project]\nname = "x"\ndependencies = ["a"]\noptional-dependencies = {}\n'
    )
    with pytest.raises(ValueError, match="'a' has no lowest version"):
        lowest_versions(tmp_path / "pyproject.toml")


def test_the_constraints_are_versions_that_the_requirements_allow() -> None:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").split()
    pinned = {_normal(name): Version(pin) for name, _, pin in (line.partition("==") for line in lines)}
    unpinned = {"deltamend", "inspect-ai"}  # itself; and what no extra of the developers' environment asks for
    for requirement in requirements():
        if requirement.name not in unpinned:
            assert pinned[_normal(requirement.name)] in requirement.specifier, requirement


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_the_installed_package_is_of_the_version_in_pyproject() -> None:
    assert version("deltamend") == PROJECT["version"]


@pytest.mark.slow
def test_the_wheel_holds_every_file_of_the_package(tmp_path: Path) -> None:
    functions = runpy.run_path(str(ROOT / ".ci/wheel.py"))
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "wheel", "--quiet", "--no-deps"]
    done = subprocess.run([*command, "--wheel-dir", str(tmp_path), str(ROOT)], capture_output=True, text=True)
    if "No matching distribution found for hatchling" in done.stderr:
        pytest.skip("no package index to get hatchling from, which builds the wheel")
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.iterdir()
    held, tracked = functions["contents"](wheel), functions["tracked_files"]()
    assert {Path(path).suffix for path in tracked} >= {".py", ".typed", ".yaml", ".json", ".txt", ".j2", ".js"}
    assert tracked <= held
    # Nothing else but the metadata: no tests, no documentation.
    assert {path for path in held - tracked if ".dist-info/" not in path} == set()
    assert f"deltamend-{PROJECT['version']}.dist-info/licenses/LICENSE" in held
