"""From the stored items of base, fine-tuned and repaired models to a score with intervals."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np

from deltamend.errors import UsageError
from deltamend.scoring.bootstrap import mean_scores, percentile_interval, resampled_means, standard_error
from deltamend.scoring.cell import TRIVIAL, Cell, Source, open_cell
from deltamend.scoring.margin import DEFAULT_MARGIN, Margin, parse_margin
from deltamend.scoring.metric import FloatArray, Group, Means, Parts, partition, parts_of, shares
from deltamend.scoring.pairing import PairedTask
from deltamend.scoring.power import items_needed, smallest_visible_change
from deltamend.scoring.result import Difference, Estimate, MethodOnTask, MethodScore, Score, TaskScore
from deltamend.scoring.significance import holm, mcnemar, right_or_wrong

_REASONS = {
    "healing": "fine-tuning damaged no benchmark beyond the margin",
    "preservation": "fine-tuning improved no benchmark beyond the margin",
    "non_damage": "fine-tuning moved every benchmark beyond the margin",
    "retention": "the fine-tuned model is not better than the base on the target beyond the margin",
    "combined": "no part is defined",
    "naive_recovery": "fine-tuning did not lower the mean over the benchmarks",
}
_MOSTLY_UNDEFINED = 0.5
_SETTLED = 0.8
"""Share of the draws that must agree on a benchmark's group for nothing to be said about it."""

_SMALL_CHANGE = 0.02
"""A change people care about, for the note on how many items it takes."""


@dataclass(frozen=True)
class Settings:
    """How a cell is scored; the same for every cell of a study.

    Attributes:
        margin: for every task, unless `task_margins` has another.
        task_margins: task to margin.
        chance_corrected: whether scores are moved to (s − chance)/(1 − chance) first, where chance is known.
        draws: of the bootstrap.
        seed: of the bootstrap.
        confidence: of the intervals.
    """

    margin: Margin = DEFAULT_MARGIN
    task_margins: Mapping[str, Margin] | None = None
    chance_corrected: bool = False
    draws: int = 10_000
    seed: int = 0
    confidence: float = 0.95

    def __post_init__(self) -> None:
        """Refuse values that mean nothing."""
        if not 100 <= self.draws <= 1_000_000:
            raise UsageError(f"--draws {self.draws}: give 100 to 1000000; 10000 is usual")
        if not 0.5 <= self.confidence < 1:
            raise UsageError(f"--confidence {self.confidence}: give a share from 0.5 to below 1, such as 0.95")
        if self.seed < 0:
            raise UsageError(f"--seed {self.seed}: give 0 or more")

    def margin_of(self, task: str) -> Margin:
        """The margin of one task."""
        return (self.task_margins or {}).get(task, self.margin)


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


def make_settings(
    *,
    margin: str | float = "1se",
    task_margins: Mapping[str, str | float] | None = None,
    chance_corrected: bool = False,
    draws: int = 10_000,
    seed: int = 0,
    confidence: float = 0.95,
) -> Settings:
    """Settings from margins as a person writes them.

    Raises:
        UsageError: a value means nothing.
    """
    return Settings(
        margin=parse_margin(str(margin)),
        task_margins={task: parse_margin(str(text)) for task, text in (task_margins or {}).items()},
        chance_corrected=chance_corrected,
        draws=draws,
        seed=seed,
        confidence=confidence,
    )


def score_cells(cells: Sequence[Cell], settings: Settings) -> list[Score]:
    """Score cells, those with the same items resampled together."""
    return [score_of(cell, settings, drawn) for cell, drawn in zip(*draw_cells(cells, settings), strict=True)]


def draw_cells(cells: Sequence[Cell], settings: Settings) -> tuple[list[Cell], list[Means]]:
    """Resampled means of cells, and the cells as they are scored (chance-corrected where that was asked for).

    Cells whose items of a task are the same share one set of draws, and one matrix product.

    Raises:
        UsageError: a margin is for a task that no cell has.
    """
    known = {task.name for cell in cells for task in cell.tasks}
    for name in settings.task_margins or {}:
        if name not in known:
            raise UsageError(f"--margin {name}=…: there is no such task; there are {', '.join(sorted(known))}")
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


def _corrected(cell: Cell) -> Cell:
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


def means_of(cell: Cell, settings: Settings, columns: Mapping[str, FloatArray]) -> Means:
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


def observed_means(cell: Cell, settings: Settings) -> Means:
    """Means of a cell as it is, without resampling."""
    return means_of(cell, settings, {task.name: mean_scores(_columns(task)) for task in cell.tasks})


def score_of(cell: Cell, settings: Settings, drawn: Means) -> Score:
    """One cell's score, given its resampled means."""
    seen = observed_means(cell, settings)
    found, draws = _figures(seen), _figures(drawn, seen)
    methods: dict[str, MethodScore] = {}
    for index, method in enumerate(cell.methods):
        estimates = {
            figure: estimate(float(values[index]), draws[figure][:, index], settings, _REASONS.get(figure))
            for figure, values in found.items()
        }
        methods[method] = MethodScore(**estimates, trivial=method in TRIVIAL)
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
        notes=(*cell.notes, *_warnings(methods, tasks)),
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


def estimate(value: float, draws: FloatArray, settings: Settings, reason: str | None) -> Estimate:
    """A figure with its percentile interval, over the draws in which it is defined; both None where it is not.

    Args:
        value: NaN where undefined.
        draws: (D,) the figure in every draw, NaN where undefined.
        settings: for the confidence.
        reason: why it is undefined, if it is.
    """
    if math.isnan(value):
        return Estimate(value=None, reason=reason)
    defined = draws[~np.isnan(draws)]
    undefined = 1 - defined.size / draws.size
    if undefined > _MOSTLY_UNDEFINED:
        return Estimate(
            value=value, reason=f"undefined in {undefined:.0%} of the draws: too uncertain", undefined_draws=undefined
        )
    interval = percentile_interval(defined, settings.confidence)
    return Estimate(value=value, low=interval.low, high=interval.high, undefined_draws=undefined)


def _task_scores(cell: Cell, settings: Settings, seen: Means, drawn: Means) -> list[TaskScore]:
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
    cell: Cell,
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
            score=estimate(float(means[column]), repaired[:, index], settings, None),
            change=estimate(float(means[column] - means[1]), repaired[:, index] - finetuned, settings, None),
            share=None if np.isnan(share[index]) else float(share[index]),
            p=mcnemar(scores[:, column], scores[:, 1]).p if binary and method not in TRIVIAL else None,
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
        base=estimate(float(means[0]), base, settings, None),
        finetuned=estimate(float(means[1]), finetuned, settings, None),
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
    cell: Cell, settings: Settings, found: Mapping[str, FloatArray], draws: Mapping[str, FloatArray]
) -> list[Difference]:
    own = [(index, method) for index, method in enumerate(cell.methods) if method not in TRIVIAL]
    differences = []
    for (first, first_name), (second, second_name) in combinations(own, 2):
        estimates = {
            figure: estimate(
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


def _has_no_width(task: TaskScore) -> bool:
    """Whether a model has all items of a task right, or all wrong: resampling them gives the same again."""
    scores = [task.base, task.finetuned, *(of.score for of in task.methods.values())]
    return any(of.value in (0.0, 1.0) and of.low == of.high for of in scores)


def _warnings(methods: Mapping[str, MethodScore], tasks: Sequence[TaskScore]) -> list[str]:
    """What the figures cannot say."""
    any_method = methods[TRIVIAL[0]]
    notes = []
    if any_method.healing.value is None:
        notes.append(
            "fine-tuning damaged no benchmark beyond the margin: there is nothing to heal, and `none` need not be 0"
        )
    if any_method.retention.value is None:
        notes.append(
            "the fine-tuned model is not better than the base on the target beyond the margin: "
            "there is nothing to retain, and `revert` need not be 0"
        )
    unsettled = [
        f"{task.name} ({task.group} in {task.group_in_draws[task.group]:.0%} of the draws)"
        for task in tasks
        if task.group is not None and task.group_in_draws[task.group] < _SETTLED
    ]
    if unsettled:
        notes.append(f"so few items do not settle what fine-tuning did to {', '.join(unsettled)}")
    flat = [task.name for task in tasks if _has_no_width(task)]
    if flat:
        notes.append(
            f"a score without a single wrong, or a single right, answer has an interval without width ({', '.join(flat)}): with "
            "n items the truth may lie up to 3/n away"
        )
    accuracies = [task for task in tasks if all(0 <= (of.value or 0) <= 1 for of in (task.base, task.finetuned))]
    blind = max(accuracies, key=lambda task: task.visible_change, default=None)
    if blind is not None and blind.visible_change > _SMALL_CHANGE:
        needed = items_needed(_SMALL_CHANGE, visible=blind.visible_change, items=blind.items)
        notes.append(
            f"with {blind.items} items a change below {100 * blind.visible_change:.0f} points on {blind.name} is missed "
            f"more than one time in five; to see {100 * _SMALL_CHANGE:.0f} points takes about {needed} items"
        )
    return notes
