from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import deltamend
from tests.conftest import RANK, Pair, fine_tune, gpt2, llama
from tests.reference import dg_hard, load


def test_state_dicts_give_what_a_float64_svd_gives() -> None:
    base, finetuned = llama(torch.float32), llama(torch.float32)
    fine_tune(finetuned)
    before = {name: tensor.clone() for name, tensor in finetuned.state_dict().items()}
    repaired = deltamend.repair_state_dict(base.state_dict(), finetuned.state_dict())
    assert list(repaired.tensors) == list(before)
    for name, tensor in repaired.tensors.items():
        original = base.state_dict()[name].double().numpy()
        if tensor.ndim == 2:
            expected, rank = dg_hard(before[name].double().numpy() - original)
            found = repaired.records[name].spectrum
            assert found is not None
            assert (found.rank, rank) == (RANK, RANK)
            torch.testing.assert_close(tensor.double(), torch.from_numpy(original + expected), rtol=0, atol=2e-6)
        else:
            assert torch.equal(tensor, before[name])
        assert torch.equal(finetuned.state_dict()[name], before[name])


def test_files_and_memory_agree(llama_pair: Pair, tmp_path: Path) -> None:
    deltamend.repair(llama_pair.base, llama_pair.finetuned, tmp_path / "out")
    repaired = deltamend.repair_state_dict(load(llama_pair.base), load(llama_pair.finetuned))
    out = load(tmp_path / "out")
    assert all(torch.equal(out[name], tensor) for name, tensor in repaired.tensors.items())


def test_modules_are_repaired_into_a_copy() -> None:
    base, finetuned = gpt2(), gpt2()
    fine_tune(finetuned)
    before = {name: tensor.clone() for name, tensor in finetuned.state_dict().items()}
    found = deltamend.repair_module(base, finetuned, method="wise-ft", parameters={"alpha": 0.5})
    repaired, records = found.module, found.records
    assert type(repaired) is type(finetuned)
    assert repaired is not finetuned
    assert all(torch.equal(tensor, before[name]) for name, tensor in finetuned.state_dict().items())
    name = "transformer.h.0.attn.c_attn.weight"
    halfway = (base.state_dict()[name] + before[name]) / 2
    torch.testing.assert_close(repaired.state_dict()[name], halfway)
    assert records[name].outcome == "filtered"
    ids = torch.tensor([[1, 2, 3]])
    assert torch.isfinite(repaired(ids).logits).all()


def test_another_dtype_can_be_asked_for() -> None:
    base, finetuned = llama(), llama()
    fine_tune(finetuned)
    repaired = deltamend.repair_state_dict(base.state_dict(), finetuned.state_dict(), out_dtype="fp32")
    assert {tensor.dtype for name, tensor in repaired.tensors.items() if tensor.ndim == 2} == {torch.float32}


def test_models_that_do_not_belong_together_are_refused() -> None:
    with pytest.raises(deltamend.PairingError, match="model_type"):
        deltamend.repair_module(gpt2(), llama())
    with pytest.raises(deltamend.PairingError, match="not a resized vocabulary"):
        deltamend.repair_state_dict({"a": torch.zeros(3, 4)}, {"a": torch.zeros(4, 4)})


def test_an_overflow_in_fp16_is_refused() -> None:
    base = {"a": torch.zeros(4, 5)}
    finetuned = {"a": torch.full((4, 5), 1e6)}
    with pytest.raises(
        deltamend.FilterError, match=r"tensor 'a' overflows in float16; write it with out_dtype=\"fp32\""
    ):
        deltamend.repair_state_dict(base, finetuned, method="wise-ft", out_dtype="fp16")


def test_what_files_refuse_memory_refuses() -> None:
    good = {"a": torch.zeros(4, 5), "b": torch.zeros(5)}
    with pytest.raises(deltamend.CheckpointError, match=r"FINETUNED: tensor 'a' \(U8\) belongs to a quantised model"):
        deltamend.repair_state_dict(good, {**good, "a": torch.zeros(4, 5, dtype=torch.uint8)})
    with pytest.raises(deltamend.FilterError, match="tensor 'b' holds NaN or Inf in FINETUNED"):
        deltamend.repair_state_dict(good, {**good, "b": torch.full((5,), torch.nan)})


def test_tied_tensors_are_repaired_as_one_or_not_at_all() -> None:
    base, finetuned = gpt2(), gpt2()
    fine_tune(finetuned)
    repaired = deltamend.repair_module(base, finetuned).module
    state = repaired.state_dict()
    assert torch.equal(state["lm_head.weight"], state["transformer.wte.weight"])
    with pytest.raises(
        deltamend.UsageError, match=r"'transformer\.wte\.weight' and 'lm_head\.weight' share their memory"
    ):
        deltamend.repair_module(base, finetuned, exclude="lm_head")


def assert_same(repaired: deltamend.RepairedStateDict, folder: Path) -> None:
    out = load(folder)
    assert set(repaired.tensors) == set(out)
    assert all(torch.equal(out[name], tensor) for name, tensor in repaired.tensors.items())


def test_renamed_tensors_are_paired_as_in_folders(own_pair: Pair, tmp_path: Path) -> None:
    renamed_base = {name.replace("model.", "odd.", 1): tensor for name, tensor in load(own_pair.base).items()}
    save_file(renamed_base, own_pair.base / "model.safetensors")
    deltamend.repair(own_pair.base, own_pair.finetuned, tmp_path / "out", rename="odd.=model.")
    finetuned = load(own_pair.finetuned)
    repaired = deltamend.repair_state_dict(renamed_base, finetuned, rename="odd.=model.")
    assert_same(repaired, tmp_path / "out")
    assert len(repaired.records) == 16
    assert repaired.only_in_base == ()


def test_two_names_may_not_become_one() -> None:
    base = {"a.w": torch.zeros(3, 4), "b.w": torch.ones(3, 4)}
    with pytest.raises(
        deltamend.PairingError, match=r"two tensors of BASE would both be renamed to 'b\.w'; give another rename="
    ):
        deltamend.repair_state_dict(base, {"b.w": torch.ones(3, 4)}, rename="a.=b.")


def test_fused_weights_are_split_as_in_folders(gpt2_pair: Pair, tmp_path: Path) -> None:
    deltamend.repair(gpt2_pair.base, gpt2_pair.finetuned, tmp_path / "out", split_fused=True)
    deltamend.repair(gpt2_pair.base, gpt2_pair.finetuned, tmp_path / "whole")
    config = json.loads((gpt2_pair.base / "config.json").read_text())
    repaired = deltamend.repair_state_dict(
        load(gpt2_pair.base), load(gpt2_pair.finetuned), configs=(config, config), split_fused=True
    )
    assert_same(repaired, tmp_path / "out")
    name = "transformer.h.0.attn.c_attn.weight"
    assert not torch.equal(repaired.tensors[name], load(tmp_path / "whole")[name])
    assert repaired.records[name].reason == "3 filtered"


def test_stochastic_rounding_draws_the_same_bits_as_in_folders(llama_pair: Pair, tmp_path: Path) -> None:
    half: dict[str, Any] = {"method": "wise-ft", "parameters": {"alpha": 0.5}, "vectors": 0.5}
    base, finetuned = load(llama_pair.base), load(llama_pair.finetuned)
    deltamend.repair(llama_pair.base, llama_pair.finetuned, tmp_path / "out", rounding="stochastic", **half)
    for workers in (1, 3):
        repaired = deltamend.repair_state_dict(base, finetuned, rounding="stochastic", workers=workers, **half)
        assert_same(repaired, tmp_path / "out")
    nearest = deltamend.repair_state_dict(base, finetuned, **half)
    assert not all(torch.equal(nearest.tensors[name], tensor) for name, tensor in repaired.tensors.items())


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"output": "adapter"}, "^output: tensors in memory are not written to files; leave this option out$"),
        ({"max_shard_size": "1GB"}, "^max_shard_size: tensors in memory are not written to files"),
        (
            {"method": "auto"},
            r'^method="auto": to recommend a method both models must be run, .*deltamend\.recommend\(BASE, FINETUNED\)',
        ),
        ({"method": "tise"}, "did you mean 'ties'"),
        ({"densty": 1}, "^densty: this option does not exist"),
        (
            {"device": "nonsense"},
            "^device: 'nonsense' cannot be used on this machine .*leave this option out to use the CPU",
        ),
        ({"workers": 0}, "^workers: 0 is too few; give 1 or more$"),
    ],
)
def test_options_that_mean_nothing_in_memory_are_refused(options: dict[str, Any], says: str) -> None:
    tensors = {"a": torch.zeros(4, 5)}
    with pytest.raises(deltamend.UsageError, match=says):
        deltamend.repair_state_dict(tensors, tensors, **options)
