"""Vocabularies that differ: rows of the embedding are matched by token."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
)

import deltamend
from tests.conftest import llama, save_pair
from tests.inputs.checkpoints import check, tokenizer
from tests.reference import load


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
