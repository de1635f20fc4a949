"""The page: self-contained, and safe whatever a model says."""

from __future__ import annotations

import re

from deltamend.report.demo_page import (
    DemoPage,
    MeasureCell,
    MeasureRow,
    Meter,
    RepairRow,
    RepairVerdict,
    SampleReplies,
    render_demo_page,
)

HOSTILE = '<script>alert("x")</script> & <img src=x onerror=alert(1)>'


def page(text: str, *, toy: bool = False) -> DemoPage:
    cell = MeasureCell(text="97%", interval="94–99%", bar=0.97, low=0.94, high=0.99)
    return DemoPage(
        title=text,
        headline=text,
        damage=text,
        toy=toy,
        models=(text, text),
        verdicts=(RepairVerdict(text, (Meter(text, None, text), Meter(text, 0.5, text)), (text,)),),
        measures=(MeasureRow(text, text, (cell, cell)),),
        samples=(SampleReplies(text, (text, "")),),
        repairs=(RepairRow(text, text, text, text, text, text),),
        setup=(text,),
        commands=(text,),
        footer=text,
    )


def test_hostile_text_stays_text() -> None:
    html = render_demo_page(page(HOSTILE))
    assert "<script" not in html
    assert "<img" not in html
    assert "&lt;script&gt;" in html


def test_the_page_needs_nothing_from_outside() -> None:
    html = render_demo_page(page("text"))
    assert not re.search(r"https?://|<link|@import|url\(", html)


def test_an_empty_reply_is_shown_as_one() -> None:
    assert "(nothing)" in render_demo_page(page("text"))


def test_a_toy_says_that_it_is_one() -> None:
    assert "This is a toy" in render_demo_page(page("text", toy=True))
    assert "This is a toy" not in render_demo_page(page("text"))
