"""Checkpoints as people have them: each is repaired, loaded, and compared with a float64 SVD of what it means."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    PreTrainedModel,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

import deltamend
from tests.conftest import Printed, fine_tune, gpt2, llama, save_pair
from tests.reference import dg_hard, load

SMALL: dict[str, Any] = {
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 100,
}
Cli = Callable[..., Printed]


def qwen3() -> PreTrainedModel:
    torch.manual_seed(0)
    return Qwen3ForCausalLM(Qwen3Config(**SMALL, head_dim=12, tie_word_embeddings=True))


def gemma() -> PreTrainedModel:
    torch.manual_seed(0)
    return Gemma2ForCausalLM(Gemma2Config(**SMALL, head_dim=12, tie_word_embeddings=True))


def mixtral() -> PreTrainedModel:
    torch.manual_seed(0)
    return MixtralForCausalLM(MixtralConfig(**SMALL, num_local_experts=3))


def qwen3_moe() -> PreTrainedModel:
    torch.manual_seed(0)
    return Qwen3MoeForCausalLM(
        Qwen3MoeConfig(**SMALL, head_dim=12, num_experts=3, moe_intermediate_size=40, num_experts_per_tok=2)
    )


def neox() -> PreTrainedModel:
    torch.manual_seed(0)
    return GPTNeoXForCausalLM(
        GPTNeoXConfig(hidden_size=48, intermediate_size=80, num_hidden_layers=1, num_attention_heads=4, vocab_size=100)
    )


def phi3() -> PreTrainedModel:
    torch.manual_seed(0)
    return Phi3ForCausalLM(Phi3Config(**SMALL, pad_token_id=0, eos_token_id=1, bos_token_id=2))


def tuned(model: PreTrainedModel) -> PreTrainedModel:
    """The model fine-tuned, experts included."""
    fine_tune(model)
    with torch.no_grad():
        for number, parameter in enumerate(model.parameters()):
            if parameter.ndim == 3:
                generator = torch.Generator().manual_seed(number)
                left = torch.randn(*parameter.shape[:2], 2, generator=generator)
                parameter += 5e-2 * left @ torch.randn(parameter.shape[0], 2, parameter.shape[2], generator=generator)
    return model


def check(pair_tensors: tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]], out: dict[str, torch.Tensor]) -> int:
    """Compare every matrix of OUT, given as two-dimensional tensors by name, with the float64 filter; how many there were."""
    base, finetuned = pair_tensors
    matrices = 0
    for name, tensor in out.items():
        before, after = base[name].double().numpy(), tensor.double().numpy()
        if tensor.ndim != 2:
            assert torch.equal(tensor, finetuned[name])
            continue
        expected, _ = dg_hard(finetuned[name].double().numpy() - before)
        rounding = 2**-23 * np.linalg.norm(before + expected)
        assert np.linalg.norm(after - before - expected) < 1e-5 * np.linalg.norm(expected) + rounding, name
        matrices += 1
    return matrices


def by_expert(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Fused experts as one matrix each, gate and up apart, under the names of single ones."""
    found = {}
    for name, tensor in tensors.items():
        if tensor.ndim != 3:
            found[name.replace("block_sparse_moe", "mlp")] = tensor
            continue
        for number, expert in enumerate(tensor):
            found[f"{name}[{number}]"] = expert
    return found


@pytest.mark.parametrize("make", [qwen3, gemma, mixtral, qwen3_moe, gpt2, neox, phi3], ids=lambda make: make.__name__)
def test_a_family_is_repaired_and_loads(make: Callable[[], PreTrainedModel], tmp_path: Path) -> None:
    model = make()
    model.save_pretrained(tmp_path / "base")
    tuned(model).save_pretrained(tmp_path / "finetuned")
    deltamend.repair(tmp_path / "base", tmp_path / "finetuned", tmp_path / "out")
    out = load(tmp_path / "out")
    assert check((load(tmp_path / "base"), load(tmp_path / "finetuned")), out) >= 5
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert torch.isfinite(loaded(torch.tensor([[1, 2, 3]])).logits).all()
    assert list(out) == list(load(tmp_path / "finetuned"))


@pytest.mark.parametrize("make", [mixtral, qwen3_moe], ids=lambda make: make.__name__)
def test_fused_experts_are_a_matrix_each(make: Callable[[], PreTrainedModel], tmp_path: Path) -> None:
    model = make()
    model.save_pretrained(tmp_path / "base", save_original_format=False)
    tuned(model).save_pretrained(tmp_path / "finetuned", save_original_format=False)
    report = deltamend.repair(tmp_path / "base", tmp_path / "finetuned", tmp_path / "out")
    base, finetuned, out = (by_expert(load(tmp_path / name)) for name in ("base", "finetuned", "out"))
    assert check((base, finetuned), out) > 6
    (fused,) = [tensor for tensor in report.tensors if tensor.name.endswith("experts.gate_up_proj")]
    assert [part.label for part in fused.parts] == ["[0]", "[1]", "[2]"]
    assert all(part.spectrum is not None and part.spectrum.rank == 2 for part in fused.parts)
    assert fused.reason == "3 matrices in one tensor; 3 filtered"
    AutoModelForCausalLM.from_pretrained(tmp_path / "out")


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
    assert any("experts are stacked in one model" in note for note in report.manifest.notes)


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


def qkv_rows(make: Callable[[], PreTrainedModel]) -> Callable[[torch.Tensor], dict[str, torch.Tensor]]:
    """How a family's fused weight is cut, written down by hand."""
    if make is neox:
        return lambda w: {part: w.reshape(4, 3, 12, 48)[:, number].reshape(48, 48) for number, part in enumerate("qkv")}
    if make is phi3:
        return lambda w: dict(zip("qkv", torch.split(w, [48, 24, 24]), strict=True))
    return lambda w: dict(zip("qkv", torch.split(w, 48, dim=1), strict=True))


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (neox, "gpt_neox.layers.0.attention.query_key_value.weight"),
        (phi3, "model.layers.0.self_attn.qkv_proj.weight"),
        (gpt2, "transformer.h.0.attn.c_attn.weight"),
    ],
    ids=["neox", "phi3", "gpt2"],
)
def test_fused_attention_is_cut_on_request(make: Callable[[], PreTrainedModel], name: str, tmp_path: Path) -> None:
    pair = save_pair(make(), tmp_path)
    whole = deltamend.repair(pair.base, pair.finetuned, tmp_path / "whole")
    assert all(not tensor.parts for tensor in whole.tensors)
    cut = deltamend.repair(pair.base, pair.finetuned, tmp_path / "cut", split_fused=True)
    (record,) = [tensor for tensor in cut.tensors if tensor.name == name]
    assert [part.label for part in record.parts] == ["[q]", "[k]", "[v]"]
    split = qkv_rows(make)
    sides = [split(load(folder)[name]) for folder in (pair.base, pair.finetuned, tmp_path / "cut")]
    assert check((sides[0], sides[1]), sides[2]) == 3


def test_fused_gate_and_up_are_cut_on_request_experts_too(tmp_path: Path) -> None:
    for make, name, parts in (
        (phi3, "model.layers.0.mlp.gate_up_proj.weight", ["[gate]", "[up]"]),
        (mixtral, "model.layers.0.mlp.experts.gate_up_proj", [f"[{e}][{p}]" for e in range(3) for p in ("gate", "up")]),
    ):
        folder = tmp_path / make.__name__
        model = make()
        model.save_pretrained(folder / "base", save_original_format=False)
        tuned(model).save_pretrained(folder / "finetuned", save_original_format=False)
        report = deltamend.repair(folder / "base", folder / "finetuned", folder / "out", split_fused=True)
        (record,) = [tensor for tensor in report.tensors if tensor.name == name]
        assert [part.label for part in record.parts] == parts
        sides = [
            {f"{number}{half}": rows for number, expert in enumerate(w.reshape(-1, 160, 48)) for half, rows in
             enumerate(expert.split(80))}
            for w in (load(folder / side)[name] for side in ("base", "finetuned", "out"))
        ]  # fmt: skip
        assert check((sides[0], sides[1]), sides[2]) == len(parts)


def renamed(folder: Path, change: Callable[[str], str]) -> None:
    path = folder / "model.safetensors"
    save_file({change(name): tensor for name, tensor in load_file(path).items()}, path, metadata={"format": "pt"})


def test_names_that_differ_by_a_prefix_are_matched_by_a_rule_that_is_printed(
    tmp_path: Path, deltamend_cli: Cli
) -> None:
    pair = save_pair(llama(torch.float32), tmp_path)
    deltamend.repair(pair.base, pair.finetuned, tmp_path / "expected")
    renamed(pair.base, lambda name: f"language_model.{name}")
    printed = deltamend_cli("repair", pair.base, pair.finetuned, tmp_path / "out")
    assert printed.code == 0, printed.err
    assert "BASE's 'language_model.' is FINETUNED's '': 16 of 16 matrices have a partner so" in printed.out
    ours, theirs = load(tmp_path / "out"), load(tmp_path / "expected")
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    renamed(pair.base, lambda name: name.replace("language_model.", "odd."))
    printed = deltamend_cli("repair", pair.base, pair.finetuned, tmp_path / "no")
    assert (printed.code, "no matrix has the same name" in printed.err) == (1, True)
    printed = deltamend_cli("repair", pair.base, pair.finetuned, tmp_path / "told", "--rename", "odd.=")
    assert printed.code == 0, printed.err
    told = load(tmp_path / "told")
    assert all(torch.equal(told[name], theirs[name]) for name in theirs)
    for wrong in ("odd.", "x=y"):
        assert deltamend_cli("repair", pair.base, pair.finetuned, tmp_path / "w", "--rename", wrong).code == 2


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


def tokenizer(folder: Path, tokens: list[str]) -> None:
    """The part of a tokenizer.json that numbers tokens."""
    half = len(tokens) // 2
    content = {
        "model": {"vocab": {token: row for row, token in enumerate(tokens[:half])}},
        "added_tokens": [{"content": token, "id": row} for row, token in enumerate(tokens) if row >= half],
    }
    (folder / "tokenizer.json").write_text(json.dumps(content))


@pytest.mark.parametrize("same", [True, False])
def test_a_vocabulary_that_grew_is_matched_by_number_or_by_token(same: bool, tmp_path: Path) -> None:
    pair = save_pair(llama(torch.float32), tmp_path / "pair")
    model = AutoModelForCausalLM.from_pretrained(pair.finetuned)
    generator = torch.Generator().manual_seed(3)
    order = torch.arange(200) if same else torch.randperm(200, generator=generator)
    new = [17, 90, 205]  # rows of the grown vocabulary without a partner, where tokens decide
    rows = [row for row in range(206) if row not in new] if not same else list(range(200))
    model.resize_token_embeddings(206 if not same else 203, mean_resizing=False)
    with torch.no_grad():
        for weight in (model.model.embed_tokens.weight, model.lm_head.weight):
            known = weight[:200].clone()
            weight[: weight.shape[0]] = 0.01 * torch.randn(weight.shape, generator=generator)
            weight[rows[:200]] = known[order]
    model.save_pretrained(pair.finetuned)
    names = [f"t{number}" for number in range(200)]
    tokenizer(pair.base, names)
    grown = ["new"] * model.config.vocab_size
    for row, token in zip(rows[:200], order.tolist(), strict=True):
        grown[row] = names[token]
    tokenizer(pair.finetuned, [f"new{row}" if word == "new" else word for row, word in enumerate(grown)])
    report = deltamend.repair(pair.base, pair.finetuned, tmp_path / "out")
    base, finetuned, out = load(pair.base), load(pair.finetuned), load(tmp_path / "out")
    shared, others = rows[:200], [row for row in range(model.config.vocab_size) if row not in rows[:200]]
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        ours, theirs = base[name][order], finetuned[name][shared]
        assert check(({"w": ours}, {"w": theirs}), {"w": out[name][shared]}) == 1
        assert torch.equal(out[name][others], finetuned[name][others])
    reasons = {tensor.reason for tensor in report.tensors if tensor.name == "lm_head.weight"}
    assert any(("the first 200" if same else "200 of 206 rows have a token") in reason for reason in reasons)
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "out").config.vocab_size == model.config.vocab_size


def test_tokenizers_with_nothing_in_common_are_refused(tmp_path: Path) -> None:
    pair = save_pair(llama(torch.float32), tmp_path)
    tokenizer(
        pair.base, [f"t{row}" for row in range(500)]
    )  # more tokens than rows: those that both name are in neither
    tokenizer(pair.finetuned, [*(f"u{row}" for row in range(400)), "t0", "t1"])
    with pytest.raises(deltamend.PairingError, match="have no token in common"):
        deltamend.repair(pair.base, pair.finetuned, tmp_path / "out")


def test_another_tokenizer_of_the_same_size_is_noticed(tmp_path: Path) -> None:
    pair = save_pair(llama(torch.float32), tmp_path)
    tokenizer(pair.base, [f"a{row}" for row in range(200)])
    tokenizer(pair.finetuned, [f"a{row}" if row < 150 else f"b{row}" for row in range(200)])
    report = deltamend.repair(pair.base, pair.finetuned, tmp_path / "out")
    (head,) = [tensor for tensor in report.tensors if tensor.name == "lm_head.weight"]
    assert head.rows == 150
    assert torch.equal(load(tmp_path / "out")["lm_head.weight"][150:], load(pair.finetuned)["lm_head.weight"][150:])


def test_a_mask_is_for_the_rows_of_the_tensor_however_they_are_matched(tmp_path: Path) -> None:
    pair = save_pair(llama(torch.float32), tmp_path)
    tokenizer(pair.base, [f"a{row}" for row in range(200)])
    tokenizer(pair.finetuned, [*(f"new{row}" for row in range(50)), *(f"a{row}" for row in range(150))])
    finetuned = load(pair.finetuned)
    masks = {
        name: torch.zeros(tensor.shape, dtype=torch.uint8) for name, tensor in finetuned.items() if tensor.ndim == 2
    }
    masks["lm_head.weight"][60:70] = 1
    save_file(masks, tmp_path / "mask")
    deltamend.repair(
        pair.base, pair.finetuned, tmp_path / "out", method="graft", parameters={"mask": str(tmp_path / "mask")}
    )
    base, out = load(pair.base)["lm_head.weight"], load(tmp_path / "out")["lm_head.weight"]
    torch.testing.assert_close(out[60:70], finetuned["lm_head.weight"][60:70])
    assert torch.equal(out[70:], base[20:150])
    assert torch.equal(out[:50], finetuned["lm_head.weight"][:50])


def test_a_mask_holds_for_the_parts_of_a_tensor(tmp_path: Path) -> None:
    pair = save_pair(phi3(), tmp_path)
    finetuned = load(pair.finetuned)
    masks = {
        name: torch.zeros(tensor.shape, dtype=torch.uint8) for name, tensor in finetuned.items() if tensor.ndim == 2
    }
    name = "model.layers.0.self_attn.qkv_proj.weight"
    masks[name][60:] = 1
    save_file(masks, tmp_path / "mask")
    given = {"method": "graft", "parameters": {"mask": str(tmp_path / "mask")}, "split_fused": True}
    deltamend.repair(pair.base, pair.finetuned, tmp_path / "out", **given)  # type: ignore[arg-type]
    out, base = load(tmp_path / "out"), load(pair.base)
    assert torch.equal(out[name], torch.where(masks[name].bool(), finetuned[name], base[name]))


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


def quantised(folder: Path, scheme: str) -> dict[str, torch.Tensor]:
    """Turn a checkpoint's linear weights into fp8 with scales; the weights they stand for."""
    path = folder / "model.safetensors"
    stored, means = {}, {}
    for name, tensor in load_file(path).items():
        if tensor.ndim != 2 or "proj" not in name:
            stored[name] = means[name] = tensor
            continue
        block = {"block": (16, 16), "row": (1, tensor.shape[1]), "tensor": tuple(tensor.shape)}[scheme]
        padded = [-(-size // step) for size, step in zip(tensor.shape, block, strict=True)]
        scale = torch.empty(padded)
        codes = torch.empty(tensor.shape, dtype=torch.float8_e4m3fn)
        for i in range(padded[0]):
            for j in range(padded[1]):
                part = slice(i * block[0], (i + 1) * block[0]), slice(j * block[1], (j + 1) * block[1])
                scale[i, j] = tensor[part].abs().max() / 448
                codes[part] = (tensor[part] / scale[i, j]).to(torch.float8_e4m3fn)
        spread = scale.repeat_interleave(block[0], 0).repeat_interleave(block[1], 1)
        means[name] = codes.float() * spread[: tensor.shape[0], : tensor.shape[1]]
        stored[name] = codes
        key = "weight_scale_inv" if scheme == "block" else "weight_scale"
        stored[name.replace("weight", key)] = scale.reshape(1) if scheme == "tensor" else scale
    save_file(stored, path, metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    weights = {"num_bits": 8, "type": "float", "strategy": scheme}
    config["quantization_config"] = (
        {"quant_method": "fp8", "weight_block_size": [16, 16]}
        if scheme == "block"
        else {"quant_method": "compressed-tensors", "config_groups": {"group_0": {"weights": weights}}}
    )
    (folder / "config.json").write_text(json.dumps(config))
    return means


@pytest.mark.parametrize("scheme", ["block", "row", "tensor"])
@pytest.mark.parametrize("side", ["base", "finetuned"])
def test_fp8_weights_are_read_with_their_scales(scheme: str, side: str, tmp_path: Path) -> None:
    pair = save_pair(llama(torch.float32), tmp_path)
    sides = {"base": load(pair.base), "finetuned": load(pair.finetuned)}
    sides[side] = quantised(tmp_path / side, scheme)
    report = deltamend.repair(pair.base, pair.finetuned, tmp_path / "out", out_dtype="fp32")
    out = load(tmp_path / "out")
    assert check((sides["base"], sides["finetuned"]), out) == 16
    assert out.keys() == sides["finetuned"].keys()
    assert any("8-bit tensors are read with their scales" in note for note in report.manifest.notes)
    assert "quantization_config" not in json.loads((tmp_path / "out" / "config.json").read_text())
    AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    if side == "finetuned":
        written = deltamend.repair(pair.base, pair.finetuned, tmp_path / "bf16")
        projections = {tensor.dtype for tensor in written.tensors if "proj" in tensor.name}
        assert projections == {"BF16"}


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"quant_method": "gptq", "bits": 4}, "quantised ('gptq')"),
        ({"quant_method": "bitsandbytes"}, "quantised ('bitsandbytes')"),
        (
            {"quant_method": "compressed-tensors", "config_groups": {"g": {"weights": {"num_bits": 4, "type": "int"}}}},
            "other than 8-bit float weights",
        ),
        ({"quant_method": "fp8", "weight_block_size": [64, 64]}, "which config.json does not explain"),
        ("nonsense", "quantised (None)"),
    ],
)
def test_other_quantisation_is_refused_in_one_line(
    config: object, says: str, tmp_path: Path, deltamend_cli: Cli
) -> None:
    pair = save_pair(llama(torch.float32), tmp_path)
    quantised(pair.base, "block")
    content = json.loads((pair.base / "config.json").read_text())
    (pair.base / "config.json").write_text(json.dumps({**content, "quantization_config": config}))
    printed = deltamend_cli("repair", pair.base, pair.finetuned, tmp_path / "out")
    assert (printed.code, printed.err.count("\n")) == (1, 1)
    assert says in printed.err
    assert not (tmp_path / "out").exists()


def test_the_kernel_of_a_convolution_is_a_matrix_over_its_output_channels(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    shape = (24, 6, 3, 3)
    base = {
        "conv.weight": torch.randn(shape, generator=generator),
        "cls_token": torch.randn(1, 1, 24, generator=generator),
    }
    signal = torch.randn(24, 1, generator=generator) @ torch.randn(1, 54, generator=generator)
    tuned = base["conv.weight"] + 1e-3 * torch.randn(shape, generator=generator) + 0.05 * signal.reshape(shape)
    for name, tensors in (("base", base), ("finetuned", {"conv.weight": tuned, "cls_token": base["cls_token"] + 1})):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text("{}")
        save_file(tensors, tmp_path / name / "model.safetensors", {"format": "pt"})
    report = deltamend.repair(tmp_path / "base", tmp_path / "finetuned", tmp_path / "out")
    out = load(tmp_path / "out")
    sides = ({"w": base["conv.weight"].flatten(1)}, {"w": tuned.flatten(1)})
    assert check(sides, {"w": out["conv.weight"].flatten(1)}) == 1
    assert torch.equal(out["cls_token"], base["cls_token"] + 1)
    assert {tensor.name: tensor.action for tensor in report.tensors} == {"conv.weight": "filter", "cls_token": "keep"}


def test_a_depthwise_kernel_is_no_matrix_and_stays_as_fine_tuned(tmp_path: Path) -> None:
    base = {"conv1d.weight": torch.randn(24, 1, 4), "in_proj.weight": torch.randn(24, 12)}
    finetuned = {name: tensor + torch.randn(tensor.shape) for name, tensor in base.items()}
    for name, tensors in (("base", base), ("finetuned", finetuned)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text("{}")
        save_file(tensors, tmp_path / name / "model.safetensors", {"format": "pt"})
    report = deltamend.repair(tmp_path / "base", tmp_path / "finetuned", tmp_path / "out")
    reasons = {tensor.name: tensor.reason for tensor in report.tensors if tensor.action == "keep"}
    assert reasons == {"conv1d.weight": "not a matrix"}
    assert torch.equal(load(tmp_path / "out")["conv1d.weight"], finetuned["conv1d.weight"])


def wrap_config(folder: Path) -> None:
    """Change the config of a text model into that of a multimodal one around it."""
    config = json.loads((folder / "config.json").read_text())
    whole = {"model_type": "seeing", "architectures": ["SeeingForConditionalGeneration"], "text_config": config}
    (folder / "config.json").write_text(json.dumps(whole))


def test_the_language_part_of_a_multimodal_base_may_be_fine_tuned_and_saved_alone(tmp_path: Path) -> None:
    pair = save_pair(llama(torch.float32), tmp_path)
    deltamend.repair(pair.base, pair.finetuned, tmp_path / "expected")
    wrap_config(pair.base)
    renamed(pair.base, lambda name: name.replace("model.", "model.language_model."))
    deltamend.repair(pair.base, pair.finetuned, tmp_path / "out")
    ours, theirs = load(tmp_path / "out"), load(tmp_path / "expected")
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_the_language_part_of_another_family_is_refused(tmp_path: Path, deltamend_cli: Cli) -> None:
    pair = save_pair(llama(torch.float32), tmp_path)
    wrap_config(pair.base)
    config = json.loads((pair.finetuned / "config.json").read_text())
    (pair.finetuned / "config.json").write_text(json.dumps(config | {"model_type": "mistral"}))
    printed = deltamend_cli("repair", pair.base, pair.finetuned, tmp_path / "out")
    assert printed.code == 1
    assert "model_type is 'seeing' in BASE and 'mistral' in FINETUNED" in printed.err


def test_one_name_in_common_does_not_hide_that_all_others_have_another_prefix(tmp_path: Path) -> None:
    pair = save_pair(llama(torch.float32), tmp_path)
    renamed(pair.finetuned, lambda name: name.replace("model.", "model.language_model."))
    report = deltamend.repair(pair.base, pair.finetuned, tmp_path / "out")
    assert sum(tensor.action == "filter" for tensor in report.tensors) == 16


def test_a_rule_that_gives_two_tensors_one_name_is_refused(tmp_path: Path) -> None:
    pair = save_pair(llama(torch.float32), tmp_path)
    path = pair.base / "model.safetensors"
    tensors = load_file(path)
    save_file({**tensors, "a.lm_head.weight": tensors["lm_head.weight"] + 1}, path, metadata={"format": "pt"})
    with pytest.raises(deltamend.PairingError, match=r"two tensors of BASE would be called 'lm_head\.weight'"):
        deltamend.repair(pair.base, pair.finetuned, tmp_path / "out", rename="a.=")


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


@pytest.mark.parametrize("what", ["mask", "gguf"])
def test_overwrite_never_removes_what_is_read(what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pair = save_pair(llama(torch.float32), tmp_path)
    out = tmp_path / "out"
    out.mkdir()
    if what == "mask":
        masks = {name: torch.ones_like(t, dtype=torch.uint8) for name, t in load(pair.base).items() if t.ndim == 2}
        save_file(masks, out / "mask")
        given: dict[str, Any] = {"method": "graft", "parameters": {"mask": str(out / "mask")}}
        base = pair.base
    else:
        base, given = out / "base.gguf", {}
        base.write_bytes(b"GGUF")
        monkeypatch.setattr("deltamend.inputs.gguf_file.unpacked", lambda _path: pair.base)
    with pytest.raises(deltamend.OutputError, match="holds the input"):
        deltamend.repair(base, pair.finetuned, out, overwrite=True, **given)
    assert len(list(out.iterdir())) == 1


def test_dtypes_may_differ_between_the_sides(tmp_path: Path) -> None:
    pair = save_pair(llama(torch.float32), tmp_path / "pair")
    half = AutoModelForCausalLM.from_pretrained(pair.base).half()
    shutil.rmtree(pair.base)
    half.save_pretrained(pair.base)
    deltamend.repair(pair.base, pair.finetuned, tmp_path / "out")
    assert check((load(pair.base), load(pair.finetuned)), load(tmp_path / "out")) == 16
