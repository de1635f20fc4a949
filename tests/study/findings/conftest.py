"""A made-up study, of which the truth is known, its records and its results."""

from __future__ import annotations

from pathlib import Path

import pytest

from deltamend.study.config import Study
from deltamend.study.findings.result_types import StudyResults
from deltamend.study.findings.results import study_results
from tests.study.findings.results_of_made_up import DRAWS
from tests.study.made_up import made_up_study, write_made_up


@pytest.fixture(scope="session")
def study() -> Study:
    return made_up_study()


@pytest.fixture(scope="session")
def records(study: Study, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("study")
    write_made_up(study, out)
    return out


@pytest.fixture(scope="session")
def results(study: Study, records: Path) -> StudyResults:
    return study_results(study, records, draws=DRAWS)
