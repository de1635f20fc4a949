"""Every kind of adapter that PEFT merges, read as PEFT's own `merge_and_unload` makes it, tensor by tensor."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora.config import BdLoraConfig, KasaConfig, MontecloraConfig, VeloraConfig
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    GptOssConfig,
    GptOssForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    PreTrainedModel,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
    SiglipVisionConfig,
    SiglipVisionModel,
    ViTConfig,
    ViTModel,
)

import deltamend
from tests.conftest import gpt2, llama
from tests.inputs.adapters.building import adapted, merged, shown
from tests.inputs.quantised_formats.writers import FORMATS, write_quantised
from tests.reference import load

pytestmark = [
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore::RuntimeWarning:peft"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]

QV = ["q_proj", "v_proj"]


def tied() -> PreTrainedModel:
    return llama(torch.float32, tied=True)


def plain() -> PreTrainedModel:
    return llama(torch.float32)


CASES: dict[str, tuple[Callable[[], PreTrainedModel], dict[str, Any]]] = {
    "dora": (plain, {"target_modules": [*QV, "down_proj"], "use_dora": True}),
    "dora-rslora-patterns": (
        plain,
        {"target_modules": QV, "use_dora": True, "use_rslora": True, "rank_pattern": {"v_proj": 7}, "alpha_pattern": {"q_proj": 9}},
    ),
    "dora-conv1d": (gpt2, {"target_modules": ["c_attn", "mlp.c_proj"], "use_dora": True, "fan_in_fan_out": True}),
    "dora-embedding": (plain, {"target_modules": ["embed_tokens", "q_proj"], "use_dora": True}),
    "lora-bias": (gpt2, {"target_modules": ["c_attn"], "lora_bias": True, "fan_in_fan_out": True}),
    "all-biases": (gpt2, {"target_modules": ["c_attn"], "bias": "all", "fan_in_fan_out": True}),
    "orthogonal": (plain, {"target_modules": QV, "init_lora_weights": "orthogonal"}),
    "gaussian": (plain, {"target_modules": QV, "init_lora_weights": "gaussian"}),
    "eva": (plain, {"target_modules": QV, "init_lora_weights": "eva"}),
    "mica": (plain, {"target_modules": QV, "init_lora_weights": "mica"}),
    "pissa": (plain, {"target_modules": [*QV, "down_proj"], "init_lora_weights": "pissa"}),
    "pissa-conv1d": (gpt2, {"target_modules": ["c_attn"], "init_lora_weights": "pissa", "fan_in_fan_out": True}),
    "olora": (plain, {"target_modules": [*QV, "down_proj"], "init_lora_weights": "olora"}),
    "kasa": (plain, {"target_modules": [*QV, "down_proj"], "kasa_config": KasaConfig()}),
    "bdlora": (
        plain,
        {"target_modules": ["q_proj", "down_proj"], "use_bdlora": BdLoraConfig(["q_proj"], ["down_proj"], nblocks=2)},
    ),
    "monteclora": (plain, {"target_modules": QV, "monteclora_config": MontecloraConfig()}),
    "velora": (plain, {"target_modules": QV, "velora_config": VeloraConfig(num_groups=4)}),
    "excluded": (plain, {"target_modules": "all-linear", "exclude_modules": ["down_proj"], "layers_to_transform": None}),
    "some-layers": (plain, {"target_modules": QV, "layers_to_transform": [1]}),
    "tokens": (plain, {"target_modules": ["q_proj"], "trainable_token_indices": [5, 0, 199]}),
    "tokens-tied": (tied, {"target_modules": ["q_proj"], "trainable_token_indices": [5, 0, 199]}),
    "tied-whole-embedding": (tied, {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]}),
    "tied-whole-both": (
        tied,
        {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"], "ensure_weight_tying": True},
    ),
    "tokens-of-both": (
        plain,
        {"target_modules": ["q_proj"], "trainable_token_indices": {"embed_tokens": [3, 4], "lm_head": [7]}},
    ),
    "whole-head": (plain, {"target_modules": ["q_proj"], "modules_to_save": ["lm_head", "norm"]}),
    "parameter": (plain, {"target_modules": [], "target_parameters": ["q_proj.weight"], "use_rslora": True}),
}  # fmt: skip
IN_SINGLE = {"mica", "pissa", "pissa-conv1d", "olora", "kasa"}
"""PEFT starts these from weights in fp32 only."""


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_it_is_read_as_peft_merges_it(case: str, tmp_path: Path) -> None:
    make, options = CASES[case]
    pair = adapted(tmp_path, make(), **options)
    expected = merged(pair, torch.float32 if case in IN_SINGLE else torch.float64)
    found, base = shown(f"{pair.base}+{pair.finetuned}"), load(pair.base)
    assert set(found) <= set(expected)
    assert {name.rpartition(".")[0] for name in set(expected) - set(found)} <= {"lm_head"}  # tied
    changed = 0
    for name, values in found.items():
        np.testing.assert_allclose(values, expected[name].numpy(), rtol=0, atol=2e-6 if case in IN_SINGLE else 2e-7)
        changed += name not in base or not np.array_equal(values, base[name].double().numpy())
    assert changed >= 2


@pytest.mark.slow
def test_repeated_layers_are_read_as_peft_runs_them_and_repaired_against_their_source(tmp_path: Path) -> None:
    """PEFT's own merge adds the updates of all copies to the weight that they share, unlike the model it runs."""
    pair = adapted(tmp_path, plain(), target_modules=QV, layer_replication=[[0, 2], [0, 2], [1, 2]])
    spec = f"{pair.base}+{pair.finetuned}"
    deltamend.repair(pair.base, spec, tmp_path / "same", method="none")
    ids = torch.tensor([[1, 5, 9, 2]])
    expected = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(pair.base), pair.finetuned)
    found = AutoModelForCausalLM.from_pretrained(tmp_path / "same")
    assert found.config.num_hidden_layers == 5
    torch.testing.assert_close(found(ids).logits, expected(ids).logits, rtol=1e-4, atol=1e-4)
    deltamend.repair(pair.base, spec, tmp_path / "reverted", method="revert")
    base, out = load(pair.base), load(tmp_path / "reverted")
    name = "model.layers.{}.self_attn.q_proj.weight"
    for layer, source in enumerate((0, 1, 0, 1, 1)):
        assert torch.equal(out[name.format(layer)], base[name.format(source)])
    assert name.format(5) not in out


def moe() -> Qwen3MoeForCausalLM:
    """Four experts a layer; square on purpose where it can be, so that shapes alone do not tell the parameters apart."""
    torch.manual_seed(0)
    config = Qwen3MoeConfig(
        hidden_size=16, intermediate_size=24, moe_intermediate_size=8, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=8, num_experts=4, num_experts_per_tok=2, vocab_size=60, decoder_sparse_step=1,
    )  # fmt: skip
    return Qwen3MoeForCausalLM(config)


def gpt_oss() -> GptOssForCausalLM:
    """Experts as (experts, inputs, outputs), square."""
    torch.manual_seed(0)
    config = GptOssConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1, head_dim=8,
        num_local_experts=4, num_experts_per_tok=2, vocab_size=60,
    )  # fmt: skip
    model = GptOssForCausalLM(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape))
    return model


EXPERTS = ["experts.gate_up_proj", "experts.down_proj"]


@pytest.mark.slow
@pytest.mark.parametrize("parameters", [EXPERTS, EXPERTS[:1], EXPERTS[1:], [*EXPERTS, "gate.weight"]])
@pytest.mark.parametrize("fused", [False, True])
def test_stacked_experts_are_read_as_peft_merges_them(parameters: list[str], fused: bool, tmp_path: Path) -> None:
    model = moe()
    pair = adapted(tmp_path, model, target_modules=["q_proj"], target_parameters=parameters, r=2)
    if fused:
        state = AutoModelForCausalLM.from_pretrained(pair.base).state_dict()
        save_file({name: tensor.contiguous() for name, tensor in state.items()}, pair.base / "model.safetensors")
    expected, found = merged(pair), shown(f"{pair.base}+{pair.finetuned}")
    assert any("experts.3.gate_proj" in name for name in found) != fused
    checked = 0
    for name, values in found.items():
        wanted = expected[name] if name in expected else _expert(name, expected)
        np.testing.assert_allclose(values, wanted.numpy(), rtol=0, atol=2e-7)
        checked += "experts" in name
    assert checked == (4 if fused else 24)
    base = load(pair.base)
    assert all(
        np.array_equal(found[name], base[name].double().numpy()) != any(part in name for part in _changed(parameters))
        for name in found
        if "experts" in name
    )


def _changed(parameters: list[str]) -> list[str]:
    parts = {"experts.gate_up_proj": ["gate_proj", "up_proj"], "experts.down_proj": ["down_proj"]}
    return [part for parameter in parameters for part in parts.get(parameter, [])]


def _expert(name: str, expected: dict[str, torch.Tensor]) -> torch.Tensor:
    module, number, part, _ = name.rsplit(".", 3)
    if part == "down_proj":
        return expected[f"{module}.down_proj"][int(number)]
    return expected[f"{module}.gate_up_proj"][int(number)].chunk(2)[part == "up_proj"]


def test_experts_whose_files_have_other_names_are_read_as_peft_merges_them(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = MixtralConfig(
        hidden_size=16, intermediate_size=8, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1,
        num_local_experts=4, vocab_size=60,
    )  # fmt: skip
    parameters = [*EXPERTS, "gate.weight"]
    pair = adapted(tmp_path, MixtralForCausalLM(config), target_modules=["q_proj"], target_parameters=parameters, r=2)
    expected, found, base = merged(pair), shown(f"{pair.base}+{pair.finetuned}"), load(pair.base)
    parts = {"w1": ("gate_up_proj", 0), "w3": ("gate_up_proj", 1), "w2": ("down_proj", 0)}
    for layer in range(2):
        stored, loaded = f"model.layers.{layer}.block_sparse_moe", f"model.layers.{layer}.mlp"
        np.testing.assert_allclose(found[f"{stored}.gate.weight"], expected[f"{loaded}.gate.weight"], rtol=0, atol=2e-7)
        for number in range(4):
            for part, (fused, half) in parts.items():
                name = f"{stored}.experts.{number}.{part}.weight"
                rows = base[name].shape[0]
                wanted = expected[f"{loaded}.experts.{fused}"][number][half * rows : (half + 1) * rows]
                np.testing.assert_allclose(found[name], wanted.numpy(), rtol=0, atol=2e-7)
                assert not np.array_equal(found[name], base[name].double().numpy())


def test_transposed_experts_are_read_as_peft_merges_them(tmp_path: Path) -> None:
    pair = adapted(tmp_path, gpt_oss(), target_modules=["q_proj"], target_parameters=EXPERTS, r=2)
    expected, found = merged(pair), shown(f"{pair.base}+{pair.finetuned}")
    for name, values in found.items():
        np.testing.assert_allclose(values, expected[name].numpy(), rtol=0, atol=2e-7)
    base = load(pair.base)
    name = "model.layers.1.mlp.experts.down_proj"
    assert not np.array_equal(found[name], base[name].double().numpy())


@pytest.mark.parametrize("dora", [False, True])
def test_convolutions_are_read_as_peft_merges_them(dora: bool, tmp_path: Path) -> None:
    config = ViTConfig(
        hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2, image_size=8, patch_size=4
    )
    pair = adapted(tmp_path, ViTModel(config), target_modules=["projection"], use_dora=dora)
    expected, found = merged(pair, auto=AutoModel), shown(f"{pair.base}+{pair.finetuned}")
    name = "embeddings.patch_embeddings.projection.weight"
    np.testing.assert_allclose(found[name], expected[name].numpy(), rtol=0, atol=2e-7)
    assert not np.array_equal(found[name], load(pair.base)[name].double().numpy())


def test_multihead_attention_is_read_as_peft_merges_it(tmp_path: Path) -> None:
    config = SiglipVisionConfig(
        hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2, image_size=8, patch_size=4
    )
    pair = adapted(tmp_path, SiglipVisionModel(config), target_modules=["attention"])
    expected, found = merged(pair, auto=AutoModel), shown(f"{pair.base}+{pair.finetuned}")
    base = load(pair.base)
    for part in ("in_proj_weight", "out_proj.weight"):
        name = f"head.attention.{part}"
        np.testing.assert_allclose(found[name], expected[name].numpy(), rtol=0, atol=2e-7)
        assert not np.array_equal(found[name], base[name].double().numpy())


def test_rows_of_a_tied_head_of_its_own_untie_it(tmp_path: Path) -> None:
    """PEFT's merge gives both matrices all rows, unlike the model it runs."""
    rows = {"embed_tokens": [3, 5], "lm_head": [7]}
    pair = adapted(tmp_path, tied(), target_modules=["q_proj"], trainable_token_indices=rows)
    deltamend.repair(pair.base, f"{pair.base}+{pair.finetuned}", tmp_path / "out", method="none")
    ids = torch.tensor([[1, 5, 3, 7]])
    expected = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(pair.base), pair.finetuned)
    found = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    torch.testing.assert_close(found(ids).logits, expected(ids).logits, rtol=1e-4, atol=1e-4)


def test_the_head_of_a_reward_model_takes_the_place_of_the_causal_one(tmp_path: Path) -> None:
    plain().save_pretrained(tmp_path / "base")
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "base", num_labels=3)
    model.config.pad_token_id = 0
    trained = get_peft_model(model, LoraConfig(task_type="SEQ_CLS", target_modules=["q_proj"], init_lora_weights=False))
    trained.save_pretrained(str(tmp_path / "adapter"))
    with deltamend.open_checkpoint(f"{tmp_path / 'base'}+{tmp_path / 'adapter'}") as checkpoint:
        assert "lm_head.weight" not in checkpoint.tensors
        assert checkpoint.tensors["score.weight"].shape == (3, 64)
        assert checkpoint.config["architectures"] == ["LlamaForSequenceClassification"]
        assert checkpoint.config["num_labels"] == 3
        head = checkpoint.values(checkpoint.tensors["score.weight"], 0, 192)
    stored = trained.state_dict()["base_model.model.score.modules_to_save.default.weight"]
    assert np.array_equal(head, stored.numpy().ravel())


@pytest.mark.slow
@pytest.mark.parametrize("dora", [False, True])
def test_an_adapter_on_a_quantised_model_is_added_to_what_its_codes_stand_for(dora: bool, tmp_path: Path) -> None:
    """As `merge_and_unload` on the dequantised model; on the packed one PEFT packs the sum again."""
    model = plain()
    model.save_pretrained(tmp_path / "packed")
    values = write_quantised(tmp_path / "packed", FORMATS["nf4"])
    model.load_state_dict(values, strict=False)
    pair = adapted(tmp_path, model, target_modules=[*QV, "down_proj"], use_dora=dora)
    spec = f"{tmp_path / 'packed'}+{pair.finetuned}"
    expected, found = merged(pair), shown(spec)
    for name, tensor in found.items():
        np.testing.assert_allclose(tensor, expected[name].numpy(), rtol=0, atol=2e-7)
    deltamend.repair(tmp_path / "packed", spec, tmp_path / "out", method="none")
    out = load(tmp_path / "out")
    for name, written in out.items():
        torch.testing.assert_close(written, expected[name].to(written.dtype), rtol=2**-7, atol=0)
    assert out["model.layers.0.self_attn.q_proj.weight"].dtype == torch.bfloat16
    diagnosed = deltamend.diagnose(tmp_path / "packed", spec)
    assert "of BASE to" not in diagnosed.model_dump_json()  # the codes are the same on both sides


def test_keys_of_a_wrapped_models_state_dict_are_read(tmp_path: Path) -> None:
    pair = adapted(tmp_path, plain(), target_modules=QV, modules_to_save=["lm_head"], use_dora=True)
    expected = shown(f"{pair.base}+{pair.finetuned}")
    path = pair.finetuned / "adapter_model.safetensors"
    renamed = {}
    for key, tensor in load_file(path).items():
        key = key.replace(".weight", ".default.weight") if "lora_" in key else key
        key = f"{key}.default" if key.endswith("magnitude_vector") else key
        key = key.replace("lm_head.", "lm_head.modules_to_save.default.")
        renamed["_fsdp_wrapped_module." + key.replace("layers.1.", "layers.1._orig_mod.")] = tensor
    save_file(renamed | {"base_model.model.lm_head.original_module.weight": torch.ones(200, 64)}, path)
    found = shown(f"{pair.base}+{pair.finetuned}")
    assert found.keys() == expected.keys()
    assert all(np.array_equal(found[name], expected[name]) for name in found)


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "other kind": ({"peft_type": "IA3"}, "is a 'IA3' adapter, not LoRA; merge it"),
    "no weights": ({"peft_type": "PREFIX_TUNING"}, "changes no weights of the model"),
    "activated": ({"alora_invocation_tokens": [3]}, "acts on some tokens of a text and not on others, and no merged"),
    "arrow": ({"arrow_config": {"top_k": 1}}, "chooses among adapters token by token"),
    "qalora": ({"use_qalora": True}, "adds to means of inputs"),
    "corda": ({"init_lora_weights": "corda"}, "only its training data tell; save it again with save_pretrained"),
    "lora-ga": ({"init_lora_weights": "lora_ga"}, "only its first gradients tell"),
    "loftq": ({"init_lora_weights": "loftq"}, "quantised weights in the place of the model's; merge it with PEFT into those"),
    "pissa-niter": ({"init_lora_weights": "pissa_niter_4"}, "a randomised method found"),
    "unknown start": ({"init_lora_weights": "newest"}, "init_lora_weights='newest', which deltamend does not know"),
    "dora without magnitudes": ({"use_dora": True}, "say different things of use_dora; save the adapter again"),
    "alpha": ({"lora_alpha": "much"}, "has lora_alpha 'much'"),
    "pattern": ({"alpha_pattern": {"(": 1}}, "which is no pattern"),
    "layers": ({"layer_replication": [[0, 9]]}, "has no layer 8, which the adapter's layer_replication repeats"),
    "ranges": ({"layer_replication": [[2, 0]]}, "layer_replication is no list of ranges"),
}  # fmt: skip


def test_what_cannot_be_merged_is_refused_with_its_own_advice(tmp_path: Path) -> None:
    pair = adapted(tmp_path, plain(), target_modules=QV)
    path = pair.finetuned / "adapter_config.json"
    config = json.loads(path.read_text())
    for change, says in REFUSED.values():
        path.write_text(json.dumps({**config, **change}))
        with pytest.raises(deltamend.CheckpointError) as refused:
            deltamend.open_checkpoint(f"{pair.base}+{pair.finetuned}")
        assert says in str(refused.value)
        assert "\n" not in str(refused.value)


STRANGE: tuple[Any, ...] = (
    None,
    True,
    3,
    -1,
    1.5,
    "x",
    "(",
    [],
    [1],
    ["x"],
    [[0, 2]],
    {},
    {"x": 1},
    {"q_proj": [1]},
    {"nblocks": 0},
)
FIELDS = (
    "peft_type", "task_type", "init_lora_weights", "lora_alpha", "alpha_pattern", "rank_pattern", "use_rslora", "use_dora",
    "fan_in_fan_out", "lora_bias", "kasa_config", "use_bdlora", "target_parameters", "trainable_token_indices",
    "modules_to_save", "layer_replication", "use_qalora", "arrow_config",
)  # fmt: skip


@pytest.mark.slow
def test_whatever_a_config_says_it_is_read_or_refused_in_one_line(tmp_path: Path) -> None:
    pair = adapted(tmp_path, plain(), target_modules=QV, trainable_token_indices=[3], modules_to_save=["lm_head"], r=2)
    path = pair.finetuned / "adapter_config.json"
    config = json.loads(path.read_text())
    refusals = []
    for field in FIELDS:
        for value in STRANGE:
            path.write_text(json.dumps({**config, field: value}))
            try:
                deltamend.open_checkpoint(f"{pair.base}+{pair.finetuned}").close()
            except deltamend.DeltamendError as error:
                refusals.append(str(error))
    assert not any("\n" in refusal for refusal in refusals)
    assert len(FIELDS) < len(refusals) < len(FIELDS) * len(STRANGE) - len(FIELDS)


@pytest.mark.parametrize("start", ["corda", "lora_ga", "loftq", "pissa_niter_4"])
def test_a_start_that_changes_the_model_is_not_taken_for_one_that_does_not(start: str) -> None:
    """PEFT's own words for every start; one that is new there must be sorted here."""
    known = {
        "gaussian",
        "eva",
        "olora",
        "pissa",
        "pissa_niter_[number of iters]",
        "corda",
        "loftq",
        "orthogonal",
        "mica",
    }
    annotation = str(LoraConfig.__dataclass_fields__["init_lora_weights"].type)
    assert all(word in annotation for word in known), annotation
    assert annotation.count("'") + annotation.count('"') == 2 * len(known)
    assert start in known | {"lora_ga", "pissa_niter_4"}


def test_two_adapters_in_one_file_are_named(tmp_path: Path) -> None:
    pair = adapted(tmp_path, plain(), target_modules=QV)
    path = pair.finetuned / "adapter_model.safetensors"
    factors = load_file(path)
    both = {
        key.replace(".weight", f".{name}.weight"): value.clone()
        for key, value in factors.items()
        for name in ("a", "b")
    }
    save_file(both, path)
    with pytest.raises(deltamend.CheckpointError, match=r"holds the adapters 'a', 'b'; save one of them with PEFT's"):
        deltamend.open_checkpoint(f"{pair.base}+{pair.finetuned}")


def test_two_pairs_of_factors_for_one_weight_are_refused(tmp_path: Path) -> None:
    pair = adapted(tmp_path, moe(), target_modules=["q_proj"], target_parameters=EXPERTS[1:], r=2)
    path = pair.finetuned / "adapter_model.safetensors"
    factors = load_file(path)
    again = {
        key.replace(".lora_", ".base_layer.lora_"): value.clone() for key, value in factors.items() if "experts" in key
    }
    save_file(factors | again, path)
    with pytest.raises(deltamend.CheckpointError, match=r"several of its tensors belong to .*down_proj.* alike"):
        deltamend.open_checkpoint(f"{pair.base}+{pair.finetuned}")


def test_an_adapter_that_brings_tokens_says_so_in_a_multimodal_config(tmp_path: Path) -> None:
    model = llama(torch.float32)
    model.save_pretrained(tmp_path / "base")
    config = json.loads((tmp_path / "base" / "config.json").read_text())
    nested = {"model_type": "made_up", "vision_config": {"vocab_size": 200}, "text_config": config}
    (tmp_path / "base" / "config.json").write_text(json.dumps(nested))
    model.resize_token_embeddings(203, mean_resizing=False)
    wrapped = get_peft_model(
        model, LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["embed_tokens", "lm_head"])
    )
    wrapped.save_pretrained(str(tmp_path / "adapter"))
    with deltamend.open_checkpoint(f"{tmp_path / 'base'}+{tmp_path / 'adapter'}") as checkpoint:
        assert checkpoint.config["text_config"]["vocab_size"] == 203
        assert checkpoint.config["vision_config"]["vocab_size"] == 200
