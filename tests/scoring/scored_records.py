"""Records scored and changed, for the tests of scoring."""

from __future__ import annotations

import deltamend
from deltamend.evaluation.record import Evaluation
from deltamend.scoring.result import Score

DRAWS = 400


def scored(records: dict[str, Evaluation], **options: object) -> Score:
    repaired = {name: records[name] for name in records if name not in ("base", "finetuned")}
    arguments: dict[str, object] = {"target": "sums", "draws": DRAWS, **options}
    return deltamend.score(records["base"], records["finetuned"], repaired, **arguments)  # type: ignore[arg-type]


def change_task(of: Evaluation, name: str, **fields: object) -> Evaluation:
    return of.model_copy(update={"tasks": {**of.tasks, name: of.tasks[name].model_copy(update=fields)}})
