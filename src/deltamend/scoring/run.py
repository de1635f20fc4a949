"""Score repairs of one fine-tuned model, or of many, from the stored items of every model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from deltamend.scoring.cell_score import score_cells
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
        base: what the base scored, item by item: a record of `deltamend evaluate`, or a folder that lm-eval wrote.
        finetuned: the same of the fine-tuned model.
        repaired: method to the same of the model it made.
        target: the task the model was fine-tuned for; the other tasks are the benchmarks.
        target_files: `base`, `finetuned` and each method to a record that holds the target, where it is a separate one.
        benchmarks: only these; None for all.
        margin: `"1se"`, a multiple of the standard error of f − b, or a distance such as 0.02.
        task_margins: the same for single tasks.
        metrics: task to metric, for lm-eval folders and logs of inspect.
        chance_corrected: score (s − chance)/(1 − chance) where chance is known.
        common_items: score the items and tasks all models share, rather than refuse what differs.
        draws: of the bootstrap.
        seed: of the bootstrap.
        confidence: of the intervals.
        name: of the cell; by default the fine-tuned model's.

    Raises:
        EvaluationError: a record cannot be read, or the models were not asked the same.
        UsageError: a name or number means nothing.
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
