"""Sidecars, names and cards that are odd: copied, left out with a reason, or refused in one line."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import deltamend
from tests.conftest import Pair, Printed


def write(folder: Path, config: str = "{}", **tensors: torch.Tensor) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text(config)
    save_file(tensors, folder / "model.safetensors")
    return folder


CARDS = {"date": "---\ndate: 2024-02-30\n---\n", "nested": "---\na: " + "[" * 3000 + "\n---\n"}


@pytest.mark.slow
@pytest.mark.parametrize("card", CARDS)
def test_a_card_that_is_no_yaml_is_no_failure(own_pair: Pair, tmp_path: Path, card: str) -> None:
    (own_pair.finetuned / "README.md").write_text(CARDS[card])
    deltamend.repair(own_pair.base, own_pair.finetuned, tmp_path / "out")
    assert (tmp_path / "out" / "README.finetuned.md").read_text() == CARDS[card]


def test_names_that_are_no_utf_8_are_left_out_and_said(own_pair: Pair, tmp_path: Path) -> None:
    (own_pair.finetuned / os.fsdecode(b"caf\xe9.txt")).write_text("")
    odd = own_pair.finetuned.rename(tmp_path / os.fsdecode(b"fin\xe9"))
    report = deltamend.repair(own_pair.base, odd, tmp_path / "out")
    assert [file.name for file in report.manifest.left_out] == ["'caf\\udce9.txt'"]
    assert deltamend.verify(tmp_path / "out") == []


def test_half_a_surrogate_in_the_config_can_be_written(tmp_path: Path) -> None:
    base = write(tmp_path / "base", a=torch.ones(2, 3))
    finetuned = write(tmp_path / "finetuned", config='{"x": "\\ud800"}', a=torch.zeros(2, 3))
    deltamend.repair(base, finetuned, tmp_path / "out", out_dtype="bf16")
    assert '"\\ud800"' in (tmp_path / "out" / "config.json").read_text()


def test_shard_names_that_cannot_be_printed_are_refused(
    own_pair: Pair, tmp_path: Path, deltamend_cli: Callable[..., Printed]
) -> None:
    index = own_pair.finetuned / "model.safetensors.index.json"
    shard = min(own_pair.finetuned.glob("model-*.safetensors"))
    shard.rename(own_pair.finetuned / "m\x1b[31m\n.safetensors")
    index.write_text(index.read_text().replace(shard.name, "m\\u001b[31m\\n.safetensors"))
    printed = deltamend_cli("repair", own_pair.base, own_pair.finetuned, tmp_path / "out")
    assert printed.code == 1
    assert len(printed.err.splitlines()) == 1
    assert "\x1b" not in printed.err


def test_a_sidecar_that_goes_away_is_named(own_pair: Pair, tmp_path: Path) -> None:
    def remove(_name: str, _share: float) -> None:
        (own_pair.finetuned / "tokenizer.json").unlink(missing_ok=True)

    with pytest.raises(deltamend.CheckpointError, match=r"finetuned/tokenizer.json: cannot be read"):
        deltamend.repair(own_pair.base, own_pair.finetuned, tmp_path / "out", progress=remove)
    assert {path.name for path in tmp_path.iterdir()} == {"base", "finetuned"}
