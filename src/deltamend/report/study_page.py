"""The results of a study as a folder: a page, the same as Markdown, every figure as JSON and CSV, and the plots."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deltamend.errors import OutputError
from deltamend.machine.atomic import publish
from deltamend.machine.escaping import markdown_text
from deltamend.report.equal_retention_tables import (
    admission_table,
    capabilities_table,
    equal_retention_sentences,
    equal_retention_table,
    families_table,
    shown_phase,
)
from deltamend.report.page_templates import page_template
from deltamend.report.score_tables import TITLES, Table, markdown
from deltamend.report.study_csv import CSV_FILES, study_csv_files
from deltamend.report.study_plots import ALT, PLOT_FILES, plots_of_study, shown_group
from deltamend.report.study_tables import (
    best_strengths_table,
    cells_table,
    comparison_tables,
    curve_table,
    dg_hard_table,
    effects_table,
    main_table,
    missing_table,
    rankings_table,
    repairs_table,
    safety_table,
    sample_answers_tables,
    written_table,
)
from deltamend.scoring.metric import PARTS
from deltamend.scoring.paired_cell import NONE_AND_REVERT
from deltamend.study.findings.intervals import INTERVAL_END_ERROR
from deltamend.study.findings.result_types import CONFIRMATION, StudyResults, Topic

_USUAL_DRAWS = 2000
"""Of `deltamend study`."""

_DIGITS = 8
_OURS = {"README.md", "index.html", "results.json", "tables", "plots"}
"""What the folder of the results holds."""

_PLOTS: dict[Topic, tuple[str, ...]] = {"curve": ("above-wise-ft.svg",), "dg-hard": ("dg-hard.svg",)}
_TABLES: dict[Topic, tuple[Callable[[StudyResults], Iterator[Table]], ...]] = {
    "best": (comparison_tables, best_strengths_table),
    "curve": (curve_table,),
    "dg-hard": (dg_hard_table,),
    "writing": (written_table,),
    "refusals": (safety_table,),
    "retention": (rankings_table,),
}


@dataclass(frozen=True)
class Section:
    """A part of the page: sentences, then plots, then tables, which the HTML page folds away where it says so."""

    title: str
    sentences: tuple[str, ...] = ()
    listed: bool = False
    plots: tuple[str, ...] = ()
    tables: tuple[Table, ...] = ()
    folded: bool = False


def write_results(results: StudyResults, folder: Path) -> None:
    """Write README.md, index.html, results.json, tables/*.csv and plots/*.svg; whole, or not at all.

    Earlier results in `folder` are replaced. Figures in results.json and in the tables have `_DIGITS` significant digits,
    so that the same records give the same files on every make of processor; the digits beyond differ.

    Raises:
        OutputError: it holds something else, which stays as it is, or cannot be written.
        UsageError: matplotlib is not installed.
    """
    _refuse_what_is_not_results(folder)
    plots = plots_of_study(results)
    rounded = StudyResults.model_validate(_rounded(results.model_dump()))
    texts = {
        "README.md": results_markdown(results, list(plots)),
        "index.html": results_html(results, plots),
        # A study whose answers were not kept has the same bytes as before answers could be.
        "results.json": rounded.model_dump_json(indent=1, exclude=None if results.samples else {"samples"}) + "\n",
        **{f"tables/{name}": text for name, text in study_csv_files(rounded).items()},
    }
    files = {name: text.encode() for name, text in texts.items()}
    files |= {f"plots/{name}": drawn for name, drawn in plots.items()}
    try:
        with publish(folder) as part:
            for name, content in files.items():
                (part / name).parent.mkdir(exist_ok=True)
                (part / name).write_bytes(content)
    except OSError as error:
        raise OutputError(f"{folder}: the results cannot be written ({error.strerror or error})") from error


def _rounded(value: Any) -> Any:
    """A record's content with every float, however deep, rounded to `_DIGITS` significant digits."""
    if isinstance(value, float):
        return float(f"{value:.{_DIGITS}g}")
    if isinstance(value, dict):
        return {key: _rounded(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return tuple(_rounded(inner) for inner in value)
    return value


def _refuse_what_is_not_results(folder: Path) -> None:
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        raise OutputError(f"{folder}: is not a folder; move it, or name another folder for the results")
    known = {"": _OURS, "tables": CSV_FILES, "plots": PLOT_FILES}
    for inner, names in known.items():
        place = folder / inner
        for path in sorted(place.iterdir()) if place.is_dir() else []:
            is_ours = path.name in names and not path.is_symlink() and path.is_dir() == (path.name in known)
            if not is_ours:
                raise OutputError(
                    f"{place}: holds {path.name!r}, which is no file of the results; move it, or name another folder for the results"
                )


def results_html(results: StudyResults, plots: dict[str, bytes]) -> str:
    """One self-contained page; the plots are images in it, so nothing in them can run."""
    images = {name: base64.b64encode(drawn).decode() for name, drawn in plots.items()}
    return page_template("study.html.j2").render(
        title=_title(results),
        headline=results.headline,
        warnings=warnings(results),
        sections=sections(results),
        images=images,
        alt=ALT,
        command=command(results),
    )


def results_markdown(results: StudyResults, plots: list[str]) -> str:
    """The same in Markdown."""
    parts = [f"# {markdown_text(_title(results))}", f"**{markdown_text(results.headline)}**"]
    parts += [f"> {markdown_text(text)}" for text in warnings(results)]
    for section in sections(results):
        parts.append(f"## {markdown_text(section.title)}")
        said = [markdown_text(text) for text in section.sentences]
        parts += ["\n".join(f"- {text}" for text in said)] if section.listed and said else said
        shown = [f"![{ALT[name]}](plots/{name})" for name in section.plots if name in plots]
        tables = [markdown(section.tables, ()).strip()] if section.tables else []
        parts += [*shown, *tables] if section.folded else [*tables, *shown]
    parts.append(f"```\n{command(results)}\n```")
    return "\n\n".join(parts) + "\n"


def command(results: StudyResults) -> str:
    """What makes these files again from the records."""
    draws = "" if results.draws == _USUAL_DRAWS else f" --draws {results.draws}"
    return f"deltamend study CONFIG.yaml OUT --report{draws}"


def warnings(results: StudyResults) -> tuple[str, ...]:
    """What must be known before any figure is read."""
    said = []
    if CONFIRMATION not in results.groups:
        said.append(
            "Only choosing cells are done. They are the ones that methods and strengths were picked on, so whatever comes out best "
            "here looks better than it is. Nothing on this page confirms anything yet."
        )
    if not results.progress.finished:
        missing = len(results.progress.missing)
        said.append(
            f"The study is not finished: {results.progress.scored} of {results.progress.planned} cells are scored, {missing} are "
            f"missing, and in {len(results.progress.missing_repairs)} scored cells some repairs are not done. "
            "What is missing is listed at the end."
        )
    return tuple(said)


def sections(results: StudyResults) -> list[Section]:
    """The page from top to bottom; parts with nothing in them are left out."""
    group = shown_group(results)
    found = [
        *_at_equal_retention(results),
        Section(
            f"The repairs side by side, {group} cells",
            (_how_to_read(results),),
            plots=("combined.svg", "trade-off.svg"),
            tables=(main_table(results),),
        ),
        *(
            Section(
                answer.question,
                answer.sentences,
                listed=True,
                plots=_PLOTS.get(answer.topic, ()),
                tables=tuple(table for make in _TABLES[answer.topic] for table in make(results)),
                folded=True,
            )
            for answer in results.answers
        ),
        Section("What fine-tuning did to each capability", tables=(effects_table(results),), folded=True),
        Section("Every cell", plots=("cells.svg",), tables=(cells_table(results),), folded=True),
        Section("What models answered", tables=tuple(sample_answers_tables(results)), folded=True),
        Section("Every repair tried", tables=(repairs_table(results),), folded=True),
        Section(
            "Other groups of cells",
            tables=tuple(main_table(results, other) for other in results.groups if other != group),
            folded=True,
        ),
        Section("What is not known", results.notes, listed=True),
        Section("What is missing", tables=tuple(missing_table(results)), folded=True),
        Section("How this was made", tuple(_made(results)), listed=True),
    ]
    return [of for of in found if of.sentences or of.tables]


def _at_equal_retention(results: StudyResults) -> Iterator[Section]:
    """The primary measure, of a study that names one."""
    found = results.equal_retention
    if found is None:
        return
    phase = shown_phase(found)
    tables = [equal_retention_table(found, phase)] if phase in found.groups else []
    yield Section(
        "Healing above the WiSE-FT curve at equal retention",
        tuple(equal_retention_sentences(found)),
        listed=True,
        plots=("equal-retention.svg",),
        tables=tuple(tables),
    )
    yield Section("What the cells taught and damaged", tables=(admission_table(found),), folded=True)
    if phase in found.groups:
        others = [group for group in found.groups if group != phase]
        yield Section(
            "Capability by capability, family by family",
            tables=(capabilities_table(found, phase), *(families_table(found, one) for one in found.groups)),
            folded=True,
        )
        yield Section(
            "At equal retention, by regime and by model",
            tables=tuple(equal_retention_table(found, group) for group in others),
            folded=True,
        )


def _title(results: StudyResults) -> str:
    return f"Results of the study {results.name}"


def _how_to_read(results: StudyResults) -> str:
    return (
        "Healing is over the benchmarks that fine-tuning damaged, preservation over those it improved, non-damage over the rest, "
        "retention on the target; each from 0 to 1. Combined is 100 times their harmonic mean. Everything is a mean over cells, "
        "each part over those in which it is defined, "
        "seeds of one cell taken together. The fine-tuned model itself (none) heals nothing and the base (revert) keeps nothing, "
        f"so both score 0. In brackets: {100 * results.confidence:g}% intervals, first for these very cells (other items), then "
        "for cells like these (other items and other cells). Differences are paired, over the cells that have both repairs; the "
        "best published repair is picked in the same cells and so flattered. Each interval is taken alone. Resampling moves what is near 0 or 1 "
        "away from there, so an interval may lie beside its figure; no verdict rests on such a one. With other draws an end would move "
        f"by some {100 * INTERVAL_END_ERROR:g}% of the interval's width, so none rests on an end that is nearer to 0 than twice that. "
        f"{_defined_in(results)} A cell is one fine-tuned model: a target, a regime and a seed. Roles: published, a method at its "
        "published setting; strength, another setting; candidate, ours; control, what a candidate must beat; dtype, written in the "
        "dtype that is named. All others are written in float32; `deltamend repair` writes the fine-tuned model's dtype unless it is told."
    )


def _defined_in(results: StudyResults) -> str:
    """In how many cells each part is defined for the fine-tuned model itself, that is for every repair."""
    group = shown_group(results)
    own = next(
        (one.groups[group] for one in results.repairs if one.name == NONE_AND_REVERT[0] and group in one.groups), None
    )
    if own is None:
        return ""
    said = ", ".join(f"{TITLES[part]} in {getattr(own, part).cells}" for part in PARTS if part != "combined")
    return f"Of the {len(results.groups[group])} {group} cells, each part is defined in some: {said}."


def _made(results: StudyResults) -> Iterator[str]:
    yield f"Machines: {'; '.join(results.machines)}."
    if results.hours:
        hours = ", ".join(f"{step} {number:.1f}" for step, number in results.hours.items())
        yield f"Hours over all cells, as far as they were recorded: {hours}."
    yield f"Versions: {', '.join(f'{name} {_or(numbers)}' for name, numbers in results.versions.items())}."
    yield (
        f"Margin of a change {results.margin}; {results.draws} draws of the bootstrap, seed {results.seed}. results.json holds "
        "every figure, tables/ the same as CSV."
    )
    yield "Made again from the records in OUT with CONFIG.yaml, the study's file, by this command:"


def _or(numbers: tuple[str, ...]) -> str:
    return " or ".join(numbers)
