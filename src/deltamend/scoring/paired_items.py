"""Items of base, fine-tuned and repaired models side by side: the same item, asked with the same prompt, in one row."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from deltamend.errors import EvaluationError, option
from deltamend.evaluation.record import Evaluation, ItemScore, TaskScores
from deltamend.scoring.metric import FloatArray


@dataclass(frozen=True)
class PairedTask:
    """One benchmark, scored by every model.

    Attributes:
        name: of the task.
        metric: what a score is.
        chance: expected score of a guess, where there is one.
        weak: why the figure is weak, in words; said wherever it is shown.
        ids: of the n items, sorted.
        scores: (n, M) float64, a column a model in the order of the models.
    """

    name: str
    metric: str
    chance: float | None
    weak: str | None
    ids: tuple[str, ...]
    scores: FloatArray


def pair_task(name: str, models: Mapping[str, TaskScores], *, common_items: bool) -> tuple[PairedTask, list[str]]:
    """Put the items of one task in rows, sorted by id.

    Args:
        name: of the task.
        models: model to its scores, in the order of the columns.
        common_items: keep the items all models share, rather than refuse what differs.

    Returns:
        The task, and sentences on what was left out.

    Raises:
        EvaluationError: the models were not asked the same; metric, definition, examples, items or prompts differ.
    """
    first_model, first = next(iter(models.items()))
    for model, other in models.items():
        if not f"{name}{other.metric}{other.weak}".isprintable():
            raise EvaluationError(
                f"task {name!r} of {model}: its text has characters that cannot be shown; remove them"
            )
        if None not in (first.asked, other.asked) and first.asked != other.asked:
            raise EvaluationError(
                f"task {name!r}: {first_model} and {model} were asked with another answer filter or length; evaluate both alike"
            )
        for field in ("metric", "version", "fewshot"):
            ours, theirs = getattr(first, field), getattr(other, field)
            if ours != theirs:
                raise EvaluationError(
                    f"task {name!r}: {field} is {ours!r} for {first_model} and {theirs!r} for {model}; evaluate both alike"
                )
    items = {model: {item.id: item for item in task.items} for model, task in models.items()}
    ids = _shared_ids(name, items, common_items)
    total = len(set().union(*items.values()))
    said = [] if len(ids) == total else [f"{name}: {len(ids)} of {total} items are shared by all models and scored"]
    scores = np.array([[of_model[key].score for of_model in items.values()] for key in ids], dtype=np.float64)
    chances = {task.chance for task in models.values()}
    weak = dict.fromkeys(task.weak for task in models.values() if task.weak is not None)
    return PairedTask(
        name=name,
        metric=first.metric,
        chance=chances.pop() if len(chances) == 1 else None,
        weak="; ".join(weak) or None,
        ids=tuple(ids),
        scores=scores,
    ), said


def _shared_ids(name: str, items: Mapping[str, Mapping[str, ItemScore]], common_items: bool) -> list[str]:
    first_model, first = next(iter(items.items()))
    shared = set(first)
    for model, others in items.items():
        lacking = sorted(set(first) ^ set(others))
        same = {key for key in set(first) & set(others) if first[key].prompt_hash == others[key].prompt_hash}
        asked_otherwise = sorted((set(first) & set(others)) - same)
        if not common_items and lacking:
            raise EvaluationError(
                f"task {name!r}: {first_model} and {model} do not have the same items "
                f"({len(lacking)} are in one only, such as {lacking[0]!r}); evaluate both alike, or give {option('common_items', 'True')}"
            )
        if not common_items and asked_otherwise:
            raise EvaluationError(
                f"task {name!r}: {first_model} and {model} were asked {len(asked_otherwise)} items with other prompts "
                f"(such as {asked_otherwise[0]!r}); use one chat template and the same examples, or give {option('common_items', 'True')}"
            )
        shared &= same
    if not shared:
        raise EvaluationError(f"task {name!r}: the models share no item with the same prompt; evaluate them alike")
    return sorted(shared)


def pair_tasks(
    models: Mapping[str, Evaluation],
    names: list[str] | None,
    *,
    left_out: str | None = None,
    common_items: bool = False,
) -> tuple[dict[str, PairedTask], list[str]]:
    """Pair every task but `left_out`, or those named.

    Raises:
        EvaluationError: a task is not there for every model, or the models were not asked the same.
    """
    everywhere = list(dict.fromkeys(task for record in models.values() for task in record.tasks))
    wanted = everywhere if names is None else names
    paired: dict[str, PairedTask] = {}
    said: list[str] = []
    for name in wanted:
        if name == left_out:
            continue
        lacking = [model for model, record in models.items() if name not in record.tasks]
        if not lacking:
            paired[name], notes = pair_task(
                name, {model: record.tasks[name] for model, record in models.items()}, common_items=common_items
            )
            said += notes
        elif common_items and names is None:
            said.append(f"{name}: left out, as {', '.join(lacking)} lacks it")
        else:
            raise EvaluationError(
                f"task {name!r}: {', '.join(lacking)} lacks it (has: {', '.join(models[lacking[0]].tasks)}); "
                f"evaluate it, or give {option('common_items', 'True')} to score the tasks that all models share"
            )
    return paired, said
