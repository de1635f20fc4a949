"""Mean scores of the models of a cell on every task: as they are, and in every draw of the paired bootstrap."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from deltamend.errors import UsageError, option
from deltamend.scoring.bootstrap import mean_scores, resampled_means, standard_error
from deltamend.scoring.metric import FloatArray, Means
from deltamend.scoring.paired_cell import PairedCell
from deltamend.scoring.paired_items import PairedTask
from deltamend.scoring.settings import Settings


def draw_cells(cells: Sequence[PairedCell], settings: Settings) -> tuple[list[PairedCell], list[Means]]:
    """Resampled means of cells, and the cells as they are scored (chance-corrected where that was asked for).

    Cells whose items of a task are the same share one set of draws, and one matrix product.

    Raises:
        UsageError: a margin is for a task that no cell has.
    """
    known = {task.name for cell in cells for task in cell.tasks}
    for name in settings.task_margins or {}:
        if name not in known:
            raise UsageError(
                f"{option('task_margins')}: there is no task {name!r}; there are {', '.join(sorted(known))}"
            )
    cells = [_corrected(cell) if settings.chance_corrected else cell for cell in cells]
    together: dict[tuple[str, tuple[str, ...]], list[tuple[int, PairedTask]]] = {}
    for index, cell in enumerate(cells):
        for task in cell.tasks:
            together.setdefault((task.name, task.ids), []).append((index, task))
    drawn: list[dict[str, FloatArray]] = [{} for _ in cells]
    for (name, _), members in together.items():
        columns = np.concatenate([_columns(task) for _, task in members], axis=1)
        means = resampled_means(columns, draws=settings.draws, seed=settings.seed, key=name)
        start = 0
        for index, task in members:
            width = task.scores.shape[1] + 1
            drawn[index][name] = means[:, start : start + width]
            start += width
    return cells, [means_of(cell, settings, own) for cell, own in zip(cells, drawn, strict=True)]


def _corrected(cell: PairedCell) -> PairedCell:
    def corrected(task: PairedTask) -> PairedTask:
        if task.chance is None:
            return task
        return replace(task, scores=(task.scores - task.chance) / (1 - task.chance))

    unknown = [task.name for task in cell.tasks if task.chance is None]
    notes = [f"not corrected for chance, which is not known: {', '.join(unknown)}"] if unknown else []
    return replace(
        cell,
        target=corrected(cell.target),
        benchmarks=tuple(corrected(task) for task in cell.benchmarks),
        notes=(*cell.notes, *notes),
    )


def _columns(task: PairedTask) -> FloatArray:
    """The scores, and the squared difference f − b, whose mean the margin needs."""
    return np.column_stack([task.scores, (task.scores[:, 1] - task.scores[:, 0]) ** 2])


def means_of(cell: PairedCell, settings: Settings, columns: Mapping[str, FloatArray]) -> Means:
    """Assemble the means of a cell from those of every task.

    Args:
        cell: for its tasks.
        settings: for the margins.
        columns: task to (…, M + 1): the mean score of every model, and the mean of (f − b)².
    """

    def margin(task: PairedTask) -> FloatArray:
        means, rule = columns[task.name], settings.margin_of(task.name)
        if not rule.standard_errors:
            return np.full(means.shape[:-1], rule.size)
        error = standard_error(means[..., 1] - means[..., 0], means[..., -1], len(task.ids))
        return rule.size * error

    def repaired(task: PairedTask) -> FloatArray:
        means = columns[task.name]
        return np.concatenate([means[..., 2:-1], means[..., 1:2], means[..., 0:1]], axis=-1)

    benchmarks = cell.benchmarks
    return Means(
        base=np.stack([columns[task.name][..., 0] for task in benchmarks], axis=-1),
        finetuned=np.stack([columns[task.name][..., 1] for task in benchmarks], axis=-1),
        repaired=np.stack([repaired(task) for task in benchmarks], axis=-1),
        margin=np.stack([margin(task) for task in benchmarks], axis=-1),
        target_base=columns[cell.target.name][..., 0],
        target_finetuned=columns[cell.target.name][..., 1],
        target_repaired=repaired(cell.target),
        target_margin=margin(cell.target),
    )


def observed_means(cell: PairedCell, settings: Settings) -> Means:
    """Means of a cell as it is, without resampling."""
    return means_of(cell, settings, {task.name: mean_scores(_columns(task)) for task in cell.tasks})
