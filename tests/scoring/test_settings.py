from __future__ import annotations

import pytest

from deltamend.errors import UsageError
from tests.scoring.records import made_up_cell
from tests.scoring.scored_records import scored


@pytest.mark.parametrize(
    "options",
    [{"draws": 10}, {"confidence": 95}, {"seed": -1}, {"margin": "wide"}, {"margin": -0.1}, {"margin": "nan"}],
)
def test_numbers_that_mean_nothing_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(UsageError):
        scored(made_up_cell(), **options)
