"""From the records of a study to what it found."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from deltamend.errors import EvaluationError
from deltamend.scoring.cell_means import observed_means
from deltamend.scoring.metric import PARTS, Group, partition
from deltamend.scoring.paired_cell import NONE_AND_REVERT
from deltamend.scoring.settings import Settings, make_settings
from deltamend.study.config import Study
from deltamend.study.findings.alpha_curve import wise_ft_curve
from deltamend.study.findings.answers import answer_questions
from deltamend.study.findings.candidate_comparisons import best_strengths, comparisons
from deltamend.study.findings.dg_hard_by_diagnosis import dg_hard_outcome
from deltamend.study.findings.equal_retention import measure_equal_retention
from deltamend.study.findings.headline import headline_of
from deltamend.study.findings.outcomes_of_repairs import best_published, repair_outcomes
from deltamend.study.findings.result_types import CHOOSING, CONFIRMATION, CellOutcome, GridCoverage, StudyResults
from deltamend.study.findings.retention_rankings import rankings
from deltamend.study.findings.safety import safety_outcomes
from deltamend.study.findings.sample_answers import shown_answers
from deltamend.study.findings.scored_cells import ReadCell, ScoresOfRepairs, read_study_cells, scores_of_repairs
from deltamend.study.findings.written_dtypes import written, written_differences
from deltamend.study.records import ModelRecord

_FEW = 5
"""Right answers below which retention says little."""


def study_results(
    study: Study, out: Path, *, draws: int = 2000, seed: int = 0, confidence: float = 0.95, margin: str = "1se"
) -> StudyResults:
    """Score what is there of a study, and answer its questions.

    Args:
        study: its configuration.
        out: the folder of its records.
        draws: of the bootstrap.
        seed: of the bootstrap.
        confidence: of the intervals.
        margin: what counts as a change of a benchmark, as in `deltamend score`.

    Raises:
        EvaluationError: there is no record, or one is damaged, or its models were not asked the same.
        UsageError: a number is invalid.
    """
    settings = make_settings(margin=margin, draws=draws, seed=seed, confidence=confidence)
    cells, progress = read_study_cells(study, out)
    if not cells:
        raise EvaluationError(f"{out}: no cell of the study {study.name} is done; run `deltamend study` first")
    by_config, by_other = scores_of_repairs(study, cells, settings)
    groups = _groups(study, cells)
    confirming = groups.get(CONFIRMATION, [])
    best = best_published(study, by_config, groups)
    strengths, of_strengths = best_strengths(study, cells, by_config, groups, settings)
    found: dict[str, Any] = {
        "progress": progress,
        "cells": tuple(_cell_outcome(study, of, row, by_config, settings) for row, of in enumerate(cells)),
        "repairs": tuple(repair_outcomes(study, cells, by_config, groups, best)),
        "best_published": best,
        "comparisons": tuple(comparisons(study, by_config, confirming)),
        "best_strengths": strengths,
        "best_comparisons": of_strengths,
        "curve": wise_ft_curve(study, cells, by_config, groups),
        "dg_hard": dg_hard_outcome(study, cells, by_config),
        "written": tuple(written(study, cells, by_config)),
        "written_differences": tuple(written_differences(study, cells, by_config)),
        "safety": tuple(safety_outcomes(study, cells, settings)),
        "samples": tuple(shown_answers(study, cells)),
        "equal_retention": measure_equal_retention(study, cells, settings),
        "rankings": rankings(study, cells, by_config, by_other, confirming),
    }
    results = StudyResults(
        name=study.name,
        margin=margin,
        draws=draws,
        seed=seed,
        confidence=confidence,
        headline="",
        answers=(),
        groups={name: tuple(cells[row].cell.name for row in rows) for name, rows in groups.items()},
        hours=_hours(cells),
        machines=tuple(sorted({record.machine for of in cells for record in (of.record, of.base)})),
        versions=_versions(cells),
        notes=(*_notes(study, cells, progress), *_beside(study, by_config, confirming or groups[CHOOSING])),
        **found,
    )
    return results.model_copy(update={"headline": headline_of(results), "answers": answer_questions(results)})


def _groups(study: Study, cells: Sequence[ReadCell]) -> dict[str, list[int]]:
    """Groups of cells to their rows; the empty ones are left out."""
    groups: dict[str, list[int]] = {CHOOSING: [], CONFIRMATION: []}
    for row, of in enumerate(cells):
        groups[CHOOSING if study.chooses(of.cell) else CONFIRMATION].append(row)
    if len(study.regimes) > 1:
        for regime in study.regimes:
            rows = [row for row in groups[CONFIRMATION] if cells[row].cell.regime == regime]
            groups[f"{CONFIRMATION}, {regime.name}"] = rows
    return {name: rows for name, rows in groups.items() if rows}


def _number(value: float) -> float | None:
    return None if np.isnan(value) else float(value)


def _cell_outcome(study: Study, of: ReadCell, row: int, scored: ScoresOfRepairs, settings: Settings) -> CellOutcome:
    means = observed_means(of.paired, settings)
    damaged, improved = partition(means)
    groups: dict[str, Group] = {
        task.name: "damaged" if damaged[place] else "improved" if improved[place] else "neutral"
        for place, task in enumerate(of.paired.benchmarks)
    }
    shown = (*of.repairs, *NONE_AND_REVERT)
    figures = {
        part: {name: _number(scored.values[part][row, scored.names.index(name)]) for name in shown} for part in PARTS
    }
    return CellOutcome(
        name=of.cell.name,
        cluster=of.cell.cluster,
        target=of.cell.target.name,
        regime=of.cell.regime.name,
        seed=of.cell.seed,
        chooses=study.chooses(of.cell),
        finetune=of.record.finetune,
        diagnosis=of.record.diagnosis,
        base_target=float(means.target_base),
        finetuned_target=float(means.target_finetuned),
        groups=groups,
        chances={task.name: task.chance for task in of.paired.benchmarks if task.chance is not None},
        effects={
            task.name: (float(means.base[place]), float(means.finetuned[place]))
            for place, task in enumerate(of.paired.benchmarks)
        },
        sizes={name: of.size(name) for name in shown},
        notes=of.paired.notes,
        **figures,
    )


def _models(cells: Sequence[ReadCell]) -> Iterable[tuple[str, ModelRecord]]:
    for of in cells:
        yield from of.record.models.items()


def _hours(cells: Sequence[ReadCell]) -> dict[str, float]:
    repaired = sum(model.facts.seconds for _, model in _models(cells) if model.facts is not None)
    hours = {
        "fine-tuning": sum(of.record.finetune.seconds for of in cells) / 3600,
        "repairs": repaired / 3600,
    }
    asked = [model.seconds for _, model in _models(cells)]
    known = [seconds for seconds in asked if seconds is not None]
    return hours | {"evaluation": sum(known) / 3600} if known else hours


def _versions(cells: Sequence[ReadCell]) -> dict[str, tuple[str, ...]]:
    used: dict[str, set[str]] = defaultdict(set)
    for of in cells:
        for record in (of.record, of.base):
            for package, number in record.versions.items():
                used[package].add(number)
    return {package: tuple(sorted(numbers)) for package, numbers in sorted(used.items())}


def _notes(study: Study, cells: Sequence[ReadCell], progress: GridCoverage) -> Iterable[str]:
    """What the figures are not, or cannot say."""
    if progress.missing:
        yield f"{len(progress.missing)} of {progress.planned} cells are missing from every figure"
    if progress.missing_repairs:
        yield (
            f"in {len(progress.missing_repairs)} of the {progress.scored} scored cells some repairs are not done yet, so means of "
            "different repairs are over different cells; differences are always over cells that have both"
        )
    for cell, repairs in progress.unknown_repairs.items():
        yield f"in {cell} these repairs were done and are not planned there by the configuration, or with other settings, so they are not scored: {', '.join(repairs)}"
    yield from _little_learnt(cells)
    by_text: dict[str, list[str]] = defaultdict(list)
    for of in cells:
        for note in of.paired.notes:
            by_text[note].append(of.cell.name)
    for note, where in by_text.items():
        yield f"{note} (in {', '.join(where)})"
    yield from _made_in_fewer_cells(study)
    if len(study.regimes) > 1:
        yield (
            "cells of one model, target and regime are one cluster; clusters of one target share its test items and are "
            "redrawn as if they were independent, so “cells like these” is rather too narrow"
        )


def _made_in_fewer_cells(study: Study) -> Iterable[str]:
    limited = [one.name for one in study.repairs if one.regimes]
    if limited:
        yield f"made in some regimes only, so their means are over fewer cells: {', '.join(limited)}"
    few = [one.name for one in study.repairs if one.only_in]
    if few:
        yield f"made in a few cells only, which the study's file names, so their means are over those cells: {', '.join(few)}"
    for model in study.models:
        if model.repairs:
            yield f"of {model.name}'s models only these repairs were made: {', '.join(model.repairs)}"
    for one in study.repairs:
        if one.not_in:
            cells_named = f"{len(one.not_in)} cell{'s' if len(one.not_in) > 1 else ''}"
            yield f"{one.name} is left out of {cells_named} that the study's file names, so its means are over fewer cells"


def _little_learnt(cells: Sequence[ReadCell]) -> Iterable[str]:
    unlearnt = [of.cell.name for of in cells if not _learnt(of)]
    if unlearnt:
        yield f"fine-tuning did not make the target better in {', '.join(unlearnt)}: there retention says little or nothing"
    few = [of.cell.name for of in cells if _learnt(of) and _right_answers_gained(of) < _FEW]
    if few:
        yield (
            f"fine-tuning taught fewer than {_FEW} right answers in {', '.join(few)}: there retention hangs on single items, and a "
            "repair that keeps none of them scores 0"
        )


def _beside(study: Study, scored: ScoresOfRepairs, rows: Sequence[int]) -> Iterable[str]:
    over = {one.name: scored.over("combined", one.name, rows).these_cells for one in study.repairs if rows}
    names = [
        name
        for name, of in over.items()
        if of.value is not None and of.low is not None and of.high is not None and not of.low <= of.value <= of.high
    ]
    if names:
        yield (
            f"the interval of the combined score lies beside the figure for {', '.join(names)}: parts are clipped at 0 and 1, and "
            "resampled items move away from such an end; no verdict rests on an interval beyond its own figure"
        )


def _right_answers_gained(of: ReadCell) -> float:
    """More right answers of the fine-tuned model than of the base; infinite where likelihood is the measure."""
    if of.cell.target.retention != "exact_match":
        return np.inf
    gained = of.paired.target.scores.sum(axis=0)
    return float(gained[1] - gained[0])


def _learnt(of: ReadCell) -> bool:
    scores = of.paired.target.scores.mean(axis=0)
    return bool(scores[1] > scores[0])
