"""The page of a score: self-contained, safe whatever a record says, and drawn as meant in a real browser."""

from __future__ import annotations

import csv
import io
import re
from pathlib import Path
from typing import Any

import pytest

import deltamend
from deltamend.evaluation.record import Evaluation
from deltamend.report.score_page import headline, render_cells_page, render_score_page
from deltamend.report.score_tables import cells_tables, latex, markdown, scores_csv, tables_of_score, weak_figures
from deltamend.scoring.across_cells import score_across_cells
from deltamend.scoring.paired_cell import open_cell
from deltamend.scoring.result import Score
from deltamend.scoring.settings import Settings
from tests.scoring.records import made_up_cell

HOSTILE = """<script>document.title='ran'</script><img src=x onerror="document.title='ran'">"""
WEAK = "refusals are matched as strings"


def scored(records: dict[str, Evaluation], names: tuple[str, str] = ("good", "poor"), **options: Any) -> Score:
    repaired = {names[0]: records["good"], names[1]: records["poor"]}
    return deltamend.score(records["base"], records["finetuned"], repaired, target="sums", draws=300, **options)


def weak_and_hostile() -> Score:
    records = {}
    for name, of in made_up_cell().items():
        weak = of.tasks["mnli"].model_copy(update={"weak": WEAK})
        tasks = {key: task for key, task in of.tasks.items() if key != "mnli"} | {HOSTILE: weak}
        records[name] = of.model_copy(update={"tasks": tasks, "model": f"{name}{HOSTILE}"})
    return scored(records, (HOSTILE, "=cmd|'/c calc'!A1"))


def test_hostile_names_stay_text() -> None:
    html = render_score_page(weak_and_hostile())
    assert "<script" not in html
    assert "<img" not in html
    assert "&lt;script&gt;" in html


@pytest.mark.slow
def test_an_interval_without_width_is_told_in_words_and_drawn_hollow() -> None:
    records = made_up_cell()
    worn = {name: of.tasks["arc"].items for name, of in records.items()}
    worn["finetuned"] = tuple(item.model_copy(update={"score": 0.0}) for item in worn["finetuned"])
    changed = {
        name: of.model_copy(
            update={"tasks": of.tasks | {"arc": of.tasks["arc"].model_copy(update={"items": worn[name]})}}
        )
        for name, of in records.items()
    }
    score = scored(changed)
    (row,) = (row for row in tables_of_score(score)[1].rows if row[0] == "arc")
    assert row[5] == "0.000 [no width]"
    assert not any("no width" in text for text in (row[4], *row[6:]))
    html = render_score_page(score)
    assert html.count('class="dot hollow"') == 1
    assert "an interval without width (arc)" in html
    assert 'class="dot hollow"' not in render_score_page(scored(records))


def test_the_page_needs_nothing_from_outside() -> None:
    assert not re.search(r"https?://|<link|@import|url\(|<script", render_score_page(scored(made_up_cell())))


@pytest.mark.slow
def test_a_browser_runs_nothing_fetches_nothing_and_draws_every_method(browser: Any, tmp_path: Path) -> None:
    path = tmp_path / "score.html"
    path.write_text(render_score_page(weak_and_hostile()), encoding="utf-8")
    for scheme in ("light", "dark"):
        page = browser.new_page(color_scheme=scheme)
        asked: list[str] = []
        complaints: list[str] = []
        page.on("request", lambda request, asked=asked: asked.append(request.url))
        page.on("console", lambda message, complaints=complaints: complaints.append(message.text))
        page.goto(path.as_uri())
        assert page.title() != "ran"
        assert asked == [path.as_uri()]
        assert complaints == []
        assert (
            page.locator("svg circle.dot").count() == 4 + 5 * 4
        )  # the trade-off, then base, tuned, two repairs a task
        assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
        background = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert background == ("rgb(251, 250, 247)" if scheme == "light" else "rgb(20, 23, 26)")
        page.close()


@pytest.mark.slow
def test_a_narrow_screen_does_not_scroll_sideways(browser: Any, tmp_path: Path) -> None:
    path = tmp_path / "score.html"
    path.write_text(render_score_page(scored(made_up_cell())), encoding="utf-8")
    page = browser.new_page(viewport={"width": 390, "height": 800})
    page.goto(path.as_uri())
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")


def test_a_weak_figure_is_called_weak_wherever_it_is_shown() -> None:
    score = weak_and_hostile()
    html = render_score_page(score)
    assert html.count(WEAK) >= 3  # the notes, the slope, the heat map
    assert "(weak)" in html  # the table
    assert WEAK in markdown(tables_of_score(score), weak_figures(score))
    assert "(weak)" in latex(tables_of_score(score))
    rows = list(csv.DictReader(io.StringIO(scores_csv([score]))))
    assert all(row["weak"] == WEAK for row in rows if row["task"].startswith("<script"))


def test_what_is_undefined_is_named_on_the_page() -> None:
    records = made_up_cell()
    html = render_score_page(scored({**records, "finetuned": records["base"]}))
    assert "healing is undefined: fine-tuning damaged no benchmark beyond the margin" in html
    assert "there is no trade-off to draw" in html


def test_a_repair_that_cannot_be_told_from_another_is_not_called_better() -> None:
    records = made_up_cell()
    assert "excludes zero" in headline(scored(records))
    assert "do not tell it apart from" in headline(scored({**records, "poor": records["good"]}))
    alone = deltamend.score(records["base"], records["finetuned"], {"good": records["good"]}, target="sums", draws=300)
    assert headline(alone).startswith("good has a combined score of")


def test_markdown_and_latex_keep_names_as_text() -> None:
    score = weak_and_hostile()
    assert "<script" not in markdown(tables_of_score(score), score.notes).replace("\\<script", "")
    text = latex(tables_of_score(scored(made_up_cell(), ("a_b&c", "50%"))))
    assert r"a\_b\&c" in text
    assert r"50\%" in text
    assert text.count(r"\toprule") == len(tables_of_score(score))


def test_csv_has_every_figure_and_no_formula() -> None:
    score = weak_and_hostile()
    rows = list(csv.DictReader(io.StringIO(scores_csv([score]))))
    assert len(rows) == 4 * 8 + 5 * (2 + 4 * 5)
    assert not any(str(value).startswith(("=", "@")) for row in rows for value in row.values())
    healing = next(row for row in rows if row["method"] == HOSTILE and row["figure"] == "healing")
    assert float(healing["value"]) == score.methods[HOSTILE].healing.value


def test_the_page_of_many_cells_has_the_tests_and_every_cell() -> None:
    cells = []
    for seed in range(2):
        records = made_up_cell(seed=seed)
        repaired = {"good": records["good"], "poor": records["poor"]}
        cells.append(
            open_cell(records["base"], records["finetuned"], repaired, target="sums", name=f"<b>cell {seed}</b>")
        )
    score = score_across_cells(cells, ["a", "b"], Settings(draws=300))
    html = render_cells_page(score)
    assert "Wilcoxon" in html
    assert html.count("<details><summary>&lt;b&gt;cell") == 2
    assert "2 clusters of cells cannot give a p below 0.5" in html
    assert [table.title for table in cells_tables(score)][:3] == [
        "Combined score over 2 cells",
        "Differences in combined score over cells, paired",
        "Wilcoxon signed ranks over clusters of cells",
    ]


@pytest.mark.slow
def test_on_paper_it_is_light_whole_and_open(browser: Any, tmp_path: Path) -> None:
    path = tmp_path / "score.html"
    path.write_text(render_score_page(scored(made_up_cell())), encoding="utf-8")
    page = browser.new_page(color_scheme="dark", viewport={"width": 700, "height": 1000})
    page.goto(path.as_uri())
    folded = page.locator("details p, details td, details li")
    assert not any(of.is_visible() for of in folded.all())
    page.emulate_media(media="print", color_scheme="dark")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert page.evaluate("getComputedStyle(document.querySelector('h1')).color") == "rgb(0, 0, 0)"
    assert all(of.is_visible() for of in folded.all())
    # A4 less its margins has 703 CSS pixels; what a table's frame cuts off does not widen the page.
    sticking_out = (
        "[...document.querySelectorAll('table')].filter((of) => of.getBoundingClientRect().right > 700).length"
    )
    assert page.evaluate(sticking_out) == 0
    assert page.evaluate("document.documentElement.scrollWidth") <= 700
    page.close()
