"""Fisher weighting, and the file it reads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import deltamend
from tests.methods.spectra import NAME, kept, pair


def test_fisher_weights_entries(tmp_path: Path) -> None:
    base, update = pair((60, 40))
    generator = np.random.default_rng(1)
    ours, theirs = generator.uniform(size=(60, 40)), generator.uniform(size=(60, 40))
    ours[0, :3], theirs[0, :2] = 0.0, 0.0
    for name, values in (("ours", ours), ("theirs", theirs)):
        save_file({NAME: torch.from_numpy(values)}, tmp_path / name)
    with np.errstate(invalid="ignore"):
        share = 0.3 * ours / (0.3 * ours + 0.7 * theirs)
    share[0, :2] = 0.3
    files: dict[str, Any] = {"fisher": tmp_path / "ours", "base_fisher": tmp_path / "theirs", "alpha": 0.3}
    np.testing.assert_allclose(kept("fisher", base, update, **files), share * update, atol=1e-14)
    share = 0.3 * ours / (0.3 * ours + 0.7 * ours.mean())
    files = {"fisher": tmp_path / "ours", "alpha": 0.3}
    np.testing.assert_allclose(kept("fisher", base, update, **files), share * update, atol=1e-14)


def test_a_fisher_file_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    base, update = pair((60, 40))
    save_file({"other": torch.ones(60, 40)}, tmp_path / "name")
    save_file({NAME: torch.ones(40, 60)}, tmp_path / "shape")
    save_file({NAME: -torch.ones(60, 40)}, tmp_path / "sign")
    for name, message in (
        ("name", "no tensor of this name"),
        ("shape", r"\[40, 60\]"),
        ("sign", "negative or not finite, which no squared gradient is"),
    ):
        with pytest.raises(deltamend.FilterError, match=message):
            kept("fisher", base, update, fisher=tmp_path / name)
    with pytest.raises(deltamend.MethodError, match="does not point to a file"):
        kept("fisher", base, update, fisher=tmp_path / "none")


def test_what_is_recorded_of_a_fisher_file_is_its_name_and_content(tmp_path: Path) -> None:
    save_file({NAME: torch.ones(3, 3)}, tmp_path / "squares.safetensors")
    text = deltamend.get_method("fisher", {"fisher": tmp_path / "squares.safetensors"}).described()
    assert text.startswith("fisher fisher=squares.safetensors sha256:")
    assert str(tmp_path) not in text
