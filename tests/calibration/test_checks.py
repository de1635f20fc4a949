from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from deltamend.calibration.checks import check_file, refuse_not_finite
from deltamend.errors import CheckpointError, OutputError
from tests.calibration.conftest import Task


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A folder as the hub's cache has it: one file lies elsewhere."""
    (tmp_path / "model" / "more").mkdir(parents=True)
    (tmp_path / "blob").write_text("weights")
    (tmp_path / "model" / "model.safetensors").symlink_to(tmp_path / "blob")
    (tmp_path / "texts").write_text("texts")
    (tmp_path / "there").write_text("mine")
    (tmp_path / "to-texts").symlink_to(tmp_path / "texts")
    (tmp_path / "to-model").symlink_to(tmp_path / "model")
    return tmp_path / "model"


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("model/model.safetensors", "belongs to the model"),
        ("model/new", "belongs to the model"),
        ("model/more/new", "belongs to the model"),
        ("to-model/new", "belongs to the model"),
        ("blob", "belongs to the model"),
        ("texts", "is the file of texts"),
        ("to-texts", "is the file of texts"),
        ("gone/new", "its folder does not exist"),
        (".", "exists and is not a file"),
    ],
)
def test_a_file_that_would_harm_an_input_is_refused(model: Path, name: str, said: str) -> None:
    for overwrite in (False, True):
        with pytest.raises(OutputError, match=said):
            check_file(model.parent / name, [model], model.parent / "texts", overwrite=overwrite)


def test_a_file_that_is_there_is_replaced_only_where_that_is_asked_for(model: Path) -> None:
    check_file(model.parent / "new", [model], None, overwrite=False)
    check_file(model.parent / "there", [model], None, overwrite=True)
    with pytest.raises(OutputError, match="there: exists; give another name, or overwrite=True to replace it"):
        check_file(model.parent / "there", [model], None, overwrite=False)


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
        for out, said in ((weights, "belongs to the model"), (tmp_path / "there", "exists; give another name")):
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
