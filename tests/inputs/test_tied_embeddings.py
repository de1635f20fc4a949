"""Heads that are tied to the embedding, in one model or in both."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
)

import deltamend
from tests.conftest import fine_tune, gpt2, llama, save_pair
from tests.inputs.checkpoints import check
from tests.reference import load


def test_a_head_that_is_tied_in_the_base_is_compared_with_the_embedding(tmp_path: Path) -> None:
    model = llama(torch.float32, tied=True)
    model.save_pretrained(tmp_path / "base")
    untied = llama(torch.float32)
    untied.load_state_dict(model.state_dict())
    untied.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
    fine_tune(untied)
    untied.save_pretrained(tmp_path / "finetuned")
    report = deltamend.repair(tmp_path / "base", tmp_path / "finetuned", tmp_path / "out")
    base, finetuned, out = (load(tmp_path / name) for name in ("base", "finetuned", "out"))
    assert check(({**base, "lm_head.weight": base["model.embed_tokens.weight"]}, finetuned), out) == 16
    assert any("tied" in note for note in report.manifest.notes)


def test_a_tied_head_that_is_stored_again_is_written_once_and_tied_again(tmp_path: Path) -> None:
    pair = save_pair(llama(torch.float32, tied=True), tmp_path)
    deltamend.repair(pair.base, pair.finetuned, tmp_path / "expected")
    path = pair.finetuned / "model.safetensors"
    tensors = load_file(path)
    save_file({**tensors, "lm_head.weight": tensors["model.embed_tokens.weight"].clone()}, path, {"format": "pt"})
    report = deltamend.repair(pair.base, pair.finetuned, tmp_path / "out")
    assert load(tmp_path / "out").keys() == tensors.keys()
    assert any("written once" in note for note in report.manifest.notes)
    ours, theirs = (AutoModelForCausalLM.from_pretrained(tmp_path / name) for name in ("out", "expected"))
    assert ours.lm_head.weight.data_ptr() == ours.model.embed_tokens.weight.data_ptr()
    assert torch.equal(ours.lm_head.weight, theirs.lm_head.weight)
    assert deltamend.verify(tmp_path / "out") == []


def test_a_tie_that_config_json_leaves_open_is_kept(tmp_path: Path) -> None:
    pair = save_pair(gpt2(), tmp_path)
    for folder in (pair.base, pair.finetuned):
        config = json.loads((folder / "config.json").read_text())
        config.pop("tie_word_embeddings", None)
        (folder / "config.json").write_text(json.dumps(config))
    path = pair.finetuned / "model.safetensors"
    tensors = load_file(path)
    save_file({**tensors, "lm_head.weight": tensors["transformer.wte.weight"].clone()}, path, {"format": "pt"})
    deltamend.repair(pair.base, pair.finetuned, tmp_path / "out")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert loaded.lm_head.weight.data_ptr() == loaded.transformer.wte.weight.data_ptr()
