"""The results of a study as a folder: everything is there or nothing, the figures agree, and names stay text."""

from __future__ import annotations

import csv
import io
import json
import re
from pathlib import Path
from typing import Any

import pytest

from deltamend.errors import OutputError
from deltamend.machine.escaping import markdown_text
from deltamend.report.study_csv import study_csv_files
from deltamend.report.study_page import results_html, results_markdown, write_results
from deltamend.report.study_plots import ALT, plots_of_study
from deltamend.report.study_tables import main_table
from deltamend.study.findings.result_types import CHOOSING, CONFIRMATION, StudyResults
from deltamend.study.findings.results import study_results
from tests.study.made_up import made_up_study, write_made_up

pytestmark = pytest.mark.slow

HOSTILE = """<script>document.title='ran'</script><img src=x onerror="document.title='ran'">"""
TABLES = {
    "above_wise_ft.csv",
    "best_strengths.csv",
    "cells.csv",
    "comparisons.csv",
    "dg_hard.csv",
    "effects.csv",
    "minus_best_published.csv",
    "rankings.csv",
    "repairs.csv",
    "safety.csv",
    "wise_ft_curve.csv",
    "written.csv",
    "written_differences.csv",
}


PLOTS = ALT.keys() - {"equal-retention.svg"}  # this study names no measure


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> StudyResults:
    out = tmp_path_factory.mktemp("study")
    study = made_up_study()
    write_made_up(study, out, items=dict.fromkeys(("target", "target_likelihood", "arc", "mmlu", "piqa"), 40))
    return study_results(study, out, draws=100)


def eight_digits(value: Any) -> Any:
    """What the written files hold: further digits differ from one make of processor to another."""
    if isinstance(value, float):
        return float(f"{value:.8g}")
    if isinstance(value, dict):
        return {key: eight_digits(inner) for key, inner in value.items()}
    return tuple(map(eight_digits, value)) if isinstance(value, list | tuple) else value


@pytest.fixture(scope="module")
def written(results: StudyResults, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("written") / "results"
    write_results(results, folder)
    return folder


@pytest.fixture(scope="module")
def only_choosing(tmp_path_factory: pytest.TempPathFactory) -> StudyResults:
    out = tmp_path_factory.mktemp("choosing")
    study = made_up_study()
    write_made_up(study, out, only={cell.name for cell in study.cells() if study.chooses(cell)})
    return study_results(study, out, draws=100)


@pytest.fixture(scope="module")
def hostile(results: StudyResults) -> StudyResults:
    """The same with names that would run where they are not escaped."""
    text = results.model_dump_json()
    for name in ("ours", "tiny/quiz/fp32/1", "a weak judge", "xstest_safe"):
        said = json.dumps(f"{name} {HOSTILE} ]] $x$")[1:-1].replace("\\", r"\\")
        text = re.sub(rf"\b{name}\b", said, text)
    return StudyResults.model_validate_json(text)


def test_all_files_are_written(written: Path) -> None:
    found = {str(path.relative_to(written)) for path in written.rglob("*") if path.is_file()}
    plots, tables = {f"plots/{name}" for name in PLOTS}, {f"tables/{name}" for name in TABLES}
    assert found == {"README.md", "index.html", "results.json"} | plots | tables


def test_the_json_is_the_results(written: Path, results: StudyResults) -> None:
    found = StudyResults.model_validate_json((written / "results.json").read_text(encoding="utf-8"))
    assert found == StudyResults.model_validate(eight_digits(results.model_dump()))
    assert found != results


def test_the_answer_comes_first_and_the_main_table_next(written: Path, results: StudyResults) -> None:
    text = (written / "README.md").read_text(encoding="utf-8")
    first, answer, *_ = text.split("\n\n")
    assert first == "# Results of the study made-up"
    assert answer == f"**{markdown_text(results.headline)}**"
    assert text.index("| repair | role |") < text.index("![") < text.index("## Which repair is best?")


def test_the_figures_of_the_readme_are_those_of_the_json(written: Path) -> None:
    found = json.loads((written / "results.json").read_text(encoding="utf-8"))
    table = (written / "README.md").read_text(encoding="utf-8").split("| repair | role | cells |")[1].split("\n\n")[0]
    rows = {cells[1]: cells for line in table.splitlines()[2:] if (cells := [part.strip() for part in line.split("|")])}
    own = {of["name"]: of["groups"].get(CONFIRMATION) for of in found["repairs"]}
    assert set(rows) == {name for name, parts in own.items() if parts is not None}
    for name, parts in own.items():
        if parts is None:
            continue
        for column, part in ((4, "healing"), (5, "preservation"), (6, "non_damage"), (7, "retention")):
            assert rows[name][column] == f"{parts[part]['these_cells']['value']:.2f}"
        combined = parts["combined"]["these_cells"]
        assert rows[name][8] == f"{combined['value']:.1f} \\[{combined['low']:.1f}, {combined['high']:.1f}\\]"
    scores = [own[name]["combined"]["these_cells"]["value"] for name in rows]
    assert scores == sorted(scores, reverse=True)


def test_the_page_has_every_sentence_and_every_repair(written: Path, results: StudyResults) -> None:
    page, readme = ((written / name).read_text(encoding="utf-8") for name in ("index.html", "README.md"))
    for answer in results.answers:
        assert answer.question in page
        for sentence in answer.sentences:
            assert sentence in page
            assert markdown_text(sentence) in readme
    for repair in results.repairs:
        assert f"<td>{repair.name}</td>" in page
    for note in results.notes:
        assert note in page
    assert "deltamend study CONFIG.yaml OUT --report --draws 100" in page
    assert "deltamend study CONFIG.yaml OUT --report --draws 100" in readme


def test_the_csv_holds_every_figure_of_every_repair(results: StudyResults) -> None:
    rows = list(csv.DictReader(io.StringIO(study_csv_files(results)["repairs.csv"])))
    assert len(rows) == 5 * sum(len(of.groups) for of in results.repairs)
    ours = next(of for of in results.repairs if of.name == "ours").groups[CONFIRMATION].combined.these_cells
    (row,) = (row for row in rows if (row["repair"], row["group"], row["figure"]) == ("ours", CONFIRMATION, "combined"))
    assert [float(row[end]) for end in ("value", "low", "high")] == [ours.value, ours.low, ours.high]


def test_without_a_confirmation_cell_the_page_says_loudly_that_picks_are_optimistic(
    only_choosing: StudyResults, tmp_path: Path
) -> None:
    write_results(only_choosing, tmp_path / "results")
    for name in ("README.md", "index.html"):
        text = (tmp_path / "results" / name).read_text(encoding="utf-8")
        assert "Nothing is confirmed yet" in text
        assert "Only choosing cells are done" in text
        assert "The study is not finished" in text
        assert "All repairs, choosing cells" in text
        assert "All repairs, confirmation cells" not in text
    assert main_table(only_choosing).title == f"All repairs, {CHOOSING} cells"
    assert "above-wise-ft.svg" in plots_of_study(only_choosing)


def test_a_finished_study_warns_of_nothing(written: Path) -> None:
    page = (written / "index.html").read_text(encoding="utf-8")
    assert 'class="note"' not in page
    assert "What is missing" not in page


def test_results_with_next_to_nothing_in_them_still_give_a_page(tmp_path: Path) -> None:
    study = made_up_study()
    study = study.model_copy(update={"repairs": tuple(of for of in study.repairs if of.name in ("ties", "ours"))})
    cell = next(cell for cell in study.cells() if not study.chooses(cell))
    write_made_up(study, tmp_path, only={cell.name}, without={cell.name: {"ties", "ours"}})
    write_results(study_results(study, tmp_path, draws=100), tmp_path / "results")
    assert "ours, ties" in (tmp_path / "results" / "README.md").read_text(encoding="utf-8").replace(
        "ties, ours", "ours, ties"
    )


def test_the_same_results_give_the_same_bytes(results: StudyResults) -> None:
    first, second = plots_of_study(results), plots_of_study(results)
    assert first == second
    assert set(first) == PLOTS
    assert all(b"<dc:date" not in drawn for drawn in first.values())


def test_the_page_needs_nothing_from_outside(hostile: StudyResults) -> None:
    page = results_html(hostile, plots_of_study(hostile))
    assert not re.search(r"https?://|<link|@import|url\(|<script|<img src=x", page)
    assert "&lt;script&gt;" in page


def test_hostile_names_stay_text_in_markdown(hostile: StudyResults) -> None:
    text = results_markdown(hostile, list(ALT))
    assert not re.search(r"(?<!\\)<(script|img)", text)


def test_a_write_that_fails_leaves_what_was_there(
    results: StudyResults, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "results"
    folder.mkdir()
    (folder / "README.md").write_text("before", encoding="utf-8")
    real = Path.write_bytes

    def fails(path: Path, data: bytes) -> int:
        if path.name == "cells.svg":
            raise OSError(28, "No space left on device")
        return real(path, data)

    monkeypatch.setattr(Path, "write_bytes", fails)
    with pytest.raises(OutputError, match="No space left on device"):
        write_results(results, folder)
    assert [path.name for path in tmp_path.iterdir()] == ["results"]
    assert [path.name for path in folder.iterdir()] == ["README.md"]
    assert (folder / "README.md").read_text(encoding="utf-8") == "before"


def test_a_folder_that_holds_something_else_stays_as_it_is(results: StudyResults, tmp_path: Path) -> None:
    folder = tmp_path / "docs"
    (folder / "cells").mkdir(parents=True)
    with pytest.raises(OutputError, match=r"holds 'cells', which is no file of the results"):
        write_results(results, folder)
    assert [path.name for path in folder.iterdir()] == ["cells"]
    (folder / "cells").rmdir()
    folder.rename(tmp_path / "elsewhere")
    folder.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OutputError, match="is not a folder"):
        write_results(results, folder)


def test_a_write_that_fails_leaves_nothing_where_nothing_was(results: StudyResults, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder", encoding="utf-8")
    with pytest.raises(OutputError, match="file"):
        write_results(results, tmp_path / "file" / "results")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_browser_runs_nothing_and_fetches_nothing(browser: Any, hostile: StudyResults, tmp_path: Path) -> None:
    write_results(hostile, tmp_path / "results")
    for scheme, background in (("light", "rgb(251, 250, 247)"), ("dark", "rgb(20, 23, 26)")):
        page = browser.new_page(color_scheme=scheme, viewport={"width": 1280, "height": 900})
        asked: list[str] = []
        said: list[str] = []
        page.on("request", lambda request, asked=asked: asked.append(request.url))
        page.on("console", lambda message, said=said: said.append(message.text))
        page.on("pageerror", lambda error, said=said: said.append(str(error)))
        page.goto((tmp_path / "results" / "index.html").as_uri())
        assert page.title() == "Results of the study made-up"
        assert not said
        assert not [url for url in asked if not url.startswith(("file:", "data:"))]
        assert page.evaluate("[...document.images].every(image => image.complete && image.naturalWidth > 0)")
        assert page.locator("figure img").count() == len(PLOTS)
        assert page.evaluate("getComputedStyle(document.body).backgroundColor") == background
        assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
        page.close()


def test_a_narrow_screen_does_not_scroll_sideways(browser: Any, written: Path) -> None:
    page = browser.new_page(viewport={"width": 390, "height": 800})
    page.goto((written / "index.html").as_uri())
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    page.close()
