"""No cell of any table is a formula to a spreadsheet."""

from __future__ import annotations

import csv
import io
import re
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import deltamend
from deltamend.report.csv_output import csv_text
from tests.conftest import Pair, Printed

SOURCE = Path(deltamend.__file__).parent


@pytest.mark.parametrize("start", ["=", "+", "-", "@", "\t", "\n", "\n="])
def test_text_that_looks_like_a_formula_stays_text(start: str) -> None:
    (row,) = csv.DictReader(
        io.StringIO(csv_text(["name", "value"], [{"name": f"{start}1+1", "value": -1.5}]), newline="")
    )
    assert row == {"name": f"'{start}1+1", "value": "-1.5"}


def test_every_table_is_written_by_one_writer() -> None:
    """`score_tables` puts the text of its cells through the same function itself."""
    found = {
        path.relative_to(SOURCE).as_posix()
        for path in SOURCE.rglob("*.py")
        if re.search(r"csv\.(writer|DictWriter)\(", path.read_text(encoding="utf-8"))
    }
    assert found == {"report/csv_output.py", "report/score_tables.py"}


@pytest.mark.slow
@pytest.mark.parametrize(
    "command", [("diff",), ("compare", "--methods", "none"), ("diagnose",)], ids=lambda given: given[0]
)
def test_a_tensor_that_is_called_like_a_formula_is_text_in_the_tables(
    command: tuple[str, ...], own_pair: Pair, tmp_path: Path, deltamend_cli: object
) -> None:
    formula = '=HYPERLINK("http://x")'
    for side in (own_pair.base, own_pair.finetuned):
        for index in side.glob("*.index.json"):
            index.unlink()
        tensors: dict[str, np.ndarray] = {}
        for file in sorted(side.glob("*.safetensors")):
            tensors |= load_file(file)
            file.unlink()
        name = next(name for name in tensors if "up_proj" in name)
        tensors[f"{formula}.{name}"] = tensors.pop(name)
        save_file(tensors, side / "model.safetensors", metadata={"format": "pt"})
    table = tmp_path / "table.csv"
    printed: Printed = deltamend_cli(command[0], own_pair.base, own_pair.finetuned, *command[1:], "--csv", table)  # type: ignore[operator]
    assert printed.code == 0, printed.err
    cells = [cell for row in csv.reader(io.StringIO(table.read_text(encoding="utf-8"))) for cell in row]
    assert any(formula in cell for cell in cells)
    assert not [cell for cell in cells if cell.startswith(("=", "+", "@"))]
