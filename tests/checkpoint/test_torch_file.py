"""PyTorch .bin files are read like safetensors files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import (
    AutoModelForCausalLM,
)

import deltamend
from tests.conftest import llama, save_pair
from tests.reference import load
from tests.torch_mutations import TRAPS, lost


@pytest.mark.slow
def test_no_pickle_runs_code_and_damaged_files_are_refused_in_one_line() -> None:
    assert lost(0, TRAPS + 160) == {}


@pytest.mark.slow
@pytest.mark.parametrize("sides", ["base", "finetuned", "both"])
def test_pytorch_files_give_what_safetensors_give(sides: str, tmp_path: Path) -> None:
    pair = save_pair(llama(), tmp_path / "pair", finetuned_shards="120KB")
    deltamend.repair(pair.base, pair.finetuned, tmp_path / "expected")
    for folder in {"base": [pair.base], "finetuned": [pair.finetuned], "both": [pair.base, pair.finetuned]}[sides]:
        weight_map: dict[str, str] = {}
        for file in sorted(folder.glob("*.safetensors")):
            name = file.name.replace("model", "pytorch_model").replace(".safetensors", ".bin")
            torch.save(load_file(file), folder / name)
            weight_map |= dict.fromkeys(load_file(file), name)
            file.unlink()
        if (folder / "model.safetensors.index.json").exists():
            (folder / "model.safetensors.index.json").unlink()
            (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))
    deltamend.repair(pair.base, pair.finetuned, tmp_path / "out")
    ours, theirs = load(tmp_path / "out"), load(tmp_path / "expected")
    assert {file.name for file in (tmp_path / "out").glob("model*")} == {
        file.name for file in (tmp_path / "expected").glob("model*")
    }
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert deltamend.verify(tmp_path / "out") == []
    AutoModelForCausalLM.from_pretrained(tmp_path / "out")
