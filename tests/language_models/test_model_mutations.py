"""Damaged configs, tokenizers and chat templates under the commands that run a model."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
def test_a_damaged_model_is_refused_in_one_line_or_runs() -> None:
    found = subprocess.run(
        [sys.executable, "-m", "tests.model_mutations", "--count", "24"],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
    )
    assert found.returncode == 0, found.stdout + found.stderr[-500:]
    outcomes = json.loads(found.stdout)["outcomes"]
    assert outcomes["refused"] > 4
    assert outcomes["ran"] > 4
