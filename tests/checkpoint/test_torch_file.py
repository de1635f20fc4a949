from __future__ import annotations

from tests.torch_mutations import TRAPS, lost


def test_no_pickle_runs_code_and_damaged_files_are_refused_in_one_line() -> None:
    assert lost(0, TRAPS + 160) == {}
