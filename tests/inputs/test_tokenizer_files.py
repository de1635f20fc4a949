"""Which row belongs to which token, by every kind of file that tokenizers are stored in."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deltamend.errors import CheckpointError
from deltamend.inputs.tokenizer_files import TokenTable, _of_pieces, read_token_table

TOKENS = ["<unk>", "▁the", "ab", "é", "<0x0A>"]
ROWS = {token: row for row, token in enumerate(TOKENS)}


def fast(folder: Path) -> str:
    content = {
        "model": {"vocab": {token: row for token, row in ROWS.items() if row < 4}},
        "added_tokens": [{"content": "<0x0A>", "id": 4}],
    }
    (folder / "tokenizer.json").write_text(json.dumps(content))
    return "tokenizer.json"


def unigram(folder: Path) -> str:
    (folder / "tokenizer.json").write_text(json.dumps({"model": {"vocab": [[token, -1.0] for token in TOKENS]}}))
    return "tokenizer.json"


def slow(folder: Path) -> str:
    (folder / "vocab.json").write_text(json.dumps(ROWS))
    return "vocab.json"


def words(folder: Path) -> str:
    (folder / "vocab.txt").write_text("\n".join(TOKENS) + "\n", encoding="utf-8")
    return "vocab.txt"


def field(number: int, data: bytes) -> bytes:
    return bytes([number << 3 | 2, len(data)]) + data


def pieces(folder: Path) -> str:
    """As sentencepiece_model.proto says: pieces of a text, a score and a kind; then the settings of the trainer."""
    messages = [
        field(1, field(1, token.encode()) + b"\x15\x00\x00\x80\xbf" + (b"\x18\x02" if row == 0 else b""))
        for row, token in enumerate(TOKENS)
    ]
    (folder / "tokenizer.model").write_bytes(b"".join(messages) + field(2, b"\x20\x80\x7d"))
    return "tokenizer.model"


@pytest.mark.parametrize("write", [fast, unigram, slow, words, pieces], ids=lambda write: write.__name__)
def test_every_kind_of_vocabulary_is_read(write: Callable[[Path], str], tmp_path: Path) -> None:
    assert read_token_table(tmp_path) is None
    file = write(tmp_path)
    assert read_token_table(tmp_path) == TokenTable(file, ROWS)


def test_added_tokens_are_found_in_the_files_beside_the_vocabulary(tmp_path: Path) -> None:
    slow(tmp_path)
    (tmp_path / "added_tokens.json").write_text(json.dumps({"<a>": 5, "ab": 99}))
    decoder = {"6": {"content": "<b>"}, "²": {"content": "<c>"}, "7": "<d>", "8": {"content": 8}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"added_tokens_decoder": decoder}))
    assert read_token_table(tmp_path) == TokenTable("vocab.json", ROWS | {"<a>": 5, "<b>": 6})


def test_rows_that_are_no_numbers_do_not_count(tmp_path: Path) -> None:
    (tmp_path / "vocab.json").write_text(json.dumps({"a": 1, "b": -1, "c": "2", "d": True, "e": None}))
    assert read_token_table(tmp_path) == TokenTable("vocab.json", {"a": 1})


@pytest.mark.parametrize(
    "data", [b"IQ== 0\nIg== 1\n", b"", b"\x0a\xff", b"\x0a\x03\x0a\x01\xff", b"\xff" * 40, b"\x0f"]
)
def test_a_file_that_is_no_sentencepiece_model_lists_no_tokens(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(data)
    assert read_token_table(tmp_path) is None


@given(st.binary(max_size=60))
def test_any_bytes_are_read_or_are_none(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "any.model"
    path.write_bytes(data)
    assert all(isinstance(token, str) and isinstance(row, int) for token, row in _of_pieces(path).items())


def test_a_vocabulary_that_is_damaged_is_named(tmp_path: Path) -> None:
    (tmp_path / "vocab.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"vocab\.json: not valid JSON"):
        read_token_table(tmp_path)
