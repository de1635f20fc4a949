"""The commands and code of README and the docs run as printed."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import Pair, Printed, fine_tune, llama

ROOT = Path(__file__).parents[1]
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("**/*.md")])
COMMAND = re.compile(
    r"^    (deltamend (?:repair|verify|methods|compare|diagnose|inspect|diff|push) .*|deltamend methods)$", re.MULTILINE
)

_README = (ROOT / "README.md").read_text(encoding="utf-8")
_LEAD = (ROOT / "benchmarks/results/study/lead_fresh.txt").read_text(encoding="utf-8")
_COLUMNS = ("null-space-0.001", "wise-ft-0.5", "dg-hard", "fapm", "ties")
_ROWS = {
    "all 48": "the same in the dtype of the fine-tuned model$",
    "fp32": "in both studies in fp32,",
    "fp32, low learning rate": "in both studies in fp32-low,",
    "bf16": "in both studies in bf16,",
    "bf16, low learning rate": "in both studies in bf16-low,",
}
"""Label of a row of README's table to how the line above its figures begins."""


def commands() -> list[tuple[str, str]]:
    """(page, command) of every printed command that needs no real model."""
    found = []
    for page in PAGES:
        if page.name == "calibration.md":  # its commands need texts and follow each other: tests/calibration
            continue
        for line in COMMAND.findall(page.read_text(encoding="utf-8")):
            command = line.partition("  #")[0].strip()
            # What needs a hub, a GGUF file or other names is run in tests/inputs.
            if not re.search(r" org/|\.gguf|--rename|ADAPTER", command):
                found.append((page.name, command))
    return found


def test_the_pages_have_commands() -> None:
    assert len(commands()) >= 6


@pytest.mark.parametrize(("page", "command"), commands(), ids=lambda text: text)
def test_commands_run_as_printed(
    page: str,
    command: str,
    llama_pair: Pair,
    tmp_path: Path,
    deltamend_cli: Callable[..., Printed],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    out = tmp_path / "out"
    words = {"BASE": llama_pair.base, "FINETUNED": llama_pair.finetuned, "OUT": out}
    if "OUT" in command.split() and command.split()[1] != "repair":
        assert deltamend_cli("repair", llama_pair.base, llama_pair.finetuned, out).code == 0
    printed = deltamend_cli(*(words.get(word, word) for word in shlex.split(command)[1:]))
    assert printed.code == 0, f"{page}: {command}: {printed.err}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_the_python_of_the_readme_runs(llama_pair: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    (tmp_path / "base").symlink_to(llama_pair.base)
    (tmp_path / "finetuned").symlink_to(llama_pair.finetuned)
    monkeypatch.chdir(tmp_path)
    base_model, model = llama(), llama()
    fine_tune(model)
    exec(code, {"base_model": base_model, "model": model})  # noqa: S102 - our own page
    assert (tmp_path / "out" / "deltamend.json").exists()


def test_the_figures_of_the_readme_are_those_of_the_records() -> None:
    rows = re.findall(r"^\| ([^|]+) \| (\d+) \| (\d+) \| (\d+) \| (\d+) \| (\d+) \|$", _README, re.MULTILINE)
    assert [label for label, *_ in rows] == list(_ROWS)
    for label, *told in rows:
        (block,) = re.findall(rf"^{_ROWS[label]}.*\n((?:  .*\n)+)", _LEAD, re.MULTILINE)
        figures = [re.findall(rf"^  {name}: ([\d.]+) in", block, re.MULTILINE) for name in _COLUMNS]
        assert told == [str(round(float(figure))) for (figure,) in figures], label
