"""Names of BASE and FINETUNED that differ by a prefix."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import deltamend
from tests.conftest import llama, save_pair
from tests.inputs.checkpoints import Cli, renamed, wrap_config
from tests.reference import load


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
    renamed(pair.base, lambda name: name.replace("language_model.", "odd."))
    printed = deltamend_cli("repair", pair.base, pair.finetuned, tmp_path / "no")
    assert (printed.code, "no matrix has the same name" in printed.err) == (1, True)
    printed = deltamend_cli("repair", pair.base, pair.finetuned, tmp_path / "told", "--rename", "odd.=")
    assert printed.code == 0, printed.err
    told = load(tmp_path / "told")
    assert all(torch.equal(told[name], theirs[name]) for name in theirs)
    for wrong in ("odd.", "x=y"):
        assert deltamend_cli("repair", pair.base, pair.finetuned, tmp_path / "w", "--rename", wrong).code == 2


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
