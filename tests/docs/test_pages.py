"""The links, the code in Python and the figures of README and the docs."""

from __future__ import annotations

import csv
import importlib.util
import re
from collections.abc import Callable
from pathlib import Path

import pytest

import deltamend
from tests.conftest import fine_tune, llama
from tests.docs.conftest import add_records
from tests.docs.printed import PAGES, ROOT, blocks_of

LEAD = ROOT / "benchmarks/results/study/lead.txt"
LEAD_FRESH = ROOT / "benchmarks/results/study/lead_fresh.txt"
GROUND = ROOT / "docs/results/ground/results/tables/equal_retention.csv"
STUDIES = ROOT / "docs/explanation/what-the-studies-say.md"
_COLUMNS = ("null-space-0.001", "wise-ft-0.5", "dg-hard", "fapm", "ties")
_ROWS = {
    "all 24 combinations": "the same in the dtype of the fine-tuned model$",
    "fp32": "in both studies in fp32,",
    "fp32, low learning rate": "in both studies in fp32-low,",
    "bf16": "in both studies in bf16,",
    "bf16, low learning rate": "in both studies in bf16-low,",
}
"""Label of a row of the table to how the line above its figures begins."""
_LEADS = {
    "written in float32": "all 40 confirmation cells",
    "written in the dtype of the fine-tuned model": "in the dtype of the fine-tuned model, as",
    "in float32, without the kind of cell where it is largest": "without smollm2/sums/bf16-low",
    "in float32, with an alpha for WiSE-FT that was chosen for each regime": "WiSE-FT at the alpha that was best",
}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)[)#]", page.read_text(encoding="utf-8")):
        if not target.startswith("https://"):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def python_pages() -> list[str]:
    """Pages with code in Python; that of the tutorial is run with its commands."""
    pages = [page.relative_to(ROOT).as_posix() for page in PAGES]
    return [page for page in pages if blocks_of(page, "python") and page != "docs/tutorial/index.md"]


def test_there_is_code_in_python() -> None:
    assert len(python_pages()) >= 6


# PEFT asks transformers 5 for a property by its old name.
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
@pytest.mark.usefixtures("few_draws")
@pytest.mark.parametrize("page", python_pages())
def test_the_python_of_a_page_runs_from_its_first_block_to_its_last(page: str, world: Callable[[str], Path]) -> None:
    folder = world(page)
    add_records(folder)
    if page.endswith(("adapters.md", "adapter.md")):
        deltamend.repair("BASE", "FINETUNED", "OUT", output="adapter")
    base_model, model = llama(), llama()
    fine_tune(model)
    names = {"base_model": base_model, "model": model, "__name__": page}
    for code in blocks_of(page, "python"):
        exec(compile(code, page, "exec", dont_inherit=True), names)  # noqa: S102 - our own page
    if page == "README.md":
        assert (folder / "out" / "deltamend.json").exists()


def confirmed() -> dict[str, dict[str, tuple[float, float, float]]]:
    """Figures of the ground over its confirmation cells, with their intervals, by repair."""
    found: dict[str, dict[str, tuple[float, float, float]]] = {}
    with GROUND.open(encoding="utf-8", newline="") as table:
        for row in csv.DictReader(table):
            if row["group"] == "confirmation":
                figures = tuple(float(row[name] or "nan") for name in ("value", "low", "high"))
                found.setdefault(row["repair"], {})[row["figure"]] = (figures[0], figures[1], figures[2])
    return found


def percent(share: float) -> str:
    return f"{round(100 * share) + 0} %"


def rounded(figure: float) -> str:
    return f"{figure:.2f}".replace("-0.00", "0.00").replace("-", "−")


def test_the_headline_of_the_readme_is_that_of_the_records() -> None:
    plain, found = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split()), confirmed()
    ours = found["mixed-1-short"]
    healing, (lead, low, high) = ours["healing"][0], ours["above_straight"]
    assert f"heals {percent(healing)} of what was lost and keeps {percent(ours['retention'][0])} of what" in plain
    assert f"heals {percent(healing - lead)}: a lead of {round(100 * lead)} points" in plain
    assert f"from {round(100 * low)} to {round(100 * high)} over".replace("-", "−") in plain
    theirs = found["dg-hard"]["healing"][0]
    assert f"heals {'nothing' if abs(theirs) < 0.005 else percent(theirs)} of it here" in plain


def test_the_table_of_the_third_study_has_the_figures_of_the_records() -> None:
    text, found = STUDIES.read_text(encoding="utf-8"), confirmed()
    rows = re.findall(r"^\| ([^|]+) \| (-?\d+ %) \| (-?\d+ %) \| ([^|]+) \|$", text, re.MULTILINE)
    assert rows[0][0] == "`--method auto`, written in float32"
    figures = {
        (
            percent(one["healing"][0]),
            percent(one["retention"][0]),
            "{} [{}, {}]".format(*map(rounded, one["above_straight"])),
        )
        for one in found.values()
        if "above_straight" in one
    }
    assert len(rows) >= 8
    assert {tuple(told) for _, *told in rows} <= figures


def test_the_table_of_methods_has_the_figures_of_the_records() -> None:
    text, records = STUDIES.read_text(encoding="utf-8"), LEAD_FRESH.read_text(encoding="utf-8")
    rows = re.findall(r"^\| ([^|]+) \| (\d+) \| (\d+) \| (\d+) \| (\d+) \| (\d+) \|$", text, re.MULTILINE)
    assert [label for label, *_ in rows] == list(_ROWS)
    for label, *told in rows:
        (block,) = re.findall(rf"^{_ROWS[label]}.*\n((?:  .*\n)+)", records, re.MULTILINE)
        figures = [re.findall(rf"^  {name}: ([\d.]+) in", block, re.MULTILINE) for name in _COLUMNS]
        assert told == [str(round(float(figure))) for (figure,) in figures], label


def test_the_leads_are_those_of_the_records() -> None:
    text, records = STUDIES.read_text(encoding="utf-8"), LEAD.read_text(encoding="utf-8")
    for label, begins in _LEADS.items():
        (block,) = re.findall(rf"^{re.escape(begins)}.*\n((?:  .*\n)+)", records, re.MULTILINE)
        ((lead, *ends),) = re.findall(
            r"^  null-space-0.001 − (?:wise-ft-0.5|that): (\S+) in \d+ cells, \[(\S+), (\S+)\], for cells like these \[(\S+), (\S+)\]",
            block,
            re.MULTILINE,
        )
        these, like = (f"{low} to {high}".replace("-", "−") for low, high in (ends[:2], ends[2:]))
        assert f"| {label} | {lead} | {these} | {like} |" in text


@pytest.mark.parametrize(
    ("page", "measured"),
    [
        ("docs/explanation/reliability.md", "faults.md"),
        ("docs/explanation/rounding.md", "rounding.md"),
        ("docs/formats/adapter.md", "adapter-output.md"),
        ("docs/formats/parent.md", "parent.md"),
    ],
)
def test_measured_tables_are_those_that_the_benchmarks_wrote(page: str, measured: str) -> None:
    table = (ROOT / "docs/measured" / measured).read_text(encoding="utf-8").partition("\n\n")[0]
    assert table.startswith("|")
    assert table in (ROOT / page).read_text(encoding="utf-8")


def test_the_figures_of_rounding_are_those_of_the_reports() -> None:
    text = (ROOT / "docs/explanation/rounding.md").read_text(encoding="utf-8")
    for study in ("smollm2", "fresh"):
        report = (ROOT / f"docs/results/{study}/results/README.md").read_text(encoding="utf-8")
        (table,) = re.findall(r"### All repairs, confirmation, bf16 cells\n\n((?:\|.*\n)+)", report)
        found = {
            name: re.findall(rf"^\| {name} \|(?:[^|]*\|){{6}} ([\d.]+) ", table, re.MULTILINE)
            for name in ("dg-hard", "dg-hard-bf16")
        }
        assert f"{found['dg-hard-bf16'][0]} against {found['dg-hard'][0]}" in text


def test_the_items_of_the_tutorial_are_made_by_its_script() -> None:
    folder = ROOT / "docs" / "tutorial"
    spec = importlib.util.spec_from_file_location("items", folder / "items.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for name, rows in module.items().items():
        assert (folder / name).read_text(encoding="utf-8") == module.as_jsonl(rows)
