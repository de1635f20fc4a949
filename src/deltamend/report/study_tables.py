"""What a study found as tables of text, for the page and the README."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from textwrap import shorten

from deltamend.report.score_tables import TITLES, Table, figure, p_value
from deltamend.report.study_plots import by_combined, shown_group
from deltamend.scoring.across_cells import MeanOverCells
from deltamend.scoring.result import Estimate
from deltamend.study.findings.result_types import CHOOSING, CONFIRMATION, StudyResults

_LONGEST_ANSWER = 80
"""Characters."""
_PARTS = ("healing", "preservation", "non_damage", "retention")


def main_table(results: StudyResults, group: str | None = None) -> Table:
    """Every repair over a group of cells, the best first; by default over the cells that count most."""
    group = group or shown_group(results)
    best = results.best_published.get(group)
    rows = []
    for of in by_combined(results, group):
        own, minus = of.groups[group], of.minus_best_published.get(group)
        rows.append(
            (
                of.name,
                of.role,
                str(own.combined.cells),
                *(_value(getattr(own, part)) for part in _PARTS),
                *_over(own.combined, sign=False),
                *(("–", "–") if minus is None else _over(minus, sign=True)),
            )
        )
    head = ("repair", "role", "cells", *(TITLES[part] for part in _PARTS), "combined", "… for cells like these")
    return Table(
        f"All repairs, {group} cells",
        (*head, f"minus {best or 'best published'}", "… for cells like these"),
        tuple(rows),
    )


def sample_answers_tables(results: StudyResults) -> Iterator[Table]:
    """A table for each cell whose answers are shown; an item is named, as the data stay where they are."""
    for of in results.samples:
        rows = [
            (
                name,
                *("–" if answer is None else shorten(answer, _LONGEST_ANSWER, placeholder=" …") for answer in answers),
            )
            for name, answers in of.answers.items()
        ]
        yield Table(f"Answers in {of.cell}", ("model", *of.asked), tuple(rows))


def comparison_tables(results: StudyResults) -> Iterator[Table]:
    """Candidates against all but other strengths, which are in the CSV, and families at their best strengths."""
    lists = [("Candidates against the other repairs, confirmation cells", list(results.comparisons))]
    for group in (CONFIRMATION, CHOOSING):
        title = f"Families at the strength that was best on the even items, on the odd ones, {group} cells"
        lists.append((title, [pair for pair in results.best_comparisons if pair.group == group]))
    for title, pairs in lists:
        rows = [
            (
                f"{pair.first} − {pair.second}",
                pair.against,
                f"{pair.cells} in {pair.clusters}",
                *_over(pair, sign=True),
                p_value(pair.p),
                p_value(pair.p_holm),
            )
            for pair in pairs
            if pair.cells and pair.against != "strength"
        ]
        if rows:
            head = ("difference in combined", "second is", "cells in clusters", "these cells", "… for cells like these")
            yield Table(title, (*head, "p (Wilcoxon)", "p, Holm"), tuple(rows))


def best_strengths_table(results: StudyResults) -> Iterator[Table]:
    """Each family at the strength chosen on other data."""
    rows = [
        (
            of.family,
            of.group,
            of.chosen_on,
            str(len(of.tried)),
            of.chosen,
            f"{of.chosen_by:.1f}",
            *_over(of.score, sign=False),
        )
        for of in results.best_strengths
        if len(of.tried) > 1
    ]
    if rows:
        head = (
            "family",
            "cells",
            "chosen on",
            "of",
            "chosen",
            "where chosen",
            "combined where reported",
            "… for cells like these",
        )
        yield Table("Families of several strengths, each at its best one", head, tuple(rows))


def curve_table(results: StudyResults) -> Iterator[Table]:
    """Heights above the WiSE-FT curve."""
    if results.curve is None:
        return
    group = shown_group(results)
    heights = [of for of in results.curve.heights if group in of.groups and of.groups[group].cells]
    heights.sort(key=lambda of: -(of.groups[group].these_cells.value or 0.0))
    rows = [
        (
            of.name,
            of.role,
            f"{of.size:.2f}",
            str(of.groups[group].cells),
            *_over(of.groups[group], sign=True),
            _interval_of(of.groups_by_parts[group].cells_like_these, sign=True, value=True),
            "" if group == CHOOSING or of.judged else "outside the curve, not judged",
        )
        for of in heights
    ]
    if rows:
        head = ("repair", "role", "‖written − base‖/‖Δ‖", "cells", "above the curve", "… for cells like these")
        yield Table(
            f"Combined score above the WiSE-FT curve at the same size, {group} cells",
            (*head, "by parts, for cells like these", ""),
            tuple(rows),
        )


def dg_hard_table(results: StudyResults) -> Iterator[Table]:
    """DG-Hard and the diagnosis, cell by cell."""
    if results.dg_hard is None:
        return
    rows = tuple(
        (
            of.cell,
            of.verdict,
            f"{of.noise_like:.0%}",
            "–" if of.median_ks is None else f"{of.median_ks:.3f}",
            f"{of.zeros:.0%}",
            f"{of.kept_energy:.1%}",
            figure(of.healing, "healing"),
            figure(of.combined, "combined"),
        )
        for of in results.dg_hard.cells
    )
    head = ("cell", "diagnosis", "noise-like", "median KS", "zeros in Δ", "energy kept", "healing", "combined")
    yield Table(f"{results.dg_hard.repair} in every cell", head, rows)


def written_table(results: StudyResults) -> Iterator[Table]:
    """The same repair written in several dtypes."""
    rows = tuple(
        (
            f"{of.repair} ({of.regime})",
            of.weights,
            of.out_dtype,
            str(of.cells),
            f"{of.realised_error:.1%}",
            figure(of.healing.these_cells, "healing"),
            figure(of.retention.these_cells, "retention"),
            figure(of.combined.these_cells, "combined"),
        )
        for of in results.written
    )
    if rows:
        head = ("repair (regime)", "trained in", "written in", "cells", "lost on writing", *_titles("combined"))
        yield Table("What is written", head, rows)


def safety_table(results: StudyResults) -> Iterator[Table]:
    """Every model on every safety task."""
    rows = tuple(
        (
            f"{of.task}, {of.target}: {of.model}",
            of.metric,
            f"{of.prompts} × {of.cells}",
            figure(of.share, "score"),
            "–" if of.model == "base" else figure(of.from_base, "score", sign=True),
            "–" if of.model == "finetuned" else figure(of.from_finetuned, "score", sign=True),
        )
        for of in results.safety
    )
    if rows:
        head = ("task, target: model", "share that", "prompts × cells", "share", "minus base", "minus fine-tuned")
        yield Table("Refusals", head, rows)


def rankings_table(results: StudyResults) -> Iterator[Table]:
    """Retention measured in two ways."""
    rows = [
        (
            of.name,
            *(
                text
                for over, rank in (
                    (of.exact_match, of.exact_match_rank),
                    (of.likelihood, of.likelihood_rank),
                )
                for text in (figure(over.these_cells, "combined"), "–" if rank is None else str(rank))
            ),
        )
        for of in sorted(results.rankings.repairs, key=lambda of: of.exact_match_rank or len(results.repairs))
        if of.exact_match.cells or of.likelihood.cells
    ]
    if rows:
        head = ("repair", "combined, by exact match", "rank", "combined, by likelihood", "rank")
        yield Table("Retention by exact match and by likelihood, confirmation cells", head, tuple(rows))


def repairs_table(results: StudyResults) -> Table:
    """Everything that was tried, in the order of the configuration."""
    rows = tuple(
        (
            of.name,
            of.role,
            of.method,
            of.out_dtype,
            "choosing cells only" if of.only_choosing else "all cells",
            f"{of.cells_done} of {of.cells_planned}",
            *(_value(of.groups[name].combined, 1) if name in of.groups else "–" for name in (CHOOSING, CONFIRMATION)),
        )
        for of in results.repairs
    )
    head = ("repair", "role", "method", "written in", "planned for", "cells done", "choosing", "confirmation")
    return Table("Every repair tried, with its combined score", head, rows)


def effects_table(results: StudyResults) -> Table:
    """What fine-tuning did to every benchmark, a mean over the cells of each regime, with the score of a guess."""
    regimes = list(dict.fromkeys(cell.regime for cell in results.cells))
    tasks = list(dict.fromkeys(task for cell in results.cells for task in cell.effects))
    rows = []
    for task in tasks:
        chance = {cell.chances[task] for cell in results.cells if task in cell.chances}
        row = [task, f"{min(chance):.2f}" if chance else "–"]
        for regime in regimes:
            own = [cell for cell in results.cells if cell.regime == regime and task in cell.effects]
            base, tuned = (sum(cell.effects[task][side] for cell in own) / len(own) if own else 0.0 for side in (0, 1))
            damaged = sum(cell.groups[task] == "damaged" for cell in own)
            row.append(f"{base:.3f} → {tuned:.3f}, damaged in {damaged} of {len(own)}" if own else "–")
        rows.append(tuple(row))
    return Table("Effect of fine-tuning by benchmark", ("benchmark", "chance", *regimes), tuple(rows))


def cells_table(results: StudyResults) -> Table:
    """Every cell that is scored."""
    rows = []
    for of in results.cells:
        counts = Counter(of.groups.values())
        groups = ", ".join(f"{counts[name]} {name}" for name in ("damaged", "improved", "neutral") if counts[name])
        rows.append(
            (
                of.name,
                CHOOSING if of.chooses else CONFIRMATION,
                f"{of.finetune.first_loss:.2f} → {of.finetune.last_loss:.2f}",
                f"{of.base_target:.2f} → {of.finetuned_target:.2f}",
                groups,
                of.diagnosis.verdict,
                f"{of.diagnosis.relative_size:.4f}",
            )
        )
    head = ("cell", "for", "training loss", "target, base → tuned", "benchmarks", "diagnosis", "‖Δ‖/‖W‖")
    return Table("What fine-tuning did", head, tuple(rows))


def missing_table(results: StudyResults) -> Iterator[Table]:
    """What is not there: cells by why, and repairs by the cells they are missing in."""
    cells: dict[str, list[str]] = {}
    for one in results.progress.missing:
        cells.setdefault(one.reason, []).append(one.cell)
    lacking: dict[str, list[str]] = {}
    for cell, names in results.progress.missing_repairs.items():
        for name in names:
            lacking.setdefault(name, []).append(cell)
    repairs: dict[str, list[str]] = {}
    for name, where in lacking.items():
        repairs.setdefault(", ".join(where), []).append(name)
    rows = (
        *((_counted(len(names), "cell"), why, ", ".join(names)) for why, names in cells.items()),
        *(
            (_counted(len(names), "repair"), f"not done in {where}", ", ".join(names))
            for where, names in repairs.items()
        ),
    )
    if rows:
        yield Table("Not there yet", ("", "why or where", "which"), rows)


def _counted(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def _titles(last: str) -> tuple[str, ...]:
    return (TITLES["healing"], TITLES["retention"], TITLES[last])


def _value(over: MeanOverCells, decimals: int = 2) -> str:
    value = over.these_cells.value
    return "–" if value is None else f"{value:.{decimals}f}"


def _over(over: MeanOverCells, *, sign: bool) -> tuple[str, str]:
    """The figure with its interval for these cells, and the interval alone for cells like these."""
    return figure(over.these_cells, "combined", sign=sign), _interval_of(over.cells_like_these, sign=sign)


def _interval_of(of: Estimate, *, sign: bool, value: bool = False) -> str:
    if of.low is None or of.high is None:
        return "–"
    text = figure(of, "combined", sign=sign)
    return text if value else text[text.index("[") :]
