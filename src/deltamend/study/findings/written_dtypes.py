"""The same repair written in several dtypes: what is the filter, and what is the rounding."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence

import numpy as np

from deltamend.scoring.paired_cell import NONE, NONE_AND_REVERT
from deltamend.study.config import Study, StudyCell
from deltamend.study.findings.result_types import Written, WrittenDifference
from deltamend.study.findings.scored_cells import ReadCell, ScoresOfRepairs
from deltamend.study.repair_config import Repair, same_but_dtype


def written(study: Study, cells: Sequence[ReadCell], scored: ScoresOfRepairs) -> Iterable[Written]:
    """Every repair that is written in several dtypes, regime by regime."""
    of_dtype = [repair for repair in study.repairs if repair.role == "dtype"]
    shown = [one for one in study.repairs if any(same_but_dtype(one, other) for other in of_dtype)]
    for regime, rows in _of_regimes(cells).items():
        for repair in shown:
            own = [row for row in rows if repair.name in cells[row].repairs]
            if not own:
                continue
            facts = [cells[row].facts(repair.name) for row in own]
            yield Written(
                regime=regime,
                weights=cells[own[0]].cell.regime.weights,
                repair=repair.name,
                out_dtype=_stored(repair, cells[own[0]].cell),
                cells=len(own),
                realised_error=float(np.mean([fact.realised_error for fact in facts])),
                kept_energy=float(np.mean([fact.kept_energy for fact in facts])),
                realised_energy=float(np.mean([fact.realised_energy for fact in facts])),
                healing=scored.over("healing", repair.name, own),
                retention=scored.over("retention", repair.name, own),
                combined=scored.over("combined", repair.name, own),
            )


def written_differences(
    study: Study, cells: Sequence[ReadCell], scored: ScoresOfRepairs
) -> Iterable[WrittenDifference]:
    """Every repair about dtypes against the same in another dtype; where it is `none`, against the fine-tuned model."""
    for regime, rows in _of_regimes(cells).items():
        for repair in study.repairs:
            if repair.role != "dtype":
                continue
            others = [one for one in study.repairs if one.role != "dtype" and same_but_dtype(one, repair)]
            names = [
                one.name for one in others if _stored(one, cells[rows[0]].cell) != _stored(repair, cells[rows[0]].cell)
            ]
            for other in [NONE] if repair.method == NONE else names:
                shared = [row for row in rows if {repair.name, other} <= {*cells[row].repairs, *NONE_AND_REVERT}]
                if shared:
                    parts = {
                        part: scored.difference(part, repair.name, other, shared)
                        for part in ("healing", "retention", "combined")
                    }
                    yield WrittenDifference(regime=regime, first=repair.name, second=other, **parts)


def _stored(repair: Repair, cell: StudyCell) -> str:
    return cell.regime.weights if repair.out_dtype == "stored" else repair.out_dtype


def _of_regimes(cells: Sequence[ReadCell]) -> dict[str, list[int]]:
    rows: dict[str, list[int]] = defaultdict(list)
    for row, of in enumerate(cells):
        rows[of.cell.regime.name].append(row)
    return rows
