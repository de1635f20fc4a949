"""Query, key and value, or gate and up, that are stored as one weight."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import (
    PreTrainedModel,
)

import deltamend
from tests.conftest import gpt2, save_pair
from tests.inputs.checkpoints import check, mixtral, neox, phi3, tuned
from tests.reference import load


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
