"""`--as adapter`: peft loads it onto BASE and gets the model that the fp32 checkpoint holds."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
)

import deltamend
from deltamend.matrices import delta as delta_module
from tests.conftest import Pair, Printed, fine_tune, gpt2, llama, save_pair
from tests.repairing.test_resume import interrupt_after
from tests.repairing.test_run import without_seconds

TOKENS = torch.tensor([[1, 5, 9, 2, 7, 3]])


def gemma() -> PreTrainedModel:
    torch.manual_seed(0)
    config = Gemma2Config(
        hidden_size=48, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        head_dim=12, vocab_size=150, query_pre_attn_scalar=12,
    )  # fmt: skip
    return Gemma2ForCausalLM(config).to(torch.bfloat16)


def qwen() -> PreTrainedModel:
    torch.manual_seed(0)
    config = Qwen2Config(
        hidden_size=48, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        vocab_size=150, tie_word_embeddings=True,
    )  # fmt: skip
    return Qwen2ForCausalLM(config).to(torch.bfloat16)


MODELS: dict[str, Callable[[], PreTrainedModel]] = {
    "llama": llama,
    "llama-tied": lambda: llama(torch.float32, tied=True),
    "gpt2": gpt2,
    "gemma": gemma,
    "qwen": qwen,
}


@pytest.fixture(scope="module", params=MODELS)
def any_pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return save_pair(MODELS[request.param](), tmp_path_factory.mktemp(request.param))


def model_of(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def with_adapter(base: Path, adapter: Path) -> Any:
    """BASE in fp32 with the adapter on it; every key of the file must have found its place."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*tie_word_embeddings=True")  # said in docs/formats/adapter.md
        warnings.filterwarnings("ignore", ".*fan_in_fan_out is set to True but the target module is `torch.nn.Linear`")
        warnings.filterwarnings("ignore", ".*is_gradient_checkpointing", FutureWarning)  # peft's own
        model = PeftModel.from_pretrained(model_of(base), str(adapter))
    held = {name.replace(".default", "").replace(".modules_to_save", "") for name in model.state_dict()}
    assert set(load_file(adapter / "adapter_model.safetensors")) <= held
    return model.eval()


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(TOKENS).logits
    return found


def assert_same_model(adapter: Path, base: Path, checkpoint: Path) -> None:
    expected, found = logits(model_of(checkpoint)), logits(with_adapter(base, adapter))
    assert float((found - expected).norm() / expected.norm()) < 1e-5  # promised is 1e-3
    assert float((found - expected).norm()) < 1e-3 * float((expected - logits(model_of(base))).norm())


METHODS: dict[str, dict[str, Any]] = {
    "dg-hard": {},
    "rank": {"parameters": {"rank": 3}},
    "shrink": {},
    "revert": {},
    "none": {},
}


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_peft_gives_the_logits_of_the_fp32_checkpoint(any_pair: Pair, tmp_path: Path, method: str) -> None:
    options = {"method": method, **METHODS[method]}
    deltamend.repair(any_pair.base, any_pair.finetuned, tmp_path / "checkpoint", out_dtype="fp32", **options)
    report = deltamend.repair(any_pair.base, any_pair.finetuned, tmp_path / "adapter", output="adapter", **options)
    assert deltamend.verify(tmp_path / "adapter") == []
    assert_same_model(tmp_path / "adapter", any_pair.base, tmp_path / "checkpoint")
    assert report.realised_error < 1e-6


@pytest.mark.slow
def test_vectors_that_go_half_way_are_saved_whole(any_pair: Pair, tmp_path: Path) -> None:
    sides = (any_pair.base, any_pair.finetuned)
    deltamend.repair(*sides, tmp_path / "checkpoint", out_dtype="fp32", vectors=0.5)
    deltamend.repair(*sides, tmp_path / "adapter", output="adapter", vectors=0.5)
    assert_same_model(tmp_path / "adapter", any_pair.base, tmp_path / "checkpoint")


@pytest.mark.slow
def test_vectors_that_follow_the_base_are_left_out(any_pair: Pair, tmp_path: Path) -> None:
    sides = (any_pair.base, any_pair.finetuned)
    deltamend.repair(*sides, tmp_path / "checkpoint", out_dtype="fp32", vectors="base")
    deltamend.repair(*sides, tmp_path / "adapter", output="adapter", vectors="base")
    assert_same_model(tmp_path / "adapter", any_pair.base, tmp_path / "checkpoint")
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert (config["modules_to_save"], config["bias"]) == (None, "none")


@pytest.mark.slow
def test_matrices_that_are_left_alone_are_saved_whole(any_pair: Pair, tmp_path: Path) -> None:
    sides, only = (any_pair.base, any_pair.finetuned), r"(mlp|feed).*(up_proj|c_fc)"
    deltamend.repair(*sides, tmp_path / "checkpoint", out_dtype="fp32", include=only)
    deltamend.repair(*sides, tmp_path / "adapter", output="adapter", include=only)
    assert_same_model(tmp_path / "adapter", any_pair.base, tmp_path / "checkpoint")


def test_an_adapter_of_nothing_is_base(llama_pair: Pair, tmp_path: Path) -> None:
    report = deltamend.repair(llama_pair.base, llama_pair.base, tmp_path / "adapter", output="adapter")
    assert load_file(tmp_path / "adapter" / "adapter_model.safetensors") == {}
    assert {tensor.outcome for tensor in report.tensors} == {"zero"}
    torch.testing.assert_close(
        logits(with_adapter(llama_pair.base, tmp_path / "adapter")), logits(model_of(llama_pair.base))
    )


def test_what_is_measured_of_rounded_factors_is_so(llama_pair: Pair, tmp_path: Path) -> None:
    sides = (llama_pair.base, llama_pair.finetuned)
    exact = deltamend.repair(*sides, tmp_path / "exact", output="adapter")
    report = deltamend.repair(*sides, tmp_path / "rounded", output="adapter", out_dtype="bf16")
    before, after = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("exact", "rounded"))
    for tensor, precise in zip(report.tensors, exact.tensors, strict=True):
        if tensor.outcome != "filtered":
            continue
        keys = [part.key for part in tensor.adapter or ()]
        first, second = (after[key].double() for key in keys)
        product = second @ first if first.shape[0] == second.shape[1] else first.T @ second.T
        wanted = before[keys[1]].double() @ before[keys[0]].double()
        product = product if product.shape == wanted.shape else product.T
        assert precise.kept_norm == pytest.approx(float(wanted.norm()), rel=1e-5)
        assert tensor.realised_norm == pytest.approx(float(product.norm()), rel=1e-5)
        assert tensor.realised_error == pytest.approx(float((product - wanted).norm() / wanted.norm()), rel=1e-3)
        assert precise.realised_error is not None
        assert precise.realised_error < 1e-6
    assert 1e-4 < report.realised_error < 1e-2


def test_blocks_give_the_same_factors(llama_pair: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sides = (llama_pair.base, llama_pair.finetuned)
    deltamend.repair(*sides, tmp_path / "whole", output="adapter")
    monkeypatch.setattr(delta_module, "BLOCK_ELEMENTS", 50 * 64)
    deltamend.repair(*sides, tmp_path / "blocks", output="adapter")
    assert deltamend.verify(tmp_path / "blocks") == []
    whole, blocks = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("whole", "blocks"))
    for key in whole:
        if "lora_A" in key:
            other = key.replace("lora_A", "lora_B")
            products = [(tensors[other].double() @ tensors[key].double()) for tensors in (whole, blocks)]
            assert float((products[0] - products[1]).norm()) < 1e-5 * float(products[0].norm())


@pytest.mark.slow
def test_any_number_of_workers_writes_the_same_adapter(any_pair: Pair, tmp_path: Path) -> None:
    for workers in (1, 3):
        deltamend.repair(
            any_pair.base, any_pair.finetuned, tmp_path / f"out{workers}", output="adapter", workers=workers
        )
    assert without_seconds(tmp_path / "out1") == without_seconds(tmp_path / "out3")


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 9, 20])
def test_an_interrupted_adapter_goes_on(llama_pair: Pair, tmp_path: Path, count: int) -> None:
    sides = (llama_pair.base, llama_pair.finetuned)
    deltamend.repair(*sides, tmp_path / "whole", output="adapter")
    with pytest.raises(KeyboardInterrupt):
        deltamend.repair(*sides, tmp_path / "out", output="adapter", workers=1, progress=interrupt_after(count))
    assert not (tmp_path / "out").exists()
    parts = tmp_path / ".out.deltamend-partial" / "parts"
    damaged = min(parts.iterdir())
    damaged.write_bytes(damaged.read_bytes()[:-1])
    deltamend.repair(*sides, tmp_path / "out", output="adapter", resume=True)
    assert without_seconds(tmp_path / "out") == without_seconds(tmp_path / "whole")
    assert {path.name for path in tmp_path.iterdir()} == {"whole", "out"}
    assert not deltamend.repair(*sides, tmp_path / "out", output="adapter", resume=True).written


def test_verify_finds_a_flipped_bit_of_an_adapter(llama_pair: Pair, tmp_path: Path) -> None:
    deltamend.repair(llama_pair.base, llama_pair.finetuned, tmp_path / "out", output="adapter")
    file = tmp_path / "out" / "adapter_model.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    faults = deltamend.verify(tmp_path / "out")
    assert any(fault.startswith("tensor 'base_model.model.") for fault in faults)


def test_the_config_and_the_files_beside_it(
    llama_pair: Pair, tmp_path: Path, deltamend_cli: Callable[..., Printed]
) -> None:
    printed = deltamend_cli(
        "repair", llama_pair.base, llama_pair.finetuned, tmp_path / "out", "--as", "adapter", "--quiet"
    )
    assert (printed.code, printed.err) == (0, "")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "adapter_config.json", "adapter_model.safetensors", "chat_template.jinja", "deltamend.json",
        "generation_config.json", "modeling_tiny.py", "README.md", "README.finetuned.md", "tokenizer.json",
    }  # fmt: skip
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(llama_pair.base)
    assert (config["r"], config["lora_alpha"]) == (2, 2)
    assert "library_name: peft" in (tmp_path / "out" / "README.md").read_text()


def test_the_size_is_said(llama_pair: Pair, tmp_path: Path, deltamend_cli: Callable[..., Printed]) -> None:
    printed = deltamend_cli("repair", llama_pair.base, llama_pair.finetuned, tmp_path / "out", "--as", "adapter")
    assert "the adapter takes 0.027 MB, the weights of FINETUNED take 0.23 MB" in printed.out


@pytest.mark.parametrize(
    ("options", "pieces"),
    [
        (["--method", "wise-ft"], ("the update that wise-ft keeps is not low-rank", "dg-hard, shrink, rank")),
        (["--max-shard-size", "1GB"], ("--max-shard-size", "single file")),
        (["--rounding", "stochastic"], ("--rounding", "leave this option out")),
        (["--as", "lora"], ("--as: 'lora' is not valid", "'checkpoint' or 'adapter'")),
    ],
)
def test_options_an_adapter_cannot_follow(
    options: list[str], pieces: tuple[str, ...], llama_pair: Pair, tmp_path: Path, deltamend_cli: Callable[..., Printed]
) -> None:
    printed = deltamend_cli(
        "repair", llama_pair.base, llama_pair.finetuned, tmp_path / "out", "--as", "adapter", *options
    )
    assert printed.code == 2
    for piece in pieces:
        assert piece in printed.err
    assert list(tmp_path.iterdir()) == []


def test_a_resized_vocabulary_is_refused(tmp_path: Path) -> None:
    small, large = llama(), llama(vocab_size=208)
    small.save_pretrained(tmp_path / "base")
    fine_tune(large)
    large.save_pretrained(tmp_path / "finetuned")
    with pytest.raises(deltamend.UsageError, match=r"200 rows in BASE and 208 in FINETUNED.*use output=\"checkpoint\""):
        deltamend.repair(
            tmp_path / "base", tmp_path / "finetuned", tmp_path / "out", output="adapter", allow_unrelated=True
        )


@pytest.mark.slow
def test_a_body_saved_without_its_head_has_the_names_of_the_whole_model(tmp_path: Path) -> None:
    model = gpt2()
    for side in ("base", "finetuned"):
        model.transformer.save_pretrained(tmp_path / side)
        shutil.copy(_config_with_head(model, tmp_path), tmp_path / side / "config.json")
        fine_tune(model)
    sides = (tmp_path / "base", tmp_path / "finetuned")
    deltamend.repair(*sides, tmp_path / "checkpoint", out_dtype="fp32")
    deltamend.repair(*sides, tmp_path / "adapter", output="adapter")
    assert_same_model(tmp_path / "adapter", tmp_path / "base", tmp_path / "checkpoint")


def test_a_body_without_its_head_of_an_unknown_model_is_refused(tmp_path: Path) -> None:
    for side in ("base", "finetuned"):
        (tmp_path / side).mkdir()
        (tmp_path / side / "config.json").write_text('{"architectures": ["NewForCausalLM"]}')
        save_file({"layers.0.mlp.weight": torch.ones(6, 4)}, tmp_path / side / "model.safetensors")
    with pytest.raises(deltamend.UsageError, match="saved without its head"):
        deltamend.repair(tmp_path / "base", tmp_path / "finetuned", tmp_path / "out", output="adapter")


def _config_with_head(model: PreTrainedModel, folder: Path) -> Path:
    model.config.architectures = ["GPT2LMHeadModel"]
    model.config.save_pretrained(folder / "whole")
    return folder / "whole" / "config.json"


def test_a_tied_head_with_a_bias_of_its_own_is_refused(tmp_path: Path) -> None:
    tensors = {"model.embed_tokens.weight": torch.ones(6, 4), "lm_head.bias": torch.zeros(6)}
    for side in ("base", "finetuned"):
        (tmp_path / side).mkdir()
        (tmp_path / side / "config.json").write_text('{"architectures": ["LlamaForCausalLM"]}')
        save_file(tensors, tmp_path / side / "model.safetensors")
    with pytest.raises(
        deltamend.UsageError, match=r"'lm_head.bias' belongs to a head whose weight is tied to the embedding"
    ):
        deltamend.repair(tmp_path / "base", tmp_path / "finetuned", tmp_path / "out", output="adapter")
