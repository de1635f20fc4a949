"""Vocabularies that differ: rows of the embedding are matched by token."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
)

import deltamend
from tests.conftest import llama, save_pair
from tests.inputs.checkpoints import check, tokenizer
from tests.inputs.numpy_pairs import body, normal, read, tuned, write
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


def padded(
    tmp_path: Path, base_tokens: list[str], finetuned_tokens: list[str], rows: tuple[int, int]
) -> tuple[Path, Path]:
    """Two models whose vocabularies have more rows than tokens; the head has a bias."""
    random = np.random.default_rng(0)
    folders = []
    for name, tokens, count in (("base", base_tokens, rows[0]), ("finetuned", finetuned_tokens, rows[1])):
        vocabulary = {key: normal(random, (count, 32)) for key in ("model.embed_tokens.weight", "lm_head.weight")}
        tensors = body(random) | vocabulary | {"lm_head.bias": normal(random, (count,))}
        folders.append(write(tmp_path / name, tensors, vocab_size=count))
        tokenizer(folders[-1], tokens)
    same = read(folders[0])
    write(folders[1], read(folders[1]) | tuned(random, {name: same[name] for name in body(random)}))
    return folders[0], folders[1]


T = [f"t{row}" for row in range(100)]
CHANGES = {
    "new tokens in padding rows": (T[:90], [*T[:90], "<think>", "</think>"], (100, 100), {90, 91}),
    "new tokens in padding rows and beyond": (T[:90], [*T[:90], *(f"n{row}" for row in range(20))], (100, 112), {*range(90, 112)}),
    "a reserved token was given a new name": (T[:90], [*T[:5], "<think>", *T[6:90]], (100, 100), {5}),
    "the last tokens are gone": (T[:90], T[:80], (100, 100), {*range(80, 90)}),
    "the vocabulary shrank": (T[:90], T[:80], (100, 88), {*range(80, 88)}),
    "tokens moved": (T[:90], ["<new>", *T[:89]], (100, 100), {0}),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("case", CHANGES)
def test_rows_are_shared_by_token_also_where_no_row_was_added(case: str, tmp_path: Path) -> None:
    ours, theirs, rows, new = CHANGES[case]
    folders = padded(tmp_path, ours, theirs, rows)
    reports = {
        method: deltamend.repair(*folders, tmp_path / method, method=method, allow_unrelated=True, vectors=vectors)
        for method, vectors in (("revert", "base"), ("none", "finetuned"))
    }
    base, finetuned, out = (read(folder) for folder in (*folders, tmp_path / "revert"))
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        for row in range(rows[1]):
            token = theirs[row] if row < len(theirs) else None
            own = row if token is None else ours.index(token) if token in ours else None
            kept = row in new
            assert kept == (own is None or (token is None and (row < len(ours) or row >= rows[0])))
            right = finetuned[name][row] if kept or own is None else base[name][own]
            assert np.array_equal(out[name][row], right), (name, row)
    assert np.array_equal(out["lm_head.bias"], finetuned["lm_head.bias"]), "its entries belong to other tokens"
    (reason,) = {tensor.reason for tensor in reports["revert"].tensors if tensor.name == "lm_head.weight"}
    assert reason.startswith(f"the tokenizers differ; {rows[1] - len(new)} of {rows[1]} rows have a token")
    unchanged = read(tmp_path / "none")
    assert all(np.array_equal(unchanged[name], finetuned[name]) for name in finetuned)


def test_padding_rows_that_no_tokenizer_names_are_repaired_by_number(tmp_path: Path) -> None:
    folders = padded(tmp_path, T[:90], [*T[:90], "<new>"], (100, 100))
    deltamend.repair(*folders, tmp_path / "out", method="revert", allow_unrelated=True)
    name = "model.embed_tokens.weight"
    assert np.array_equal(read(tmp_path / "out")[name][91:], read(folders[0])[name][91:])


NAMES = {
    "as InternLM calls them": ("model.tok_embeddings.weight", "output.weight"),
    "as T5 calls them": ("shared.weight", "lm_head.weight"),
    "as RWKV calls them": ("model.emb.weight", "head.weight"),
    "as BERT calls them": ("bert.embeddings.word_embeddings.weight", "cls.predictions.decoder.weight"),
    "one table more, as in Gemma 3n": (
        "model.language_model.embed_tokens.weight",
        "model.language_model.embed_tokens_per_layer.weight",
    ),
}


@pytest.mark.parametrize("case", NAMES)
def test_rows_are_shared_by_token_whatever_the_table_is_called_and_the_config_says(case: str, tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    other = {"vision.embeddings.position_embedding.weight": normal(random, (100, 32))}
    base = body(random) | other | {name: normal(random, (100, 32)) for name in NAMES[case]}
    finetuned = tuned(random, base)
    for name in NAMES[case]:
        finetuned[name][90:92] = normal(random, (2, 32))
    folders = (
        write(tmp_path / "base", base, vocab_size=77),
        write(tmp_path / "finetuned", finetuned, vocab_size=77),
    )
    tokenizer(folders[0], T[:90])
    tokenizer(folders[1], [*T[:90], "<think>", "</think>"])
    deltamend.repair(*folders, tmp_path / "out", method="revert")
    out = read(tmp_path / "out")
    for name, tensor in out.items():
        right = base[name].copy()
        if tensor.ndim == 1:
            right = finetuned[name]
        elif name in NAMES[case]:
            right[90:92] = finetuned[name][90:92]
        assert np.array_equal(tensor, right), name


@pytest.mark.parametrize("side", ["base", "finetuned"])
def test_a_side_without_a_tokenizer_is_told(side: str, tmp_path: Path) -> None:
    folders = padded(tmp_path, T[:90], [*T[:90], "<new>"], (100, 100))
    (tmp_path / side / "tokenizer.json").unlink()
    report = deltamend.repair(*folders, tmp_path / "out", method="revert", allow_unrelated=True)
    other = "FINETUNED" if side == "base" else "BASE"
    assert (
        f"only {other} has a tokenizer that lists its tokens, so rows of the vocabulary are matched by their numbers"
        in (report.manifest.notes)
    )
    name = "model.embed_tokens.weight"
    assert np.array_equal(read(tmp_path / "out")[name], read(folders[0])[name])


def test_tokenizers_in_other_formats_are_compared_unless_they_count_from_elsewhere(tmp_path: Path) -> None:
    folders = padded(tmp_path, T[:90], [*T[:90], "<new>"], (100, 100))
    for shift, note in ((0, False), (1, True)):
        (folders[0] / "tokenizer.json").unlink(missing_ok=True)
        (folders[0] / "vocab.json").write_text(json.dumps({token: row + shift for row, token in enumerate(T[:90])}))
        report = deltamend.repair(*folders, tmp_path / f"out{shift}", method="revert", allow_unrelated=True)
        assert any("number most of their tokens differently" in text for text in report.manifest.notes) == note


def test_the_same_files_are_not_read(tmp_path: Path) -> None:
    folders = padded(tmp_path, T[:90], T[:90], (100, 100))
    for folder in folders:
        (folder / "tokenizer.json").write_text("{ damaged")
    report = deltamend.repair(*folders, tmp_path / "out", method="revert", allow_unrelated=True)
    assert not any("tokenizers" in tensor.reason for tensor in report.tensors)


GROWN: dict[str, tuple[dict[str, object], dict[str, object], int]] = {
    "vocab_size in llm_config": ({"llm_config": {"vocab_size": 100}}, {"llm_config": {"vocab_size": 104}}, 0),
    "the embedding has rows of its own": (
        {"text_config": {"vocab_size": 100}},
        {"text_config": {"vocab_size": 104}},
        8,
    ),
    "no config says": ({}, {}, 0),
    "a config says something else": ({"vocab_size": 77}, {"vocab_size": 77}, 3),
}


@pytest.mark.parametrize("case", GROWN)
def test_the_shapes_say_that_a_vocabulary_grew(case: str, tmp_path: Path) -> None:
    ours, theirs, own = GROWN[case]
    random = np.random.default_rng(0)
    base = body(random) | {
        "model.embed_tokens.weight": normal(random, (100 + own, 32)),
        "lm_head.weight": normal(random, (100, 32)),
    }
    finetuned = {
        name: np.concatenate([tensor, normal(random, (4, 32))]) if "lm_head" in name or "embed" in name else tensor
        for name, tensor in tuned(random, base).items()
    }
    folders = write(tmp_path / "base", base, **ours), write(tmp_path / "finetuned", finetuned, **theirs)
    deltamend.repair(*folders, tmp_path / "out", method="revert")
    out = read(tmp_path / "out")
    for name, rows in (("model.embed_tokens.weight", 100 + own), ("lm_head.weight", 100)):
        assert np.array_equal(out[name][:rows], base[name])
        assert np.array_equal(out[name][rows:], finetuned[name][rows:])


def test_an_embedding_of_another_name_grew_although_its_config_was_left_as_it_was(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    names = "model.tok_embeddings.weight", "output.weight"
    base = body(random) | {name: normal(random, (100, 32)) for name in names}
    finetuned = {
        name: np.concatenate([tensor, normal(random, (4, 32))]) if name in names else tensor
        for name, tensor in tuned(random, base).items()
    }
    folders = (
        write(tmp_path / "base", base, vocab_size=100),
        write(tmp_path / "finetuned", finetuned, vocab_size=100),
    )
    deltamend.repair(*folders, tmp_path / "out", method="revert")
    out = read(tmp_path / "out")
    for name in names:
        assert np.array_equal(out[name], np.concatenate([base[name], finetuned[name][100:]]))


def test_a_head_that_did_not_grow_as_the_embedding_did_is_no_resized_vocabulary(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    base = body(random) | {
        "model.embed_tokens.weight": normal(random, (100, 32)),
        "lm_head.weight": normal(random, (50, 32)),
    }
    finetuned = tuned(random, base) | {"lm_head.weight": normal(random, (100, 32))}
    folders = write(tmp_path / "base", base), write(tmp_path / "finetuned", finetuned)
    with pytest.raises(deltamend.PairingError, match=r"lm_head\.weight.*which is not a resized vocabulary"):
        deltamend.repair(*folders, tmp_path / "out")
