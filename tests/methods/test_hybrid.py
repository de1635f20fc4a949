"""A hybrid is one method after another."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import deltamend
from tests.methods.spectra import NAME, kept, pair


@pytest.mark.parametrize(
    "then",
    [{"method": "wise-ft", "alpha": 0.3}, {"method": "magnitude", "density": 0.2}, {"method": "rank", "rank": 1}],
)
@pytest.mark.parametrize("first", [{"method": "dg-hard"}, {"method": "none"}, {"method": "rank", "rank": 0}])
def test_a_hybrid_is_one_method_after_another(first: dict[str, Any], then: dict[str, Any]) -> None:
    base, update = pair((60, 40))
    expected = update
    for step in (first, then):
        parameters = {key: value for key, value in step.items() if key != "method"}
        if expected.any():
            expected = kept(str(step["method"]), base, expected, **parameters)
    np.testing.assert_allclose(kept("hybrid", base, update, steps=[first, then]), expected, atol=1e-8)


def test_steps_that_need_more_than_a_block_are_refused() -> None:
    for step in (
        {"method": "della"},
        {"method": "graft"},
        {"method": "lines"},
        {"method": "energy-cut"},
        {"method": "hybrid"},
        {"method": "dg-hrad"},
        {"rank": 3},
    ):
        with pytest.raises(deltamend.MethodError, match=r"'hybrid', parameter 'steps'"):
            deltamend.get_method("hybrid", {"steps": [step]})


def test_what_a_hybrid_records_is_as_given_but_for_files(tmp_path: Path) -> None:
    given = [{"weight": "0.6", "method": "task_arithmetic"}, {"method": "dg-hard"}]
    assert deltamend.get_method("hybrid", {"steps": given}).model_dump_json() == json.dumps(
        {"steps": given}, separators=(",", ":")
    )
    save_file({NAME: torch.ones(3, 3)}, tmp_path / "squares.safetensors")
    for path in (tmp_path / "squares.safetensors", str(tmp_path / "squares.safetensors")):
        first = {"method": "fisher", "fisher": path, "base_fisher": path, "alpha": 0.3}
        made = deltamend.get_method("hybrid", {"steps": [first, given[0]]})
        alone = deltamend.get_method("fisher", {"fisher": path}).model_dump(mode="json")["fisher"]
        written = {"method": "fisher", "fisher": alone, "base_fisher": alone, "alpha": 0.3}
        assert made.model_dump(mode="json")["steps"] == [written, given[0]]
        assert str(tmp_path) not in made.described()
