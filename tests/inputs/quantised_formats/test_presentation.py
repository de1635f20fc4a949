"""One contract for every quantised format: read to the bit, repaired on either side, damaged parts named, OUT in bf16."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

import deltamend
from deltamend.errors import CheckpointError
from deltamend.inputs.open_models import open_checkpoint
from deltamend.inputs.quantised_formats.rounding_floors import ROUNDING_FLOORS
from tests.conftest import Pair, llama, save_pair
from tests.inputs.adapters.building import adapted, merged, shown
from tests.inputs.checkpoints import Cli, check
from tests.inputs.quantised_formats.writers import FORMATS, write_quantised
from tests.reference import load

every_format = pytest.mark.parametrize("name", FORMATS)


@pytest.mark.slow
@every_format
def test_values_are_those_that_the_format_stands_for_and_any_part_can_be_read(name: str, tmp_path: Path) -> None:
    llama(torch.float32).save_pretrained(tmp_path / "model")
    stored = load_file(tmp_path / "model" / "model.safetensors")
    meant = write_quantised(tmp_path / "model", FORMATS[name])
    with open_checkpoint(tmp_path / "model") as checkpoint:
        assert {key: tensor.shape for key, tensor in checkpoint.tensors.items()} == {
            key: tuple(tensor.shape) for key, tensor in meant.items()
        }
        for key, tensor in checkpoint.tensors.items():
            values = checkpoint.values(tensor, 0, tensor.elements)
            assert np.array_equal(values, meant[key].numpy().reshape(-1)), key
            start, stop = tensor.elements // 3 + 1, tensor.elements - 7
            assert np.array_equal(checkpoint.values(tensor, start, stop), values[start:stop])
            if "proj" not in key:
                assert (checkpoint.squared_errors(tensor, start, stop), tensor.packing) == (None, None)
                continue
            assert tensor.packing == FORMATS[name].packing
            errors = checkpoint.squared_errors(tensor, 0, tensor.elements)
            assert errors is not None
            inside = checkpoint.squared_errors(tensor, start, stop)
            assert inside is not None
            assert np.array_equal(inside, errors[start:stop])
            # An even spread over the cells is an assumption; the rounding that was done is near it.
            done = float(torch.mean((stored[key].reshape(-1) - meant[key].reshape(-1)) ** 2))
            assert 0.5 < float(errors.mean()) / done < 2.0
        assert "quantization_config" not in checkpoint.config
        assert checkpoint.notes[0].startswith(f"model: 14 weights are stored in {FORMATS[name].packing}")


@pytest.mark.slow
@every_format
@pytest.mark.parametrize("sides", ["base", "finetuned", "both"])
def test_a_repair_takes_a_quantised_model_on_either_side(name: str, sides: str, tmp_path: Path) -> None:
    pair = save_pair(llama(torch.float32), tmp_path)
    base, finetuned = load(pair.base), load(pair.finetuned)
    if sides in ("base", "both"):
        base = write_quantised(pair.base, FORMATS[name])
    if sides in ("finetuned", "both"):
        finetuned = write_quantised(pair.finetuned, FORMATS[name])
    deltamend.repair(pair.base, pair.finetuned, tmp_path / "out", out_dtype="fp32")
    out = load(tmp_path / "out")
    assert out.keys() == finetuned.keys()
    assert check((base, finetuned), out) == 16
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert "quantization_config" not in config


@pytest.mark.slow
def test_a_quantised_finetuned_is_written_in_bf16_and_loads(tmp_path: Path, deltamend_cli: Cli) -> None:
    pair = save_pair(llama(torch.bfloat16), tmp_path)
    write_quantised(pair.finetuned, FORMATS["gptq"])
    printed = deltamend_cli("repair", pair.base, pair.finetuned, tmp_path / "out")
    assert printed.code == 0, printed.err
    assert "14 weights are stored in int4" in printed.out + printed.err
    out = load(tmp_path / "out")
    assert {tensor.dtype for tensor in out.values()} == {torch.bfloat16}
    model, found = AutoModelForCausalLM.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not found["missing_keys"]
    assert not found["unexpected_keys"]
    assert model.dtype == torch.bfloat16


def damaged(folder: Path, leaf: str, change: str) -> str:
    """Damage one part of one weight; its name."""
    path = folder / "model.safetensors"
    tensors = load_file(path)
    name = next(name for name in tensors if name.endswith(leaf))
    if change == "missing":
        del tensors[name]
    elif change == "short":
        tensors[name] = tensors[name].reshape(-1)[:-1].clone()
    else:
        tensors[name] = tensors[name].to(torch.int16)
    save_file(tensors, path, metadata={"format": "pt"})
    return name


PARTS = {
    "nf4": ["q_proj.weight", "q_proj.weight.absmax", "q_proj.weight.quant_map"],
    "llm-int8": ["q_proj.SCB"],
    "gptq": ["q_proj.qweight", "q_proj.qzeros", "q_proj.scales", "q_proj.g_idx"],
    "awq": ["q_proj.qweight", "q_proj.qzeros", "q_proj.scales"],
    "pack-quantized-asymmetric": [
        "q_proj.weight_packed", "q_proj.weight_scale", "q_proj.weight_shape", "q_proj.weight_zero_point",
    ],
    "int-quantized": ["q_proj.weight_scale", "q_proj.weight_zero_point"],
    "nvfp4": ["q_proj.weight_packed", "q_proj.weight_scale", "q_proj.weight_global_scale"],
    "mxfp4": ["q_proj.weight_packed", "q_proj.weight_scale"],
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("change", ["missing", "short", "dtype"])
@pytest.mark.parametrize(("name", "leaf"), [(name, leaf) for name, leaves in PARTS.items() for leaf in leaves])
def test_a_damaged_part_is_named_in_one_line(name: str, leaf: str, change: str, tmp_path: Path) -> None:
    if (change, leaf) in {("missing", "q_proj.g_idx"), ("missing", "q_proj.weight_zero_point")}:
        pytest.skip("the format may leave it out")
    llama(torch.float32).save_pretrained(tmp_path / "model")
    write_quantised(tmp_path / "model", FORMATS[name])
    damaged(tmp_path / "model", leaf, change)
    with pytest.raises(CheckpointError, match=r"q_proj") as caught:
        open_checkpoint(tmp_path / "model").close()
    text = str(caught.value)
    assert str(tmp_path / "model") in text
    assert "\n" not in text


def test_every_packing_has_a_rounding_floor() -> None:
    assert {form.packing for form in FORMATS.values()} <= ROUNDING_FLOORS.keys()
    assert all(0 < floor < 0.6 for floor in ROUNDING_FLOORS.values())


def test_a_config_that_says_quantised_over_plain_tensors_is_left_out_of_account(tmp_path: Path) -> None:
    pair = save_pair(llama(), tmp_path)
    config = json.loads((pair.base / "config.json").read_text())
    (pair.base / "config.json").write_text(
        json.dumps({**config, "quantization_config": {"quant_method": "bitsandbytes"}})
    )
    with open_checkpoint(pair.base) as checkpoint:
        assert "quantization_config" not in checkpoint.config
        assert "no tensor is quantised" in checkpoint.notes[0]


@pytest.mark.parametrize(
    "said", [{"format": "marlin-24"}, {"format": "pack-quantized", "sparsity_config": {"format": "sparse-24-bitmask"}}]
)
def test_sparse_formats_are_refused_by_their_name(said: dict[str, object], tmp_path: Path) -> None:
    llama().save_pretrained(tmp_path / "model")
    write_quantised(tmp_path / "model", FORMATS["pack-quantized"])
    path = tmp_path / "model" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "quantization_config": said}))
    with pytest.raises(CheckpointError, match=r"the sparse format '(marlin-24|sparse-24-bitmask)'"):
        open_checkpoint(tmp_path / "model").close()


def test_codes_of_an_unknown_method_are_refused_by_its_name(tmp_path: Path) -> None:
    llama().save_pretrained(tmp_path / "model")
    path = tmp_path / "model" / "model.safetensors"
    tensors = load_file(path)
    tensors["model.layers.0.self_attn.q_proj.codes"] = torch.zeros(8, 8, dtype=torch.int16)
    save_file(tensors, path, metadata={"format": "pt"})
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    (tmp_path / "model" / "config.json").write_text(
        json.dumps({**config, "quantization_config": {"quant_method": "aqlm"}})
    )
    with pytest.raises(CheckpointError, match=r"'aqlm'; tensor 'model.layers.0.self_attn.q_proj.codes'"):
        open_checkpoint(tmp_path / "model").close()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_an_adapter_on_a_packed_model_adds_to_the_dequantised_weights(tmp_path: Path) -> None:
    """QLoRA: what PEFT gives on the dequantised model, and a bf16 OUT whose update is the adapter's alone."""
    pair = adapted(tmp_path, llama(torch.float32), target_modules=["q_proj", "down_proj"])
    meant = write_quantised(pair.base, FORMATS["nf4"])
    plain = tmp_path / "plain"
    llama(torch.float32).save_pretrained(plain)
    save_file(meant, plain / "model.safetensors", metadata={"format": "pt"})
    theirs = merged(Pair(plain, pair.finetuned))
    ours = shown(f"{pair.base}+{pair.finetuned}")
    for name, values in ours.items():
        assert np.allclose(values, theirs[name].numpy(), rtol=1e-12, atol=1e-12), name
    deltamend.repair(pair.base, f"{pair.base}+{pair.finetuned}", tmp_path / "out", method="none")
    out = load(tmp_path / "out")
    assert out["model.layers.0.self_attn.q_proj.weight"].dtype == torch.bfloat16
    assert "quantization_config" not in json.loads((tmp_path / "out" / "config.json").read_text())
    found = deltamend.diagnose(
        pair.base, f"{pair.base}+{pair.finetuned}", include="layers.0.self_attn.q_proj"
    ).matrices[0]
    assert found.rounding is not None
    assert found.rounding.stored == "float64"
    assert found.rounding.floor < 1e-9  # the rounding of the base is no part of an adapter's update


@pytest.mark.slow
@pytest.mark.usefixtures("few_draws")
def test_the_diagnosis_counts_the_rounding_of_a_packed_base(tmp_path: Path) -> None:
    pair = save_pair(llama(torch.bfloat16), tmp_path)
    plain = deltamend.diagnose(pair.base, pair.finetuned, include="layers.0.mlp.up_proj").matrices[0]
    write_quantised(pair.base, FORMATS["nf4"])
    packed = deltamend.diagnose(pair.base, pair.finetuned, include="layers.0.mlp.up_proj").matrices[0]
    assert plain.rounding is not None
    assert packed.rounding is not None
    assert packed.rounding.stored == "bfloat16, and of BASE to nf4,"
    assert packed.rounding.floor > 5 * plain.rounding.floor
    assert packed.rounding.share is not None
    assert 0.5 < packed.rounding.share < 2.0  # the noise of the fine-tuning is a twentieth of this rounding
    assert packed.verdict == "rounding-dominated"
    assert "Rounding to bfloat16, and of BASE to nf4, would explain" in " ".join(packed.reasons)


def test_the_rounding_floor_of_a_method_is_that_of_the_format(tmp_path: Path) -> None:
    pair = save_pair(llama(torch.float32), tmp_path)
    write_quantised(pair.base, FORMATS["nf4"])
    report = deltamend.repair(pair.base, pair.finetuned, tmp_path / "out", parameters={"noise": "rounding-floor"})
    found = next(tensor for tensor in report.tensors if "up_proj" in tensor.name)
    assert found.spectrum is not None
    assert found.spectrum.noise is not None
    assert 1e-3 < found.spectrum.noise < 4e-3  # a tenth of weights of standard deviation 0.02
