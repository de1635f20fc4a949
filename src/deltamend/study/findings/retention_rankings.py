"""Whether the ranking of repairs changes with how retention is measured."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from deltamend.scoring.across_cells import MeanOverCells
from deltamend.scoring.significance import spearman
from deltamend.study.config import Study
from deltamend.study.findings.result_types import Ranked, Rankings
from deltamend.study.findings.scored_cells import ReadCell, ScoresOfRepairs


def rankings(
    study: Study, cells: Sequence[ReadCell], by_config: ScoresOfRepairs, by_other: ScoresOfRepairs, rows: Sequence[int]
) -> Rankings:
    """The target of some cells is measured by exact match in `by_config`, of the others in `by_other`."""
    shown = [repair for repair in study.repairs if repair.role != "dtype" and not repair.only_choosing]
    exact = np.array([of.cell.target.retention == "exact_match" for of in cells])
    names = by_config.names
    over: list[tuple[MeanOverCells, MeanOverCells]] = []
    for repair in shown:
        column = names.index(repair.name)
        pair = []
        for first in (exact, ~exact):
            values = np.where(first, by_config.values["combined"][:, column], by_other.values["combined"][:, column])
            draws = np.where(first, by_config.draws["combined"][..., column], by_other.draws["combined"][..., column])
            pair.append(by_config.mean(values[list(rows)], draws[:, list(rows)], rows))
        over.append((pair[0], pair[1]))
    both = [
        (first.these_cells.value, second.these_cells.value)
        for first, second in over
        if first.these_cells.value is not None and second.these_cells.value is not None
    ]
    ranks = [_ranks([pair[which].these_cells.value for pair in over]) for which in (0, 1)]
    correlation, _ = spearman(*(np.array([pair[which] for pair in both]) for which in (0, 1)))
    return Rankings(
        repairs=tuple(
            Ranked(
                name=repair.name,
                role=repair.role,
                exact_match=first,
                likelihood=second,
                exact_match_rank=ranks[0][place],
                likelihood_rank=ranks[1][place],
            )
            for place, (repair, (first, second)) in enumerate(zip(shown, over, strict=True))
        ),
        correlation=correlation,
    )


def _ranks(values: Sequence[float | None]) -> list[int | None]:
    """1 for the highest; equal ones share a rank."""
    return [
        None if value is None else 1 + sum(other is not None and other > value for other in values) for value in values
    ]
