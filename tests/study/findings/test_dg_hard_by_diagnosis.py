from __future__ import annotations

import pytest

from deltamend.study.findings.result_types import StudyResults


@pytest.mark.slow
def test_dg_hard_heals_where_it_removes_something(results: StudyResults) -> None:
    assert results.dg_hard is not None
    assert all(of.identity == ("/fp32/" in of.cell) for of in results.dg_hard.cells)
    same, others = results.dg_hard.identity.these_cells.value, results.dg_hard.others.these_cells.value
    assert same is not None
    assert others is not None
    assert same < 0.1 < others
    by_name = {of.measure: of for of in results.dg_hard.correlations}
    assert (by_name["energy that DG-Hard keeps"].over_clusters or 0.0) < 0
    assert by_name["energy that DG-Hard keeps"].within.keys() == {"bfloat16", "float32"}
