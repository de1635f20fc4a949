"""What each tensor is to its model: by the modules of transformers, and by names and shapes where those are not there."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch

import deltamend
from deltamend.inputs import model_layout
from deltamend.inputs.model_layout import Parameter, layout_by_names, layout_of, layout_of_module, matrix_view
from deltamend.inputs.open_models import open_checkpoint
from tests.inputs.architectures import CONVERTS, build

# What the two ways have to agree on: end of the name of a tensor, role, number of matrices, and its name in memory where that is another.
TENSORS: dict[str, list[tuple[str, str, int, str]]] = {
    "granite_moe_hybrid": [
        ("model.layers.0.block_sparse_moe.input_linear.weight", "stack", 3, "block_sparse_moe.experts.gate_up_proj"),
        ("model.layers.0.block_sparse_moe.router.layer.weight", "matrix", 1, "block_sparse_moe.router.weight"),
        ("model.layers.0.mamba.conv1d.weight", "depthwise", 1, ""),
        ("model.layers.0.mamba.A_log", "other", 1, ""),
    ],
    "jetmoe": [
        ("model.layers.0.mlp.input_linear.weight", "stack", 3, ""),
        ("model.layers.0.self_attention.experts.output_linear.weight", "stack", 3, ""),
        ("model.layers.0.mlp.bias", "bias", 1, ""),
    ],
    "gpt_oss": [
        ("model.layers.0.mlp.experts.gate_up_proj", "stack", 3, ""),
        ("model.layers.0.mlp.experts.gate_up_proj_bias", "bias", 1, ""),
        ("model.layers.0.mlp.router.weight", "matrix", 1, ""),
    ],
    "llama4": [("model.layers.0.feed_forward.experts.down_proj", "stack", 3, "")],
    "deepseek_v3": [
        ("model.layers.1.mlp.gate.e_score_correction_bias", "bias", 1, ""),
        ("model.layers.1.mlp.experts.0.down_proj.weight", "matrix", 1, "mlp.experts.down_proj"),
    ],
    "recurrent_gemma": [
        ("model.layers.0.temporal_block.rg_lru.input_gate_weight", "stack", 4, ""),
        ("model.layers.0.temporal_block.rg_lru.input_gate_bias", "bias", 1, ""),
        ("model.layers.0.temporal_block.conv_1d.weight", "depthwise", 1, ""),
    ],
    "mamba": [
        ("backbone.layers.0.mixer.A_log", "other", 1, ""),
        ("backbone.layers.0.mixer.conv1d.weight", "depthwise", 1, ""),
        ("backbone.layers.0.mixer.x_proj.weight", "matrix", 1, ""),
    ],
    "zamba": [
        ("model.layers.0.mamba.A_log", "other", 1, ""),
        ("model.layers.0.mamba.x_proj_weight", "stack", 2, ""),
        ("model.layers.0.mamba.dt_proj_bias", "bias", 1, ""),
    ],
    "gemma3": [
        ("head.probe", "other", 1, "model.vision_tower."),
        ("embeddings.patch_embedding.weight", "convolution", 1, "model.vision_tower."),
        ("layers.1.mlp.up_proj.weight", "matrix", 1, "model.language_model.layers.1.mlp.up_proj"),
    ],
}


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DELTAMEND_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def shapes_of(folder: Path) -> tuple[dict[str, Any], dict[str, tuple[int, ...]]]:
    with open_checkpoint(folder) as checkpoint:
        return dict(checkpoint.config), {name: tensor.shape for name, tensor in checkpoint.tensors.items()}


@pytest.mark.slow
@pytest.mark.parametrize("name", TENSORS)
def test_the_modules_of_the_model_decide_and_the_rules_for_names_say_the_same(
    name: str, tmp_path: Path, cache: Path
) -> None:
    model = build(name)
    model.save_pretrained(tmp_path / "model")
    config, shapes = shapes_of(tmp_path / "model")
    found, plain = layout_of(config, shapes, names_in_memory=True), layout_by_names(shapes)
    assert found.keys() == plain.keys() == shapes.keys()
    assert all(parameter.owner for parameter in found.values())
    assert {parameter.module_name for parameter in found.values()} <= model.state_dict().keys()
    assert cache.exists()
    for end, role, count, shown in TENSORS[name]:
        (tensor,) = [stored for stored in shapes if stored.endswith(end)]
        for layout in (found, plain):
            assert (layout[tensor].role, layout[tensor].count) == (role, count), (tensor, layout[tensor])
        if CONVERTS or name == "gemma3":
            assert shown in found[tensor].module_name
            assert shown or found[tensor].module_name == tensor


def test_experts_that_lie_below_each_other_in_two_dimensions_are_known_by_their_module() -> None:
    layout = layout_of_module(build("dbrx"))
    counts = {name.rpartition(".")[2]: found.count for name, found in layout.items() if ".ffn." in name}
    assert counts == {"weight": 1, "w1": 3, "v1": 3, "w2": 3}


@pytest.mark.parametrize("name", ["gpt_oss", "llama4"])
def test_experts_stored_as_inputs_by_outputs_are_known(name: str) -> None:
    layout = layout_of_module(build(name))
    turned = {tensor.rpartition(".")[2]: parameter.transposed for tensor, parameter in layout.items()}
    assert turned["down_proj"]
    assert turned["gate_up_proj"]
    assert not turned["weight"]


def test_transformers_is_not_asked_about_a_plain_model(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model_layout, "_ask_transformers", lambda *_: pytest.fail("transformers was asked"))
    for name in ("llama", "qwen3_moe", "mamba", "gpt_oss"):
        build(name).save_pretrained(tmp_path / name)
        config, shapes = shapes_of(tmp_path / name)
        assert layout_of(config, shapes) == layout_by_names(shapes)
    assert not cache.exists()


def test_the_answer_is_kept_for_the_next_run(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build("jetmoe").save_pretrained(tmp_path / "model")
    config, shapes = shapes_of(tmp_path / "model")
    first = layout_of(config, shapes)
    with monkeypatch.context() as patch:
        patch.setattr(model_layout, "_ask_transformers", lambda *_: pytest.fail("transformers was asked"))
        assert layout_of(config, shapes) == first
    (file,) = (cache / "layouts").iterdir()
    file.write_text('{"a": 1}')  # damaged: made again
    assert layout_of(config, shapes) == first


def test_a_config_that_transformers_cannot_build_leaves_it_to_the_names(cache: Path) -> None:  # noqa: ARG001 - kept apart
    shapes = {"layers.0.moe.linear": (4, 6, 8), "layers.0.A_log": (4, 8)}
    for config in (
        {"model_type": "no-such-model"},
        {"model_type": "llama", "num_hidden_layers": 10**9},
        {"model_type": "llama", "hidden_size": "many"},
    ):
        assert layout_of(config, shapes) == layout_by_names(shapes)
    assert layout_by_names(shapes)["layers.0.moe.linear"] == Parameter("stack", "layers.0.moe.linear", count=4)


def test_a_grouped_convolution_holds_a_matrix_for_each_group() -> None:
    class Layers(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.grouped = torch.nn.Conv1d(12, 8, 3, groups=4)
            self.single = torch.nn.Conv1d(12, 12, 3, groups=12)
            self.mono = torch.nn.Conv1d(1, 8, 5)

    layers = Layers()
    layout = layout_of_module(layers)
    shapes = {name: tuple(tensor.shape) for name, tensor in layers.state_dict().items()}
    views = {name: matrix_view(parameter, shapes[name]) for name, parameter in layout.items() if "weight" in name}
    assert views == {"grouped.weight": (8, 9), "single.weight": None, "mono.weight": (8, 5)}
    assert layout["grouped.weight"].count == 4


@pytest.mark.skipif(not CONVERTS, reason="transformers 4 does not read the config of the tiny DBRX that it writes")
def test_a_plan_knows_how_each_tensor_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DELTAMEND_CACHE", str(tmp_path / "cache"))
    model = build("dbrx")
    for side in ("base", "finetuned"):
        model.save_pretrained(tmp_path / side)
    known = deltamend.plan_repair(tmp_path / "base", tmp_path / "finetuned", tmp_path / "out", method="revert")
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)  # transformers was uninstalled meanwhile
    unknown = deltamend.plan_repair(tmp_path / "base", tmp_path / "finetuned", tmp_path / "out", method="revert")
    with known, unknown:
        assert known.sha256 != unknown.sha256  # so that a run by the one is not resumed by the other
