"""Experts that one model stores in one tensor and the other by themselves."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    PreTrainedModel,
)

import deltamend
from tests.inputs.checkpoints import Cli, mixtral, qwen3_moe, tuned
from tests.inputs.numpy_pairs import body, normal, read, write
from tests.inputs.numpy_pairs import tuned as with_noise
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


GATED = {"gate": "gate_proj", "up": "up_proj", "down": "down_proj"}
NAMINGS: dict[str, tuple[str, str, dict[str, str]]] = {
    "qwen": ("mlp.experts", "mlp.experts", GATED),
    "mixtral": ("block_sparse_moe.experts", "mlp.experts", {"gate": "w1", "up": "w3", "down": "w2"}),
    "numbered layers": ("mlp.experts", "mlp.experts", {"gate": "fc1", "up": "fc3", "down": "fc2"}),
    "jamba": ("feed_forward.experts", "feed_forward.experts", GATED),
    "nemotron-h, without a gate": ("mixer.experts", "mixer.experts", {"up": "up_proj", "down": "down_proj"}),
}


@pytest.mark.parametrize("fused_side", ["base", "finetuned"])
@pytest.mark.parametrize("case", NAMINGS)
def test_stacks_and_single_experts_belong_together_whatever_they_are_called(
    case: str, fused_side: str, tmp_path: Path
) -> None:
    single, fused, parts = NAMINGS[case]
    random = np.random.default_rng(0)
    shared = body(random)
    experts = {part: normal(random, (3, 16, 32) if part == "down" else (3, 24, 32)) for part in parts}
    stacks = {"down_proj": experts["down"], "up_proj": experts["up"]}
    if "gate" in experts:
        stacks = {
            "down_proj": experts["down"],
            "gate_up_proj": np.concatenate([experts["gate"], experts["up"]], axis=1),
        }
    layouts = [
        {f"model.layers.0.{fused}.{name}": stack for name, stack in stacks.items()},
        {
            f"model.layers.0.{single}.{number}.{parts[part]}.weight": stack[number]
            for part, stack in experts.items()
            for number in range(3)
        },
    ]
    ours, theirs = layouts if fused_side == "base" else layouts[::-1]
    finetuned = with_noise(random, shared | theirs)
    write(tmp_path / "base", shared | ours)
    write(tmp_path / "finetuned", finetuned)
    deltamend.repair(tmp_path / "base", tmp_path / "finetuned", tmp_path / "out", method="revert")
    out = read(tmp_path / "out")
    assert out.keys() == finetuned.keys()
    for name, tensor in out.items():
        assert np.array_equal(tensor, (shared | theirs)[name] if tensor.ndim > 1 else finetuned[name]), name
