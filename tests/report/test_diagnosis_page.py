"""The page in a browser: it works from a file, shows the matrix that was clicked, and runs nothing a name says."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

import deltamend
from deltamend.diagnosis.records import Diagnosis
from deltamend.report.diagnosis_page import diagnosis_csv, render_diagnosis_page
from tests.conftest import Pair

pytestmark = pytest.mark.usefixtures("few_draws")
HOSTILE = '</script><img src=x onerror="window.ran = true"><script>window.ran = true</script>.layers.0.<b>\'"&.weight'


@pytest.fixture(scope="module")
def found(llama_pair: Pair) -> Diagnosis:
    return deltamend.diagnose(llama_pair.base, llama_pair.finetuned)


@pytest.fixture(scope="module")
def hostile(found: Diagnosis) -> Diagnosis:
    matrices = (
        found.matrices[0].model_copy(update={"name": HOSTILE, "module": HOSTILE, "layer": 0}),
        *found.matrices[1:],
    )
    return found.model_copy(update={"matrices": matrices, "base": HOSTILE, "finetuned": HOSTILE})


def opened(browser: Any, diagnosis: Diagnosis, folder: Path, **options: Any) -> tuple[Any, list[str]]:
    """The page, and what its console said."""
    file = folder / "page.html"
    file.write_text(render_diagnosis_page(diagnosis), encoding="utf-8")
    page, said = browser.new_page(**options), []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: None if request.url.startswith("file:") else said.append(request.url))
    page.goto(file.as_uri())
    return page, said


@pytest.mark.slow
def test_names_stay_text_in_the_source(hostile: Diagnosis) -> None:
    page = render_diagnosis_page(hostile)
    assert page.count("<script") == 2
    assert "<img" not in page
    assert "&lt;img" in page
    (data,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    assert "<" not in data
    assert json.loads(data)["matrices"][0]["name"] == HOSTILE


def test_the_page_needs_nothing_from_outside(found: Diagnosis) -> None:
    page = render_diagnosis_page(found).replace("http://www.w3.org/2000/svg", "")
    assert not re.search(r"https?://|<link|@import|url\(", page)


def test_three_hundred_matrices_stay_below_five_megabytes(found: Diagnosis) -> None:
    many = tuple(found.matrices[index % len(found.matrices)] for index in range(300))
    assert len(render_diagnosis_page(found.model_copy(update={"matrices": many})).encode()) < 5e6


def test_a_diagnosis_without_a_spectrum_has_a_page(llama_pair: Pair) -> None:
    assert "Almost unchanged" in render_diagnosis_page(deltamend.diagnose(llama_pair.base, llama_pair.base))


@pytest.mark.slow
def test_it_opens_without_an_error_and_a_click_shows_that_matrix(
    browser: Any, found: Diagnosis, tmp_path: Path
) -> None:
    page, said = opened(browser, found, tmp_path)
    assert page.locator("#heat td button").count() == len(found.matrices)
    for matrix in (found.matrices[3], found.matrices[-1]):
        page.locator(f'#heat button[title="{matrix.name}"]').click()
        assert page.locator("#name").inner_text() == matrix.name
        numbers = page.locator("#numbers").inner_text()
        assert matrix.spectrum is not None
        assert f"{matrix.spectrum.rank} of {min(matrix.shape)}" in numbers
        assert f"{100 * matrix.spectrum.energy:.1f} %" in numbers
        assert page.locator("#spectrum .bars").count() == len(matrix.spectrum.histogram.counts)
        assert page.locator("#spectrum line.tau").count() == 1
        assert page.locator("#spectrum path.law").count() == 1
        assert page.locator("#qq circle").count() == 33
        assert page.locator("#reasons li").all_inner_texts() == list(matrix.reasons)
    assert said == []
    page.close()


@pytest.mark.slow
def test_a_hostile_name_does_not_run(browser: Any, hostile: Diagnosis, tmp_path: Path) -> None:
    page, said = opened(browser, hostile, tmp_path)
    page.locator("#list tbody tr button").first.click()
    page.locator("#heat button").first.click()
    assert page.locator("#name").inner_text() == HOSTILE
    assert page.evaluate("window.ran") is None
    assert page.locator("img").count() == 0
    assert said == []
    page.close()


@pytest.mark.slow
def test_the_keyboard_moves_over_the_map(browser: Any, found: Diagnosis, tmp_path: Path) -> None:
    page, _ = opened(browser, found, tmp_path)
    first = page.locator("#heat tbody tr").first.locator("button")
    first.first.focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    name = page.locator("#heat tbody tr").nth(1).locator("button").nth(1).get_attribute("title")
    assert page.locator("#name").inner_text() == name
    page.close()


@pytest.mark.slow
def test_the_table_sorts_and_filters(browser: Any, found: Diagnosis, tmp_path: Path) -> None:
    page, _ = opened(browser, found, tmp_path)
    page.get_by_role("button", name="KS", exact=True).click()
    shown = [float(text) for text in page.locator("#list tbody td:nth-child(6)").all_inner_texts()]
    assert shown == sorted(shown, reverse=True)
    page.locator("#filter").fill("Q_PROJ")
    visible = page.locator("#list tbody tr:visible td:first-child").all_inner_texts()
    assert len(visible) == 2
    assert all("q_proj" in name for name in visible)
    assert f"2 of {len(found.matrices)} shown" in page.locator("#shown").inner_text()
    page.close()


@pytest.mark.slow
def test_the_csv_can_be_downloaded(browser: Any, found: Diagnosis, tmp_path: Path) -> None:
    page, said = opened(browser, found, tmp_path)
    with page.expect_download() as download:
        page.locator("#csv").click()
    download.value.save_as(tmp_path / "saved.csv")
    assert (tmp_path / "saved.csv").read_text(encoding="utf-8") == diagnosis_csv(found)
    assert said == []
    page.close()


@pytest.mark.slow
def test_it_is_dark_where_the_system_is_and_the_button_turns_it(browser: Any, found: Diagnosis, tmp_path: Path) -> None:
    page, _ = opened(browser, found, tmp_path, color_scheme="dark")
    colour = "getComputedStyle(document.body).backgroundColor"
    dark = page.evaluate(colour)
    page.locator("#theme").click()
    assert (dark, page.evaluate(colour)) == ("rgb(20, 23, 26)", "rgb(251, 250, 247)")
    page.close()


@pytest.mark.slow
@pytest.mark.parametrize("width", [360, 800, 1400])
def test_nothing_sticks_out_at_any_width(browser: Any, found: Diagnosis, tmp_path: Path, width: int) -> None:
    page, _ = opened(browser, found, tmp_path, viewport={"width": width, "height": 900})
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.close()


@pytest.mark.slow
@pytest.mark.parametrize("clicks", [0, 2], ids=["dark by the system", "dark by the button"])
def test_on_paper_it_is_light_whatever_the_screen_is_and_shows_no_controls(
    browser: Any, found: Diagnosis, tmp_path: Path, clicks: int
) -> None:
    page, _ = opened(browser, found, tmp_path, color_scheme="dark", viewport={"width": 700, "height": 1000})
    for _ in range(clicks):
        page.locator("#theme").click()
    page.emulate_media(media="print", color_scheme="dark")
    style = "(what) => getComputedStyle(document.querySelector(what))"
    assert page.evaluate(f"({style})('body').backgroundColor") == "rgb(255, 255, 255)"
    assert page.evaluate(f"({style})('h1').color") == "rgb(0, 0, 0)"
    assert [page.locator(what).first.is_visible() for what in (".tools", "#theme", "#csv")] == [False] * 3
    assert [page.locator(what).is_visible() for what in ("h1", "#heat", "#detail", "#list")] == [True] * 4
    # A4 less its margins has 703 CSS pixels.
    assert page.evaluate("document.documentElement.scrollWidth") <= 700
    page.close()
