"""What a study found as CSV: every figure on a line of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from deltamend.report.csv_output import csv_text
from deltamend.report.equal_retention_tables import EQUAL_RETENTION_FILES, equal_retention_csv
from deltamend.scoring.across_cells import MeanOverCells
from deltamend.scoring.metric import PARTS
from deltamend.scoring.result import Estimate
from deltamend.study.findings.result_types import StudyResults

_Row = dict[str, object]
_THREE = ("healing", "retention", "combined")


def study_csv_files(results: StudyResults) -> dict[str, str]:
    """File name to its text; tables without a row are left out."""
    written = {name: list(rows(results)) for name, rows in _TABLES.items()} | equal_retention_csv(results)
    return {name: csv_text(list(rows[0]), rows) for name, rows in written.items() if rows}


def _repairs(results: StudyResults) -> Iterator[_Row]:
    for of in results.repairs:
        named: _Row = {"repair": of.name, "role": of.role, "family": of.family, "method": of.method}
        for group, own in of.groups.items():
            for part in PARTS:
                yield named | {"group": group, "figure": part} | _figures(getattr(own, part))


def _minus_best_published(results: StudyResults) -> Iterator[_Row]:
    for of in results.repairs:
        for group, over in of.minus_best_published.items():
            named: _Row = {"repair": of.name, "role": of.role, "group": group, "minus": results.best_published[group]}
            yield named | _figures(over)


def _comparisons(results: StudyResults) -> Iterator[_Row]:
    for strengths, pairs in (("as set", results.comparisons), ("best on even items", results.best_comparisons)):
        for of in pairs:
            named: _Row = {"first": of.first, "second": of.second, "against": of.against, "group": of.group}
            yield named | {"strengths": strengths} | _figures(of) | {"p": of.p, "p_holm": of.p_holm}


def _best_strengths(results: StudyResults) -> Iterator[_Row]:
    for of in results.best_strengths:
        named: _Row = {"family": of.family, "group": of.group, "chosen_on": of.chosen_on, "tried": " ".join(of.tried)}
        yield named | {"chosen": of.chosen, "chosen_by": of.chosen_by} | _figures(of.score)


def _wise_ft_curve(results: StudyResults) -> Iterator[_Row]:
    for of in results.curve.points if results.curve else ():
        named: _Row = {"alpha": of.alpha, "repair": of.name, "size": of.size}
        for group, own in of.groups.items():
            for part in PARTS:
                yield named | {"group": group, "figure": part} | _figures(getattr(own, part))


def _above_wise_ft(results: StudyResults) -> Iterator[_Row]:
    for of in results.curve.heights if results.curve else ():
        named: _Row = {"repair": of.name, "role": of.role, "size": of.size, "judged": of.judged}
        for line, groups in (("combined", of.groups), ("parts", of.groups_by_parts)):
            for group, over in groups.items():
                yield named | {"group": group, "line": line} | _figures(over)


def _dg_hard(results: StudyResults) -> Iterator[_Row]:
    for of in results.dg_hard.cells if results.dg_hard else ():
        named = of.model_dump(exclude={"healing", "combined"})
        yield named | _estimate("healing", of.healing) | _estimate("combined", of.combined)


def _written(results: StudyResults) -> Iterator[_Row]:
    for of in results.written:
        for part in _THREE:
            yield of.model_dump(exclude=set(_THREE)) | {"figure": part} | _figures(getattr(of, part))


def _written_differences(results: StudyResults) -> Iterator[_Row]:
    for of in results.written_differences:
        named: _Row = {"regime": of.regime, "first": of.first, "second": of.second}
        for part in _THREE:
            yield named | {"figure": part} | _figures(getattr(of, part))


def _safety(results: StudyResults) -> Iterator[_Row]:
    for of in results.safety:
        row = of.model_dump(exclude={"share", "from_base", "from_finetuned"})
        for name in ("share", "from_base", "from_finetuned"):
            row |= _estimate(name, getattr(of, name))
        yield row


def _rankings(results: StudyResults) -> Iterator[_Row]:
    for of in results.rankings.repairs:
        for how, over, rank in (
            ("exact match", of.exact_match, of.exact_match_rank),
            ("likelihood", of.likelihood, of.likelihood_rank),
        ):
            yield {"repair": of.name, "role": of.role, "retention": how, "rank": rank} | _figures(over)


def _cells(results: StudyResults) -> Iterator[_Row]:
    for of in results.cells:
        named: _Row = {
            "cell": of.name,
            "target": of.target,
            "regime": of.regime,
            "seed": of.seed,
            "chooses": of.chooses,
        }
        for name in of.combined:
            figures = {part: getattr(of, part).get(name) for part in PARTS}
            yield named | {"repair": name} | figures | {"size": of.sizes[name]}


def _effects(results: StudyResults) -> Iterator[_Row]:
    for of in results.cells:
        for benchmark, (base, finetuned) in of.effects.items():
            yield {
                "cell": of.name,
                "benchmark": benchmark,
                "base": base,
                "finetuned": finetuned,
                "chance": of.chances.get(benchmark),
                "group": of.groups[benchmark],
            }


def _figures(over: MeanOverCells) -> _Row:
    return {
        "cells": over.cells,
        "clusters": over.clusters,
        "value": over.these_cells.value,
        "low": over.these_cells.low,
        "high": over.these_cells.high,
        "low_like_these": over.cells_like_these.low,
        "high_like_these": over.cells_like_these.high,
    }


def _estimate(name: str, of: Estimate) -> _Row:
    return {name: of.value, f"{name}_low": of.low, f"{name}_high": of.high}


_TABLES: dict[str, Callable[[StudyResults], Iterator[_Row]]] = {
    "repairs.csv": _repairs,
    "minus_best_published.csv": _minus_best_published,
    "comparisons.csv": _comparisons,
    "best_strengths.csv": _best_strengths,
    "wise_ft_curve.csv": _wise_ft_curve,
    "above_wise_ft.csv": _above_wise_ft,
    "dg_hard.csv": _dg_hard,
    "written.csv": _written,
    "written_differences.csv": _written_differences,
    "safety.csv": _safety,
    "rankings.csv": _rankings,
    "cells.csv": _cells,
    "effects.csv": _effects,
}
CSV_FILES = frozenset({*_TABLES, *EQUAL_RETENTION_FILES})
"""Every name that `study_csv_files` may give a file."""
