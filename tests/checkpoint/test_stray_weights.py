"""Which weight files beside a model belong to it, and which hold it once more."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import deltamend
from deltamend.checkpoint.sidecars import list_sidecars
from deltamend.checkpoint.stray_weights import modules_of
from deltamend.errors import CheckpointError
from tests.conftest import Pair

BELONGS = (
    "spk_dict.pt",
    "2_Dense/model.safetensors",
    "3_Dense/pytorch_model.bin",
    "mel_filters.npz",
    "mm_projector.safetensors",
    "voices/af.pt",
    "campplus.onnx",
    "adapter_model.safetensors",
)
HOLDS_THE_MODEL_AGAIN = (
    "pytorch_model.bin",
    "tf_model.h5.index.json",
    "model-00001-of-00002.safetensors",
    "model.fp16.safetensors",
    "backup.safetensors",
    "consolidated.00.pth",
    "original/consolidated.pth",
    "original/params.bin",
    "onnx/decoder.onnx",
    "decoder_model_merged.onnx",
    "tf_model.h5",
    "model-q4.gguf",
    "epoch_1/model.safetensors",
)
TRAINING = ("optimizer.pt", "rng_state_0.pth", "training_args.bin", "global_step9/mp_rank_00_model_states.pt")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model of two tensors with every file of the lists above beside it."""
    for name in (*BELONGS, *HOLDS_THE_MODEL_AGAIN, *TRAINING):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        if path.suffix == ".safetensors":
            save_file({"w" if name == "backup.safetensors" else "other": torch.ones(2)}, path)
        else:
            path.write_bytes(b"x")
    modules = [{"path": ""}, {"path": "2_Dense"}, {"path": "3_Dense"}, {"path": "../outside"}, {"path": "."}, 7]
    (tmp_path / "modules.json").write_text(json.dumps(modules))
    return tmp_path


def test_only_what_holds_the_model_once_more_or_training_state_is_left_out(folder: Path) -> None:
    copied, left_out = list_sidecars(folder, frozenset(), {"w"})
    assert {file.name for file in copied} == {*BELONGS, "modules.json"}
    reasons = {file.name: file.reason for file in left_out}
    assert set(reasons) == {*HOLDS_THE_MODEL_AGAIN, *TRAINING}
    assert {reasons[name] for name in TRAINING} == {"state of the training run"}
    assert reasons["original/params.bin"] == reasons["onnx/decoder.onnx"] == "the model in another format, not repaired"
    assert reasons["backup.safetensors"] == "weights of the model in a file that its index does not name"


def test_a_list_of_modules_that_is_none_is_named(tmp_path: Path) -> None:
    assert modules_of(tmp_path) == frozenset()
    (tmp_path / "modules.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"modules.json: not a JSON list"):
        modules_of(tmp_path)


def test_modules_are_in_out_and_verify_covers_them(own_pair: Pair, tmp_path: Path) -> None:
    dense = own_pair.finetuned / "2_Dense"
    dense.mkdir()
    save_file({"linear.weight": torch.ones(4, 4)}, dense / "model.safetensors")
    (own_pair.finetuned / "modules.json").write_text(json.dumps([{"path": ""}, {"path": "2_Dense"}]))
    torch.save({"Chelsie": 1}, own_pair.finetuned / "spk_dict.pt")
    deltamend.repair(own_pair.base, own_pair.finetuned, tmp_path / "out", method="wise-ft")
    assert torch.equal(load_file(tmp_path / "out/2_Dense/model.safetensors")["linear.weight"], torch.ones(4, 4))
    assert deltamend.verify(tmp_path / "out") == []
    (tmp_path / "out/spk_dict.pt").write_bytes(b"changed")
    assert any("spk_dict.pt: changed" in fault for fault in deltamend.verify(tmp_path / "out"))
