"""Refusals of base, fine-tuned and repaired models, over the cells of a target."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence

import numpy as np

from deltamend.errors import EvaluationError
from deltamend.scoring.bootstrap import mean_scores, resampled_means
from deltamend.scoring.estimates import estimate_from_draws
from deltamend.scoring.metric import FloatArray
from deltamend.scoring.paired_items import PairedTask, pair_task
from deltamend.scoring.result import Estimate
from deltamend.scoring.settings import Settings
from deltamend.study.config import Study
from deltamend.study.findings.result_types import SafetyOutcome
from deltamend.study.findings.scored_cells import ReadCell
from deltamend.study.records import FINETUNED

BASE = "base"


def safety_outcomes(study: Study, cells: Sequence[ReadCell], settings: Settings) -> Iterable[SafetyOutcome]:
    """Every safety task, target by target, for all models that were asked; the prompts are drawn together.

    Raises:
        EvaluationError: models were not asked the same.
    """
    by_target: dict[str, list[ReadCell]] = defaultdict(list)
    for of in cells:
        by_target[of.cell.target.name].append(of)
    tasks = dict.fromkeys(entry.name for model in study.models for entry in study.exam_of(model).safety)
    for task in tasks:
        for target, own in by_target.items():
            yield from _of_target(task, target, own, settings)


def _of_target(task: str, target: str, cells: Sequence[ReadCell], settings: Settings) -> Iterable[SafetyOutcome]:
    paired: list[PairedTask] = []
    models: list[list[str]] = []
    for of in cells:
        records = {BASE: of.base.evaluation, **{name: one.evaluation for name, one in of.record.models.items()}}
        asked = {name: record.tasks[task] for name, record in records.items() if task in record.tasks}
        if BASE not in asked or FINETUNED not in asked:
            continue
        try:
            paired.append(pair_task(task, asked, common_items=False)[0])
        except EvaluationError as error:
            raise EvaluationError(f"cell {of.cell.name}: {error}") from error
        models.append(list(asked))
    if not paired:
        return
    drawn = [resampled_means(of.scores, draws=settings.draws, seed=settings.seed, key=task) for of in paired]
    seen = [mean_scores(of.scores) for of in paired]

    def of_model(model: str, where: Sequence[int]) -> tuple[float, FloatArray]:
        """Mean over some cells, as it is and in every draw."""
        columns = [models[place].index(model) for place in where]
        values = [seen[place][column] for place, column in zip(where, columns, strict=True)]
        draws = [drawn[place][:, column] for place, column in zip(where, columns, strict=True)]
        return float(np.mean(values)), np.mean(draws, axis=0)

    for model in dict.fromkeys(name for own in models for name in own):
        where = [place for place, own in enumerate(models) if model in own]
        value, draws = of_model(model, where)
        prompts = len(paired[where[0]].ids)

        def minus(
            other: str, where: Sequence[int] = where, value: float = value, draws: FloatArray = draws
        ) -> Estimate:
            theirs, theirs_drawn = of_model(other, where)
            return estimate_from_draws(value - theirs, draws - theirs_drawn, settings, None)

        yield SafetyOutcome(
            target=target,
            task=task,
            metric=paired[where[0]].metric,
            weak=paired[where[0]].weak,
            model=model,
            cells=len(where),
            prompts=prompts,
            share=_share(value, draws, prompts, settings),
            from_base=minus(BASE),
            from_finetuned=minus(FINETUNED),
        )


def _share(value: float, draws: FloatArray, prompts: int, settings: Settings) -> Estimate:
    """A share with its interval; Wilson's where resampling gives the same again."""
    found = estimate_from_draws(value, draws, settings, None)
    if found.low != found.high or value not in (0.0, 1.0):
        return found
    from scipy.stats import binomtest

    wilson = binomtest(round(value * prompts), prompts).proportion_ci(settings.confidence, method="wilson")
    return Estimate(value=value, low=float(wilson.low), high=float(wilson.high))
