from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import deltamend
from deltamend.inputs.inspection import inspect_folder
from tests.conftest import Pair, Printed
from tests.inputs.architectures import build
from tests.reference import load

Cli = Callable[..., Printed]


def test_every_tensor_is_counted(llama_pair: Pair) -> None:
    found, tensors = inspect_folder(llama_pair.finetuned), load(llama_pair.finetuned)
    assert found.total.tensors == len(tensors)
    assert found.total.parameters == sum(tensor.numel() for tensor in tensors.values())
    assert found.total.nbytes == sum(tensor.nbytes for tensor in tensors.values())
    assert {entry.name: entry.shape for entry in found.tensors} == {
        name: tuple(tensor.shape) for name, tensor in tensors.items()
    }
    assert set(found.by("file")) == {file.name for file in llama_pair.finetuned.glob("*.safetensors")}
    assert {kind: total.tensors for kind, total in found.by("kind").items()} == {
        "embedding": 1, "head": 1, "attention": 8, "mlp": 6, "norm": 5,
    }  # fmt: skip
    assert (found.architecture, found.model_type, found.vocabulary) == ("LlamaForCausalLM", "llama", 200)
    assert (found.tied, found.refused, found.adapter_of) == (None, None, None)


def test_a_tied_head_is_said(float_pair: Pair, gpt2_pair: Pair) -> None:
    assert inspect_folder(float_pair.base).tied == "model.embed_tokens.weight"
    assert inspect_folder(gpt2_pair.base).tied == "transformer.wte.weight"


@pytest.mark.slow
def test_a_kind_follows_from_the_module_where_the_name_does_not_say(tmp_path: Path) -> None:
    build("gpt_oss").save_pretrained(tmp_path / "text")
    kinds = {entry.name: entry.kind for entry in inspect_folder(tmp_path / "text").tensors}
    layer = "model.layers.0"
    assert {
        name: kinds[f"{layer}.{name}"] for name in ("mlp.experts.gate_up_proj", "mlp.experts.gate_up_proj_bias")
    } == {
        "mlp.experts.gate_up_proj": "expert",
        "mlp.experts.gate_up_proj_bias": "bias",
    }
    assert kinds[f"{layer}.self_attn.q_proj.weight"] == "attention"
    assert kinds["model.embed_tokens.weight"] == "embedding"
    assert kinds["lm_head.weight"] == "head"


def test_the_size_of_the_vocabulary_may_stand_in_a_part_of_the_config(own_pair: Pair) -> None:
    path = own_pair.base / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({"architectures": ["SeeingModel"], "text_config": config}))
    assert inspect_folder(own_pair.base).vocabulary == 200


def test_quantised_weights_are_listed_with_the_reason(tmp_path: Path, deltamend_cli: Cli) -> None:
    (tmp_path / "config.json").write_text('{"quantization_config": {"quant_method": "gptq"}}')
    save_file({"a.qweight": torch.zeros(3, 4, dtype=torch.int32)}, tmp_path / "model.safetensors")
    printed = deltamend_cli("inspect", tmp_path)
    assert printed.code == 0
    assert "I32: 12 parameters in 1 tensors" in printed.out
    assert "would refuse this checkpoint" in printed.out
    assert "quantised" in printed.out


def test_an_adapter_is_listed_with_its_base(llama_pair: Pair, tmp_path: Path, deltamend_cli: Cli) -> None:
    deltamend.repair(llama_pair.base, llama_pair.finetuned, tmp_path / "out", output="adapter")
    printed = deltamend_cli("inspect", tmp_path / "out", "-v")
    assert printed.code == 0
    assert f"an adapter to {llama_pair.base}" in printed.out
    assert "lora_A" in printed.out


def test_json_is_json(llama_pair: Pair, deltamend_cli: Cli) -> None:
    content = json.loads(deltamend_cli("inspect", llama_pair.base, "--json").out)
    assert content["total"]["tensors"] == len(content["tensors"]) == 21


@pytest.mark.parametrize("folder", ["missing", "."])
def test_nothing_to_inspect_is_one_line(folder: str, tmp_path: Path, deltamend_cli: Cli) -> None:
    printed = deltamend_cli("inspect", tmp_path / folder)
    assert printed.code == 1
    assert len(printed.err.splitlines()) == 1
