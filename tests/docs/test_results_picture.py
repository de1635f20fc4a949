"""The picture of README is what its script draws from the tables of the ground that lie in the repository."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.docs.printed import ROOT

RESULTS = ROOT / "docs" / "results"


def test_the_picture_is_drawn_from_the_tables(tmp_path: Path) -> None:
    table = RESULTS / "ground" / "results" / "tables" / "equal_retention.csv"
    out = tmp_path / "picture.svg"
    subprocess.run([sys.executable, RESULTS / "picture.py", table, out], check=True)
    assert out.read_bytes() == (RESULTS / "picture.svg").read_bytes()
