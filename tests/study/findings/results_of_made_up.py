"""What the tests of the findings read off the results of the made-up study."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from deltamend.scoring.result import Estimate
from deltamend.study.config import Study
from deltamend.study.findings.result_types import CONFIRMATION, StudyResults
from deltamend.study.findings.results import study_results
from tests.study.made_up import write_made_up

DRAWS = 200


def half_done(study: Study, out: Path, only: set[str], without: dict[str, set[str]] | None = None) -> StudyResults:
    write_made_up(study, out, only=only, without=without)
    return study_results(study, out, draws=DRAWS)


def combined(results: StudyResults, name: str, group: str = CONFIRMATION) -> Estimate:
    (found,) = (of for of in results.repairs if of.name == name)
    return found.groups[group].combined.these_cells


def ends(of: Estimate) -> tuple[float | None, float | None, float | None]:
    return of.value, of.low, of.high


def said(results: StudyResults, topic: str) -> str:
    (answer,) = (of for of in results.answers if of.topic == topic)
    return " ".join(answer.sentences)


def estimates(value: object) -> Iterator[Estimate]:
    """Every figure in some results."""
    if isinstance(value, Estimate):
        yield value
    elif isinstance(value, dict):
        for inner in value.values():
            yield from estimates(inner)
    elif isinstance(value, (tuple, list)):
        for inner in value:
            yield from estimates(inner)
    elif hasattr(value, "__dict__"):
        yield from estimates(vars(value))
