"""What models answered to a few items of a cell, as an example that a person can read."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from deltamend.evaluation.record import Evaluation
from deltamend.study.config import Study
from deltamend.study.findings.result_types import SampleAnswers
from deltamend.study.findings.scored_cells import ReadCell
from deltamend.study.records import FINETUNED, TARGET

_BASE = "base"
_SHOWN = 2
"""Items of a benchmark."""


def shown_answers(study: Study, cells: Sequence[ReadCell]) -> Iterator[SampleAnswers]:
    """One cell of each base and target, the first in which answers were kept, with its first items."""
    seen = set()
    for of in cells:
        key = (of.cell.model.name, of.cell.target.name)
        forms = [source.keeps_form for source in study.exam_of(of.cell.model).sources if source.form]
        models = {FINETUNED: of.record.models[FINETUNED].evaluation}
        models |= {name: of.record.models[name].evaluation for name in of.repairs}
        asked = list(_asked(models[FINETUNED], (TARGET, *forms)))
        if key in seen or not asked:
            continue
        seen.add(key)
        answers = {_BASE: _answers(of.base.evaluation, asked)}
        answers |= {name: _answers(found, asked) for name, found in models.items()}
        yield SampleAnswers(
            cell=of.cell.name,
            asked=tuple(f"{task}: {item}" for task, item in asked),
            answers={name: found for name, found in answers.items() if any(one is not None for one in found)},
        )


def _asked(found: Evaluation, tasks: Iterable[str]) -> Iterator[tuple[str, str]]:
    """The benchmark and id of every item that is shown."""
    for task in tasks:
        if task in found.tasks:
            kept = [item.id for item in found.tasks[task].items if item.response is not None]
            yield from ((task, item) for item in kept[:_SHOWN])


def _answers(found: Evaluation, asked: Sequence[tuple[str, str]]) -> tuple[str | None, ...]:
    responses = {(name, item.id): item.response for name, task in found.tasks.items() for item in task.items}
    return tuple(responses.get(one) for one in asked)
