from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

MERGEKIT = os.environ.get("DELTAMEND_MERGEKIT") or shutil.which("mergekit-yaml")
ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.skipif(MERGEKIT is None, reason="mergekit-yaml is not on the PATH, nor named by DELTAMEND_MERGEKIT")
def test_methods_without_chance_give_the_bytes_of_mergekit() -> None:
    command = [sys.executable, "-m", "benchmarks.correctness.mergekit_parity", "--exact", "--mergekit", str(MERGEKIT)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("agrees") == 4
