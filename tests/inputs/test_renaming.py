"""Names of BASE and FINETUNED that differ by a prefix."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

import deltamend
from tests.conftest import llama, save_pair
from tests.inputs.checkpoints import Cli, renamed, wrap_config
from tests.inputs.numpy_pairs import body, normal, read, tuned, write
from tests.reference import load


@pytest.mark.slow
def test_names_that_differ_by_a_prefix_are_matched_by_a_rule_that_is_printed(
    tmp_path: Path, deltamend_cli: Cli
) -> None:
    pair = save_pair(llama(torch.float32), tmp_path)
    deltamend.repair(pair.base, pair.finetuned, tmp_path / "expected")
    renamed(pair.base, lambda name: f"language_model.{name}")
    printed = deltamend_cli("repair", pair.base, pair.finetuned, tmp_path / "out")
    assert printed.code == 0, printed.err
    assert "BASE's 'language_model.' is FINETUNED's '': 16 of 16 matrices get a partner this way" in printed.out
    ours, theirs = load(tmp_path / "out"), load(tmp_path / "expected")
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    renamed(pair.base, lambda name: name.replace("proj.weight", "map.weight"))
    printed = deltamend_cli("repair", pair.base, pair.finetuned, tmp_path / "no")
    assert (printed.code, "14 of 16 matrices of FINETUNED (" in printed.err) == (1, True)
    assert "have no partner in BASE and would not be repaired: 'model.layers.0.mlp.down_proj.weight'" in printed.err
    printed = deltamend_cli("repair", pair.base, pair.finetuned, tmp_path / "part", "--allow-unpaired")
    assert (printed.code, "in 2 of the 16 matrices" in printed.out) == (0, True)
    for wrong in ("odd.", "x=y"):
        assert deltamend_cli("repair", pair.base, pair.finetuned, tmp_path / "w", "--rename", wrong).code == 2


@pytest.mark.slow
def test_several_rules_are_given_as_several_flags_as_a_list_in_yaml_and_as_one_text(
    tmp_path: Path, deltamend_cli: Cli
) -> None:
    pair = save_pair(llama(torch.float32), tmp_path)
    deltamend.repair(pair.base, pair.finetuned, tmp_path / "expected", method="wise-ft")
    expected = load(tmp_path / "expected")
    renamed(pair.base, lambda name: name.replace(".mlp.", ".ffn.").replace("layers.0.", "first.0."))
    rules = [f"model.{old}=model.{new}" for old, new in (
        ("first.0.ffn.", "layers.0.mlp."), ("first.0.", "layers.0."), ("layers.1.ffn.", "layers.1.mlp."),
    )]  # fmt: skip
    flags = [part for rule in rules for part in ("--rename", rule)]
    printed = deltamend_cli("repair", pair.base, pair.finetuned, tmp_path / "flags", "--method", "wise-ft", *flags)
    assert printed.code == 0, printed.err
    config = tmp_path / "c.yaml"
    config.write_text(yaml.safe_dump({"method": "wise-ft", "rename": rules}))
    printed = deltamend_cli("repair", "--config", config, pair.base, pair.finetuned, tmp_path / "yaml")
    assert printed.code == 0, printed.err
    report = deltamend.repair(pair.base, pair.finetuned, tmp_path / "python", method="wise-ft", rename=rules)
    assert report.manifest.options["rename"] == ", ".join(rules)
    for out in ("flags", "yaml", "python"):
        assert all(torch.equal(load(tmp_path / out)[name], expected[name]) for name in expected)
    one = deltamend.repair(
        pair.base, pair.finetuned, tmp_path / "one", method="wise-ft", rename=rules[2], allow_unpaired=True
    )
    assert one.manifest.options["rename"] == rules[2]


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
    with pytest.raises(deltamend.PairingError, match=r"two tensors of BASE would both be renamed to 'lm_head\.weight'"):
        deltamend.repair(pair.base, pair.finetuned, tmp_path / "out", rename="a.=")


def test_the_language_part_of_a_multimodal_base_may_be_fine_tuned_and_saved_alone(tmp_path: Path) -> None:
    pair = save_pair(llama(torch.float32), tmp_path)
    deltamend.repair(pair.base, pair.finetuned, tmp_path / "expected")
    wrap_config(pair.base)
    renamed(pair.base, lambda name: name.replace("model.", "model.language_model."))
    deltamend.repair(pair.base, pair.finetuned, tmp_path / "out")
    ours, theirs = load(tmp_path / "out"), load(tmp_path / "expected")
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_a_model_that_was_saved_with_peft_around_it_is_matched_or_its_factors_are_named(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    base = body(random)
    wrapped = {
        f"base_model.model.{name.replace('q_proj.', 'q_proj.base_layer.')}": tensor
        for name, tensor in tuned(random, base).items()
    }
    write(tmp_path / "base", base)
    write(tmp_path / "wrapped", wrapped)
    deltamend.repair(tmp_path / "base", tmp_path / "wrapped", tmp_path / "out", method="revert")
    out = read(tmp_path / "out")
    assert out.keys() == wrapped.keys()
    for name, tensor in base.items():
        shown = f"base_model.model.{name.replace('q_proj.', 'q_proj.base_layer.')}"
        assert np.array_equal(out[shown], tensor if tensor.ndim > 1 else wrapped[shown])

    module = "base_model.model.model.layers.0.self_attn.q_proj"
    factors = {
        f"{module}.lora_{side}.default.weight": normal(random, shape)
        for side, shape in (("A", (4, 32)), ("B", (32, 4)))
    }
    write(tmp_path / "unmerged", wrapped | factors)
    with pytest.raises(deltamend.PairingError, match=r"holds the factors of a LoRA adapter .*merge_and_unload"):
        deltamend.repair(tmp_path / "base", tmp_path / "unmerged", tmp_path / "out2", method="revert")
