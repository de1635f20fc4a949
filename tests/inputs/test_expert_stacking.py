"""Experts that one model stores in one tensor and the other by themselves."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    PreTrainedModel,
)

import deltamend
from tests.inputs.checkpoints import Cli, mixtral, qwen3_moe, tuned
from tests.reference import load


@pytest.mark.slow
@pytest.mark.parametrize("make", [mixtral, qwen3_moe], ids=lambda make: make.__name__)
@pytest.mark.parametrize("fused_side", ["base", "finetuned"])
def test_experts_that_are_fused_on_one_side_only(
    make: Callable[[], PreTrainedModel], fused_side: str, tmp_path: Path
) -> None:
    model = make()
    model.save_pretrained(tmp_path / "base", save_original_format=fused_side != "base")
    model.save_pretrained(tmp_path / "base-like", save_original_format=fused_side != "finetuned")
    tuned(model).save_pretrained(tmp_path / "finetuned", save_original_format=fused_side != "finetuned")
    report = deltamend.repair(tmp_path / "base", tmp_path / "finetuned", tmp_path / "out")
    alike = deltamend.repair(tmp_path / "base-like", tmp_path / "finetuned", tmp_path / "out-alike")
    ours, theirs = load(tmp_path / "out"), load(tmp_path / "out-alike")
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert report.manifest.only_in_base == alike.manifest.only_in_base == ()
    assert any("one model stores all experts of a layer in one tensor" in note for note in report.manifest.notes)


def test_experts_in_another_orientation_are_refused(tmp_path: Path, deltamend_cli: Cli) -> None:
    model = mixtral()
    model.save_pretrained(tmp_path / "base")
    tuned(model).save_pretrained(tmp_path / "finetuned", save_original_format=False)
    path = tmp_path / "finetuned" / "model.safetensors"
    tensors = {name: t.transpose(1, 2).contiguous() if t.ndim == 3 else t for name, t in load_file(path).items()}
    save_file(tensors, path, metadata={"format": "pt"})
    printed = deltamend_cli("repair", tmp_path / "base", tmp_path / "finetuned", tmp_path / "out")
    assert printed.code == 1
    assert "BASE stacks its experts in another order or orientation" in printed.err
    assert printed.err.count("\n") == 1
