"""The score of one cell: every figure of every repair with its interval, given the resampled means."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations

import numpy as np

from deltamend.scoring.bootstrap import mean_scores, standard_error
from deltamend.scoring.cell_means import draw_cells, observed_means
from deltamend.scoring.cell_notes import notes_on_figures
from deltamend.scoring.estimates import estimate_from_draws
from deltamend.scoring.metric import FloatArray, Group, Means, Parts, partition, parts_of, shares
from deltamend.scoring.paired_cell import NONE_AND_REVERT, PairedCell
from deltamend.scoring.paired_items import PairedTask
from deltamend.scoring.power import smallest_visible_change
from deltamend.scoring.result import Difference, MethodOnTask, MethodScore, Score, TaskScore
from deltamend.scoring.settings import Settings
from deltamend.scoring.significance import holm, mcnemar, right_or_wrong

_REASONS = {
    "healing": "fine-tuning damaged no benchmark beyond the margin",
    "preservation": "fine-tuning improved no benchmark beyond the margin",
    "non_damage": "fine-tuning moved every benchmark beyond the margin",
    "retention": "the fine-tuned model is not better than the base on the target beyond the margin",
    "combined": "no part is defined",
    "naive_recovery": "fine-tuning did not lower the mean over the benchmarks",
}


def score_cells(cells: Sequence[PairedCell], settings: Settings) -> list[Score]:
    """Score cells, those with the same items resampled together."""
    return [score_of(cell, settings, drawn) for cell, drawn in zip(*draw_cells(cells, settings), strict=True)]


def score_of(cell: PairedCell, settings: Settings, drawn: Means) -> Score:
    """One cell's score, given its resampled means."""
    seen = observed_means(cell, settings)
    found, draws = _figures(seen), _figures(drawn, seen)
    methods: dict[str, MethodScore] = {}
    for index, method in enumerate(cell.methods):
        estimates = {
            figure: estimate_from_draws(float(values[index]), draws[figure][:, index], settings, _REASONS.get(figure))
            for figure, values in found.items()
        }
        methods[method] = MethodScore(**estimates, trivial=method in NONE_AND_REVERT)
    tasks = _task_scores(cell, settings, seen, drawn)
    return Score(
        name=cell.name,
        models=cell.models,
        margin=_margin_text(settings),
        chance_corrected=settings.chance_corrected,
        confidence=settings.confidence,
        draws=settings.draws,
        seed=settings.seed,
        target=tasks[0],
        benchmarks=tuple(tasks[1:]),
        methods=methods,
        differences=tuple(_differences(cell, settings, found, draws)),
        notes=(*cell.notes, *notes_on_figures(methods, tasks)),
    )


def _figures(means: Means, like: Means | None = None) -> dict[str, FloatArray]:
    """Every figure of every method, (…, K); see `parts_of`."""
    parts: Parts = parts_of(means, like)
    base, finetuned = means.base.mean(axis=-1)[..., None], means.finetuned.mean(axis=-1)[..., None]
    mean = means.repaired.mean(axis=-1)
    with np.errstate(divide="ignore", invalid="ignore"):
        recovery = np.where(base > finetuned, (mean - finetuned) / (base - finetuned), np.nan)
    return {
        "healing": parts.healing,
        "preservation": parts.preservation,
        "non_damage": parts.non_damage,
        "retention": parts.retention,
        "combined": parts.combined,
        "mean_score": mean,
        "naive_recovery": recovery,
        "backward_transfer": mean - base,
    }


def _task_scores(cell: PairedCell, settings: Settings, seen: Means, drawn: Means) -> list[TaskScore]:
    """The target, then every benchmark."""
    damaged, improved = partition(seen)
    drawn_damaged, drawn_improved = partition(drawn)
    healed, preserved, unharmed = shares(seen)
    retention = parts_of(seen).retention
    scored = []
    for index, task in enumerate(cell.benchmarks):
        lost, won = drawn_damaged[:, index].mean(), drawn_improved[:, index].mean()
        in_draws: dict[Group, float] = {"damaged": lost, "improved": won, "neutral": max(0.0, 1 - lost - won)}
        group: Group = "damaged" if damaged[index] else "improved" if improved[index] else "neutral"
        share = {"damaged": healed, "improved": preserved, "neutral": unharmed}[group][:, index]
        columns = (drawn.base[:, index], drawn.finetuned[:, index], drawn.repaired[:, :, index])
        scored.append(
            _task_score(cell, settings, task, columns, float(seen.margin[index]), share, group=group, in_draws=in_draws)
        )
    columns = (drawn.target_base, drawn.target_finetuned, drawn.target_repaired)
    target = _task_score(cell, settings, cell.target, columns, float(seen.target_margin), retention)
    return _with_holm([target, *scored])


def _task_score(
    cell: PairedCell,
    settings: Settings,
    task: PairedTask,
    drawn: tuple[FloatArray, FloatArray, FloatArray],
    margin: float,
    share: FloatArray,
    *,
    group: Group | None = None,
    in_draws: dict[Group, float] | None = None,
) -> TaskScore:
    base, finetuned, repaired = drawn
    scores = np.column_stack([task.scores, task.scores[:, 1], task.scores[:, 0]])
    means = mean_scores(scores)
    binary = right_or_wrong(task.scores)
    methods = {}
    for index, method in enumerate(cell.methods):
        column = index + 2
        methods[method] = MethodOnTask(
            score=estimate_from_draws(float(means[column]), repaired[:, index], settings, None),
            change=estimate_from_draws(float(means[column] - means[1]), repaired[:, index] - finetuned, settings, None),
            share=None if np.isnan(share[index]) else float(share[index]),
            p=mcnemar(scores[:, column], scores[:, 1]).p if binary and method not in NONE_AND_REVERT else None,
        )
    gain = scores[:, 1] - scores[:, 0]
    error = float(standard_error(gain.mean(), (gain**2).mean(), gain.size))
    return TaskScore(
        name=task.name,
        metric=task.metric,
        items=len(task.ids),
        weak=task.weak,
        chance=task.chance,
        group=group,
        group_in_draws=in_draws or {},
        margin=margin,
        base=estimate_from_draws(float(means[0]), base, settings, None),
        finetuned=estimate_from_draws(float(means[1]), finetuned, settings, None),
        visible_change=smallest_visible_change(error),
        methods=methods,
    )


def _with_holm(tasks: list[TaskScore]) -> list[TaskScore]:
    """Correct the McNemar tests of all tasks and methods together."""
    tested = [(task.name, name, on.p) for task in tasks for name, on in task.methods.items() if on.p is not None]
    corrected = dict(zip([(task, name) for task, name, _ in tested], holm([p for *_, p in tested]), strict=True))
    return [
        task.model_copy(
            update={
                "methods": {
                    name: on.model_copy(update={"p_holm": corrected.get((task.name, name))})
                    for name, on in task.methods.items()
                }
            }
        )
        for task in tasks
    ]


def _differences(
    cell: PairedCell, settings: Settings, found: Mapping[str, FloatArray], draws: Mapping[str, FloatArray]
) -> list[Difference]:
    own = [(index, method) for index, method in enumerate(cell.methods) if method not in NONE_AND_REVERT]
    differences = []
    for (first, first_name), (second, second_name) in combinations(own, 2):
        estimates = {
            figure: estimate_from_draws(
                float(found[figure][first] - found[figure][second]),
                draws[figure][:, first] - draws[figure][:, second],
                settings,
                _REASONS[figure],
            )
            for figure in ("healing", "retention", "combined")
        }
        differences.append(Difference(first=first_name, second=second_name, **estimates))
    return differences


def _margin_text(settings: Settings) -> str:
    special = [f"{task} {margin}" for task, margin in (settings.task_margins or {}).items()]
    return "; ".join([str(settings.margin), *special])
