from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from deltamend.calibration.checks import refuse_not_finite
from deltamend.errors import CheckpointError
from tests.calibration.conftest import Task


@pytest.mark.slow
def test_no_command_writes_over_the_model_or_what_is_there(
    task: Task, tmp_path: Path, deltamend_cli: Callable[..., Any]
) -> None:
    (tmp_path / "there").write_text("mine")
    commands = {
        "activations": [task.base],
        "fisher": [task.base, task.texts],
        "graft": [task.base, task.finetuned, task.texts],
    }
    weights = task.base / "model.safetensors"
    before = weights.read_bytes()
    for name, inputs in commands.items():
        for out, said in ((weights, "is or belongs to the input"), (tmp_path / "there", "exists; give another name")):
            printed = deltamend_cli("calibrate", name, *inputs, out, "-q")
            assert (printed.code, printed.err.count("\n")) == (1, 1)
            assert f"{out}: {said}" in printed.err
    assert weights.read_bytes() == before
    assert (tmp_path / "there").read_text() == "mine"
    printed = deltamend_cli("calibrate", "fisher", task.base, task.texts, tmp_path / "there", "--overwrite", "-q")
    assert (printed.code, printed.err) == (0, "")
    assert (tmp_path / "there").read_bytes() != b"mine"


def test_the_first_tensor_that_is_not_finite_is_named() -> None:
    refuse_not_finite([("a", torch.zeros(2))], "m: the weights of")
    with pytest.raises(CheckpointError, match=r"^m: the weights of 'b' hold NaN or Inf; give an undamaged checkpoint$"):
        refuse_not_finite([("a", torch.zeros(2)), ("b", torch.tensor([0.0, torch.inf]))], "m: the weights of")
