from __future__ import annotations

from pathlib import Path

import pytest

from deltamend.study.config import Study
from deltamend.study.findings.result_types import StudyResults
from deltamend.study.findings.results import study_results
from tests.study.findings.results_of_made_up import DRAWS
from tests.study.made_up import ALPHAS, made_up_study, write_made_up


@pytest.mark.slow
def test_the_curve_is_found_by_its_alphas_whatever_the_vectors_follow(
    study: Study, results: StudyResults, tmp_path: Path
) -> None:
    repairs = [repair.model_dump(mode="json") for repair in study.repairs]
    for repair in repairs:
        if repair["method"] == "wise-ft":
            repair["vectors"] = repair["parameters"]["alpha"]
    embedding = {"name": "base-embedding", "method": "wise-ft", "parameters": {"alpha": 0.4}, "role": "control"}
    repairs.append(embedding | {"rules": [{"kind": "embedding", "method": "revert"}]})
    other = made_up_study(repairs=repairs)
    write_made_up(other, tmp_path)
    found = study_results(other, tmp_path, draws=DRAWS)
    assert found.curve is not None
    assert results.curve is not None
    assert [of.name for of in found.curve.points] == [of.name for of in results.curve.points]
    assert [of.alpha for of in found.curve.points] == [0.0, *ALPHAS, 1.0]
    assert "base-embedding" in {of.name for of in found.curve.heights}
    assert "base-embedding" not in {name for of in found.best_strengths if of.family == "wise-ft" for name in of.tried}
