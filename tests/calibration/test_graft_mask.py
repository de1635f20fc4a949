from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

import deltamend
from deltamend.calibration.graft_mask import write_graft_mask
from deltamend.cli.commands import command_line
from deltamend.errors import FilterError
from tests.calibration.conftest import Task


@pytest.mark.slow
def test_the_mask_lowers_the_loss_and_has_the_size_that_was_asked_for(task: Task, tmp_path: Path) -> None:
    before, after = write_graft_mask(task.base, task.finetuned, task.texts, tmp_path / "mask", density=0.1)
    assert after < 0.7 * before
    masks = load_file(tmp_path / "mask")
    entries = sum(mask.numel() for mask in masks.values())
    assert sum(int(mask.sum()) for mask in masks.values()) == pytest.approx(0.1 * entries, rel=0.01)


def test_a_mask_that_learnt_nothing_is_graft_without_one(task: Task, tmp_path: Path) -> None:
    before, after = write_graft_mask(
        task.base, task.finetuned, task.texts, tmp_path / "mask", density=0.1, steps=1, rate=0
    )
    assert after == before
    given: dict[str, dict[str, object]] = {"mask": {"mask": str(tmp_path / "mask")}, "magnitude": {"density": 0.1}}
    for name, parameters in given.items():
        deltamend.repair(task.base, task.finetuned, tmp_path / f"with-{name}", method="graft", parameters=parameters)
    ours, theirs = (load_file(tmp_path / f"with-{name}" / "model.safetensors") for name in given)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.mark.slow
def test_the_repair_is_the_base_outside_the_mask_and_fine_tuned_inside(task: Task, tmp_path: Path) -> None:
    arguments = [str(task.base), str(task.finetuned), str(task.texts), str(tmp_path / "mask"), "--density", "0.05"]
    ran = CliRunner().invoke(command_line(), ["calibrate", "graft", *arguments, "--steps", "5"])
    assert ran.exit_code == 0, ran.output
    assert "with the learnt mask" in ran.output
    deltamend.repair(
        task.base, task.finetuned, tmp_path / "out", method="graft", parameters={"mask": str(tmp_path / "mask")}
    )
    base, tuned, out, mask = (
        load_file(path)
        for path in (
            task.base / "model.safetensors",
            task.finetuned / "model.safetensors",
            tmp_path / "out" / "model.safetensors",
            tmp_path / "mask",
        )
    )
    for name, chosen in mask.items():
        torch.testing.assert_close(out[name], torch.where(chosen.bool(), tuned[name], base[name]))


def test_a_mask_of_another_model_is_refused(task: Task, tmp_path: Path) -> None:
    write_graft_mask(task.base, task.finetuned, task.texts, tmp_path / "mask", density=0.1, steps=1)
    masks = load_file(tmp_path / "mask")
    masks.pop("lm_head.weight")
    save_file(masks, tmp_path / "mask")
    with pytest.raises(FilterError, match="no tensor of this name"):
        deltamend.repair(
            task.base, task.finetuned, tmp_path / "out", method="graft", parameters={"mask": str(tmp_path / "mask")}
        )
    assert not (tmp_path / "out").exists()
