"""What the figures of a cell cannot say, in sentences beside them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from deltamend.scoring.paired_cell import NONE_AND_REVERT
from deltamend.scoring.power import items_needed
from deltamend.scoring.result import MethodScore, TaskScore

_SETTLED = 0.8
"""Share of the draws that must agree on a benchmark's group for nothing to be said about it."""

_SMALL_CHANGE = 0.02
"""A change people care about, for the note on how many items it takes."""


def _has_no_width(task: TaskScore) -> bool:
    """Whether a model has all items of a task right, or all wrong: resampling them gives the same again."""
    scores = [task.base, task.finetuned, *(of.score for of in task.methods.values())]
    return any(of.value in (0.0, 1.0) and of.low == of.high for of in scores)


def notes_on_figures(methods: Mapping[str, MethodScore], tasks: Sequence[TaskScore]) -> list[str]:
    """What the figures cannot say."""
    any_method = methods[NONE_AND_REVERT[0]]
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
