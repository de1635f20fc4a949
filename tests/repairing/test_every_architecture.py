"""One contract for every architecture: what a repair writes, and that transformers and peft load it as it was meant."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file

import deltamend
from deltamend.inputs.model_layout import Parameters, layout_of, matrix_view
from deltamend.inputs.open_models import open_checkpoint
from tests.inputs.architectures import MULTIMODAL, TEXT, build
from tests.reference import load

RANK = 3
TOKENS = torch.arange(3, 13)[None]
STACKED = {"granite_moe_hybrid", "jetmoe", "gpt_oss", "llama4", "recurrent_gemma", "zamba"}
"""Their files hold several matrices in one tensor, each with factors of its own, which an adapter cannot hold."""
MERGED = {"qwen3_moe", "deepseek_v3", "mixtral"}
"""Their experts are stacked on loading, so that they are no modules of the loaded model."""


@pytest.fixture(scope="module", params=[*TEXT, *MULTIMODAL])
def sides(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """The name of an architecture, and a folder with a base and a fine-tuned checkpoint of it, in fp32."""
    folder = tmp_path_factory.mktemp(request.param)
    model = build(request.param)
    with torch.no_grad():  # nothing is left at 0 or 1, where an error could hide
        for parameter in model.parameters():
            parameter += 0.02 * torch.randn_like(parameter)
    model.save_pretrained(folder / "base")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.02 * torch.randn_like(parameter)
        for name, buffer in model.named_buffers():
            if name in model.state_dict():
                buffer += 0.02
    model.save_pretrained(folder / "finetuned")
    return request.param, folder


def loaded(folder: Path, name: str) -> Any:
    """The model in a folder; every tensor of the file has a place in it, and the other way round."""
    kind = type(build(name))
    model, found = kind.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    assert not found["missing_keys"]
    assert not found["unexpected_keys"]
    assert not found["mismatched_keys"]
    return model.eval()


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(input_ids=TOKENS).logits
    return found


def test_revert_gives_base_and_none_gives_finetuned(sides: tuple[str, Path], tmp_path: Path) -> None:
    _, folder = sides
    base, finetuned = folder / "base", folder / "finetuned"
    deltamend.repair(base, finetuned, tmp_path / "base", method="revert", vectors="base")
    deltamend.repair(base, finetuned, tmp_path / "finetuned", method="none")
    for side in ("base", "finetuned"):
        assert (tmp_path / side / "model.safetensors").read_bytes() == (
            folder / side / "model.safetensors"
        ).read_bytes()


def test_every_matrix_is_cut_to_its_rank_and_nothing_else_is_touched(sides: tuple[str, Path], tmp_path: Path) -> None:
    name, folder = sides
    report = deltamend.repair(
        folder / "base", folder / "finetuned", tmp_path / "out", method="rank", parameters={"rank": RANK}
    )
    base, finetuned, out = load(folder / "base"), load(folder / "finetuned"), load(tmp_path / "out")
    layout = layout_of_folder(folder / "finetuned")
    assert out.keys() == finetuned.keys()
    for tensor, action in {record.name: record.action for record in report.tensors}.items():
        parameter = layout[tensor]
        view = matrix_view(parameter, finetuned[tensor].shape)
        assert (view is not None) == (action == "filter"), tensor
        if view is None:
            assert torch.equal(out[tensor], finetuned[tensor]), tensor
            continue
        shape = (parameter.count, view[0] // parameter.count, view[1])
        delta = (finetuned[tensor].double() - base[tensor].double()).reshape(shape)
        u, s, v = torch.linalg.svd(delta, full_matrices=False)
        kept = (u[..., :RANK] * s[..., None, :RANK]) @ v[..., :RANK, :]
        expected = base[tensor].double() + kept.reshape(base[tensor].shape)
        torch.testing.assert_close(out[tensor].double(), expected, rtol=1e-5, atol=2e-6, msg=tensor)
    loaded(tmp_path / "out", name)


def layout_of_folder(folder: Path) -> Parameters:
    with open_checkpoint(folder) as checkpoint:
        shapes = {name: tensor.shape for name, tensor in checkpoint.tensors.items()}
        return layout_of(checkpoint.config, shapes)


def test_as_an_adapter_it_gives_the_logits_of_the_checkpoint(sides: tuple[str, Path], tmp_path: Path) -> None:
    name, folder = sides
    both = folder / "base", folder / "finetuned"
    options: dict[str, Any] = {"method": "rank", "parameters": {"rank": RANK}, "vectors": "base"}
    if name in STACKED | MERGED:
        with pytest.raises(deltamend.UsageError, match="repaired in parts" if name in STACKED else "has another name"):
            deltamend.repair(*both, tmp_path / "adapter", output="adapter", **options)
        return
    deltamend.repair(*both, tmp_path / "checkpoint", **options)
    deltamend.repair(*both, tmp_path / "adapter", output="adapter", **options)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        adapted = PeftModel.from_pretrained(loaded(folder / "base", name), str(tmp_path / "adapter")).eval()
    held = {key.replace(".default", "").replace(".modules_to_save", "") for key in adapted.state_dict()}
    assert set(load_file(tmp_path / "adapter" / "adapter_model.safetensors")) <= held
    expected, before = logits(loaded(tmp_path / "checkpoint", name)), logits(loaded(folder / "base", name))
    assert float((logits(adapted) - expected).norm()) < 1e-3 * float((expected - before).norm())
