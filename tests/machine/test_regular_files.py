"""How many files may be open, and what is said where it is too many."""

from __future__ import annotations

import subprocess
import sys

import pytest

PROGRAM = """
import os, resource, sys
from pathlib import Path
from deltamend.machine.regular_files import open_regular, reason
soft, hard = map(int, sys.argv[1:])
resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
opened = []
try:
    for _ in range(300):
        opened.append(open_regular(Path(sys.executable)))
except OSError as error:
    said = reason(error)
    for descriptor in opened:
        os.close(descriptor)
    print(len(opened), said)
else:
    print(len(opened), "no error")
"""


def _opened(soft: int, hard: int) -> str:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(soft), str(hard)], capture_output=True, text=True, check=True
    )
    return done.stdout


@pytest.mark.slow
def test_the_limit_is_raised_as_far_as_the_system_allows() -> None:
    assert _opened(64, 4096) == "300 no error\n"


@pytest.mark.slow
def test_a_limit_that_cannot_be_raised_is_named_with_the_remedy() -> None:
    said = _opened(64, 64)
    assert "cannot be opened, as this process may have 64 files open; allow it more (ulimit -n)" in said
    assert "permission" not in said
