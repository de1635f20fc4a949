"""The figure of what auto keeps is drawn by the methods themselves, and shows what its page says."""

from __future__ import annotations

import runpy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.docs.printed import ROOT

SCRIPT = ROOT / "docs" / "explanation" / "kept_shares.py"


@pytest.mark.slow
def test_the_script_writes_the_figure(tmp_path: Path) -> None:
    out = tmp_path / "figure.svg"
    subprocess.run([sys.executable, SCRIPT, out], check=True)
    assert out.read_text(encoding="utf-8").count("<image") == 4 + 1  # and the bar of colours


def test_methods_keep_what_the_page_says() -> None:
    kept: Callable[..., np.ndarray[Any, np.dtype[np.float64]]] = runpy.run_path(str(SCRIPT))["kept_shares"]
    assert kept("wise-ft", alpha=0.5) == pytest.approx(0.5)  # looks at neither
    by_size = kept("dg-hard")
    assert (np.ptp(by_size, axis=1) < 1e-6).all()  # at the size alone
    assert by_size[-1] == pytest.approx(1.0)
    assert by_size[0] == pytest.approx(0.0)
    by_use = kept("null-space", ridge=1.0)
    assert (np.ptp(by_use, axis=0) < 1e-6).all()  # at the base alone
    assert by_use[0, 0] > 0.95
    assert by_use[0, -1] < 0.2
    by_both = kept("two-sided")
    assert (np.diff(by_both, axis=0) > 0).all()  # the larger the update, the more
    assert (np.diff(by_both, axis=1) < 0).all()  # the more the base uses, the less
    assert by_both[:, 0] == pytest.approx(1.0, abs=0.02)
    assert by_both[0, -1] < 0.05
    assert 0.3 < by_both[-1, -1] < 0.7
