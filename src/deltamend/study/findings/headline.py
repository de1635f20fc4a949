"""The result of a study in a sentence or two, chosen by rules, so that it never says more than its intervals."""

from __future__ import annotations

from collections.abc import Sequence

from deltamend.study.findings.intervals import LEVEL, is_above_zero, points_text
from deltamend.study.findings.ranking import (
    FLATTERED,
    comparisons_with_published,
    highest_sentence,
    methods_not_compared,
    scores_in_most_cells,
    worst_comparison,
)
from deltamend.study.findings.result_types import CHOOSING, CONFIRMATION, RepairComparison, StudyResults


def headline_of(results: StudyResults) -> str:
    """The result in a sentence or two."""
    if CONFIRMATION not in results.groups:
        return (
            f"Nothing is confirmed yet: {results.progress.scored} of {results.progress.planned} cells are scored, all of them "
            f"choosing cells. {highest_sentence(results, CHOOSING)} {FLATTERED}"
        )
    said = _headline(results)
    if results.progress.finished:
        return said
    return f"Not finished, {results.progress.scored} of {results.progress.planned} cells are scored, and this may change: {said}"


def _headline(results: StudyResults) -> str:
    ranked, _ = scores_in_most_cells(results, CONFIRMATION)
    compared = comparisons_with_published(results)
    by_candidate = {name: pairs for name, pairs in compared.items() if name in ranked}
    if not by_candidate:
        return highest_sentence(results, CONFIRMATION)
    winners = {
        name: pairs for name, pairs in by_candidate.items() if all(is_above_zero(of.cells_like_these) for of in pairs)
    }
    here = {name: pairs for name, pairs in by_candidate.items() if all(is_above_zero(of.these_cells) for of in pairs)}
    nearest = max(
        winners or here or by_candidate, key=lambda name: worst_comparison(by_candidate[name]).these_cells.value or 0.0
    )
    worst = worst_comparison(by_candidate[nearest])
    published = (
        "every published method"
        if not methods_not_compared(results, nearest)
        else "every published method it shares a cell with"
    )
    if winners:
        return (
            f"{nearest} beats {published} on the combined score over the confirmation cells; the smallest "
            f"difference is from {worst.second}, {points_text(worst.cells_like_these)}. {_by_ranks(by_candidate[nearest])}"
        )
    if here:
        return (
            f"{nearest} is ahead of {published} in these very confirmation cells, but not beyond doubt in other cells like "
            f"them: the smallest difference is from {worst.second}, {points_text(worst.these_cells)}, and for cells like these "
            f"{points_text(worst.cells_like_these)}."
        )
    candidate = "No candidate" if len(by_candidate) == len(compared) else "No candidate that is done in all of them"
    return (
        f"{candidate} beats every published method on the combined score over the confirmation cells. The nearest is {nearest}: "
        f"{points_text(worst.cells_like_these)} against {worst.second}."
    )


def _by_ranks(pairs: Sequence[RepairComparison]) -> str:
    """What the test says that is corrected for the number of comparisons."""
    largest = max(pairs, key=lambda pair: pair.p_holm)
    verb = "agree" if largest.p_holm < LEVEL else "do not bear it out"
    return f"Signed ranks over clusters, corrected for all comparisons, {verb}: p is at most {largest.p_holm:.2g}."
