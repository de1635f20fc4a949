from __future__ import annotations

from pathlib import Path

import pytest

from deltamend.errors import UsageError
from deltamend.scoring.cells_file import open_cells
from tests.scoring.test_across_cells import write_cells


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("cells: []", "cells: List should have at least 1"),
        ("cells: [{name: a}]", r"cells\.0\.base: is missing"),
        ("cells: [", "cannot be read as YAML"),
        ("cell: 1", "cells: is missing"),
    ],
)
def test_a_list_that_is_wrong_is_refused_by_field(tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "cells.yaml").write_text(text)
    with pytest.raises(UsageError, match=says) as caught:
        open_cells(tmp_path / "cells.yaml")
    assert "\n" not in str(caught.value)


def test_two_cells_of_one_name_are_refused(tmp_path: Path) -> None:
    path = write_cells(tmp_path, ["llama", "llama"])
    path.write_text(path.read_text().replace("cell 1", "cell 0"))
    with pytest.raises(UsageError, match="two cells are named 'cell 0'"):
        open_cells(path)
