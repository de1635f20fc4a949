"""Score repairs of one fine-tuned model, or of many, from the stored items of every model."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from deltamend.scoring.across_cells import CellsScore, score_across_cells
from deltamend.scoring.cell_score import score_cells
from deltamend.scoring.cells_file import open_cells
from deltamend.scoring.paired_cell import Source, open_cell
from deltamend.scoring.result import Score
from deltamend.scoring.settings import make_settings


def score(
    base: Source,
    finetuned: Source,
    repaired: Mapping[str, Source],
    *,
    target: str,
    target_files: Mapping[str, Source] | None = None,
    benchmarks: Sequence[str] | None = None,
    margin: str | float = "1se",
    task_margins: Mapping[str, str | float] | None = None,
    metrics: Mapping[str, str] | None = None,
    chance_corrected: bool = False,
    common_items: bool = False,
    draws: int = 10_000,
    seed: int = 0,
    confidence: float = 0.95,
    name: str = "",
) -> Score:
    """Score repairs of one fine-tuned model by what they heal, preserve, leave undamaged and retain.

    Args:
        base: what the base scored, item by item: an `Evaluation`, the file of one, a folder or results file of lm-eval, or a log
            of inspect or a folder of its logs.
        finetuned: the same of the fine-tuned model.
        repaired: name of each repair to the same of the model it made.
        target: the task the model was fine-tuned for; the other tasks are the benchmarks.
        target_files: "base", "finetuned" and each repair to a record that holds the target, where it has records of its own.
        benchmarks: score these benchmarks only; None for all.
        margin: how far apart base and fine-tuned must be on a benchmark to count as different: "1se", a multiple of the
            standard error of their paired difference, or a distance in units of the score, such as 0.02.
        task_margins: task to a margin of its own.
        metrics: task to the metric it is scored by, for records of lm-eval and inspect.
        chance_corrected: score (s − chance)/(1 − chance) where chance is known.
        common_items: score the items and tasks that all models share, rather than refuse records that differ.
        draws: number of bootstrap resamples, 100 to 1,000,000.
        seed: seed of the bootstrap, not negative.
        confidence: of the intervals, from 0.5 to below 1.
        name: of the cell; by default the fine-tuned model's.

    Returns:
        The score. Healing, preservation, non-damage and retention are shares from 0 to 1, combined is 0 to 100; each with its
        percentile interval, or with the reason why there is none.

    Raises:
        EvaluationError: a record cannot be read, or the models were not asked the same.
        UsageError: a name or number is invalid.

    Source: arXiv 2605.20296 names the parts of the metric and prints no formula; the formulas are ours (docs/score.md).
    """
    settings = make_settings(
        margin=margin,
        task_margins=task_margins,
        chance_corrected=chance_corrected,
        draws=draws,
        seed=seed,
        confidence=confidence,
    )
    cell = open_cell(
        base,
        finetuned,
        repaired,
        target=target,
        target_files=target_files,
        benchmarks=benchmarks,
        metrics=metrics,
        common_items=common_items,
        name=name,
    )
    return score_cells([cell], settings)[0]


def score_many(
    cells: str | os.PathLike[str],
    *,
    margin: str | float = "1se",
    task_margins: Mapping[str, str | float] | None = None,
    metrics: Mapping[str, str] | None = None,
    chance_corrected: bool = False,
    common_items: bool = False,
    draws: int = 10_000,
    seed: int = 0,
    confidence: float = 0.95,
) -> CellsScore:
    """Score the repairs of many fine-tuned models, and compare methods over them.

    Args:
        cells: YAML file with a list of cells, each with its records and its target (docs/score.md); seeds of one cell share a
            cluster, and are averaged before clusters are compared.
        margin: as for `score`, and so are the other options.
        task_margins: task to a margin of its own.
        metrics: task to the metric it is scored by, for records of lm-eval and inspect.
        chance_corrected: score (s − chance)/(1 − chance) where chance is known.
        common_items: score the items and tasks that all models share, rather than refuse records that differ.
        draws: number of bootstrap resamples, 100 to 1,000,000.
        seed: seed of the bootstrap, not negative.
        confidence: of the intervals, from 0.5 to below 1.

    Returns:
        The score of every cell; for every method and every pair of methods the mean combined score, 0 to 100, over clusters of
        cells, with intervals for these cells and for others like them; and Wilcoxon's tests.

    Raises:
        EvaluationError: a record cannot be read, or the models of a cell were not asked the same.
        UsageError: the file is wrong, or a name or number is invalid.

    Source: as for `score`.
    """
    settings = make_settings(
        margin=margin,
        task_margins=task_margins,
        chance_corrected=chance_corrected,
        draws=draws,
        seed=seed,
        confidence=confidence,
    )
    opened, clusters = open_cells(Path(cells), metrics=metrics, common_items=common_items)
    return score_across_cells(opened, clusters, settings)
