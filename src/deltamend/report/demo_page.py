"""The demo's HTML page: one file, no script, no network, light and dark."""

from __future__ import annotations

from dataclasses import dataclass

from deltamend.report.page_templates import page_template


@dataclass(frozen=True)
class MeasureCell:
    """One model's result on one measure, ready to print and to draw.

    Attributes:
        text: the value as printed, such as `97%` or `2.81`.
        interval: the 95% interval as printed.
        bar: length of the bar, 0 to 1.
        low: where the interval begins on the same scale.
        high: where it ends.
    """

    text: str
    interval: str
    bar: float
    low: float
    high: float


@dataclass(frozen=True)
class MeasureRow:
    """One measure over all models, in the order of `DemoPage.models`."""

    title: str
    explanation: str
    cells: tuple[MeasureCell, ...]


@dataclass(frozen=True)
class SampleReplies:
    """One prompt and every model's reply to it, in the order of `DemoPage.models`."""

    prompt: str
    replies: tuple[str, ...]


@dataclass(frozen=True)
class Meter:
    """One share as a labelled bar; `share` is 0 to 1, or None where it is not defined."""

    label: str
    share: float | None
    text: str


@dataclass(frozen=True)
class RepairVerdict:
    """What is said of one repair: two bars for the eye, and sentences."""

    name: str
    meters: tuple[Meter, ...]
    sentences: tuple[str, ...]


@dataclass(frozen=True)
class RepairRow:
    """What one repair did to the weights: name, matrices, ranks and energy kept, rounding loss, where its record is."""

    name: str
    matrices: str
    rank: str
    energy: str
    rounding: str
    record: str


@dataclass(frozen=True)
class DemoPage:
    """Everything on the page; all of it is text, and all of it is escaped."""

    title: str
    headline: str
    damage: str
    toy: bool
    models: tuple[str, ...]
    verdicts: tuple[RepairVerdict, ...]
    measures: tuple[MeasureRow, ...]
    samples: tuple[SampleReplies, ...]
    repairs: tuple[RepairRow, ...]
    setup: tuple[str, ...]
    commands: tuple[str, ...]
    footer: str


def render_demo_page(page: DemoPage) -> str:
    """The page as HTML text."""
    return page_template("demo.html.j2").render(page=page)
