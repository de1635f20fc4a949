"""Which repair is ahead in a group of cells, and by how much of the published methods."""

from __future__ import annotations

from collections.abc import Sequence

from deltamend.scoring.across_cells import MeanOverCells
from deltamend.study.findings.intervals import score_text
from deltamend.study.findings.result_types import RepairComparison, StudyResults

UNCONFIRMED = "No confirmation cell is done yet, so nothing is confirmed."

FLATTERED = "A pick made in these cells looks better than it is."


def comparisons_with_published(results: StudyResults) -> dict[str, list[RepairComparison]]:
    """Each candidate's comparisons with the published methods, where the difference is defined."""
    found: dict[str, list[RepairComparison]] = {}
    for pair in results.comparisons:
        if pair.against == "published" and pair.these_cells.value is not None:
            found.setdefault(pair.first, []).append(pair)
    return found


def methods_not_compared(results: StudyResults, name: str) -> list[str]:
    """Published methods that a candidate has no cell with a score in common with."""
    pairs = (pair for pair in results.comparisons if pair.first == name and pair.against == "published")
    return [pair.second for pair in pairs if pair.these_cells.value is None]


def worst_comparison(pairs: Sequence[RepairComparison]) -> RepairComparison:
    """The comparison in which the candidate is least ahead."""
    return min(pairs, key=lambda pair: pair.these_cells.value or 0.0)


def scores_in_most_cells(results: StudyResults, group: str) -> tuple[dict[str, MeanOverCells], tuple[str, ...]]:
    """Combined scores over the most cells any repair has, and who has fewer: means over other cells cannot be compared."""
    scored = {
        one.name: one.groups[group].combined
        for one in results.repairs
        if group in one.groups and one.role not in ("trivial", "dtype") and one.groups[group].combined.cells
    }
    most = max((over.cells for over in scored.values()), default=0)
    fewer = tuple(name for name, over in scored.items() if over.cells < most)
    return {name: over for name, over in scored.items() if over.cells == most}, fewer


def highest_sentence(results: StudyResults, group: str) -> str:
    """A sentence on the repair with the highest mean combined score over a group of cells."""
    scored, _ = scores_in_most_cells(results, group)
    name = max(scored, key=lambda name: scored[name].these_cells.value or 0.0, default="")
    if not name:
        return f"The combined score is undefined for every repair in the {group} cells."
    if not scored[name].these_cells.value:
        return f"Every repair has a combined score of 0 in the {group} cells."
    over = scored[name]
    return f"{name} has the highest mean combined score over the {group} cells, {score_text(over.these_cells)} of 100."


def ranking_sentences(results: StudyResults, group: str) -> list[str]:
    """The same, and a sentence on the repairs that cannot be ranked."""
    _, fewer = scores_in_most_cells(results, group)
    said = [highest_sentence(results, group)]
    return [*said, f"Not ranked, with figures in fewer cells: {', '.join(fewer)}."] if fewer else said
