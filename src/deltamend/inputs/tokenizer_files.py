"""Read from the files of a tokenizer which row of the embedding belongs to which token."""

from __future__ import annotations

import stat
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from deltamend.checkpoint.json_file import MAX_JSON_BYTES, read_json
from deltamend.errors import CheckpointError

_TOKENIZER, _VOCABULARY, _WORDS, _PIECES = "tokenizer.json", "vocab.json", "vocab.txt", "tokenizer.model"
_ADDED, _CONFIG = "added_tokens.json", "tokenizer_config.json"
_PIECE_FIELD, _TEXT_FIELD = 1, 1  # ModelProto.pieces and SentencePiece.piece of sentencepiece_model.proto
_LENGTH_DELIMITED = 2
TOKENIZER_FILES = (_TOKENIZER, _VOCABULARY, _WORDS, _PIECES, _ADDED, _CONFIG)
"""The files that `read_token_table` reads."""


class TokenTable(NamedTuple):
    """The row of each token, and the name of the file that lists most of them."""

    file: str
    rows: dict[str, int]


def read_token_table(folder: Path) -> TokenTable | None:
    """The rows of the tokens, by the tokenizer of a folder; None where it has none that lists a vocabulary.

    The vocabulary is that of the first of tokenizer.json, vocab.json, vocab.txt and tokenizer.model (sentencepiece) that is
    there and lists one. The tokens of tokenizer.json's `added_tokens`, added_tokens.json and tokenizer_config.json's
    `added_tokens_decoder` are added to it.

    Raises:
        CheckpointError: one of the files cannot be read.
    """
    readers: tuple[tuple[str, Callable[[Path], Mapping[str, Any]]], ...] = (
        (_TOKENIZER, _of_tokenizer), (_VOCABULARY, read_json), (_WORDS, _of_words), (_PIECES, _of_pieces),
    )  # fmt: skip
    tables = (TokenTable(name, _rows(read(folder / name))) for name, read in readers if (folder / name).is_file())
    found = next((table for table in tables if table.rows), None)
    if found is not None:
        for name, read in ((_ADDED, read_json), (_CONFIG, _of_config)):
            if (folder / name).is_file():
                for token, row in _rows(read(folder / name)).items():
                    found.rows.setdefault(token, row)
    return found


def _rows(content: Mapping[str, Any]) -> dict[str, int]:
    return {
        token: row for token, row in content.items() if isinstance(row, int) and not isinstance(row, bool) and row >= 0
    }


def _of_tokenizer(path: Path) -> dict[str, Any]:
    content = read_json(path)
    model = content.get("model")
    vocabulary: Any = model.get("vocab") if isinstance(model, dict) else None
    found: dict[str, Any] = {}
    if isinstance(vocabulary, Mapping):
        found = dict(vocabulary)
    elif isinstance(vocabulary, list):  # Unigram: pairs of token and score
        tokens = [entry[0] if isinstance(entry, list) and entry else None for entry in vocabulary]
        found = {token: row for row, token in enumerate(tokens) if isinstance(token, str)}
    added = content.get("added_tokens")
    for token in added if isinstance(added, list) else []:
        if isinstance(token, dict) and isinstance(token.get("content"), str):
            found[token["content"]] = token.get("id")
    return found


def _of_config(path: Path) -> dict[str, Any]:
    """The tokens of `added_tokens_decoder`, whose keys are rows written as text."""
    decoder = read_json(path).get("added_tokens_decoder")
    found = {}
    for row, token in (decoder if isinstance(decoder, dict) else {}).items():
        content = token.get("content") if isinstance(token, dict) else None
        if isinstance(content, str) and row.isascii() and row.isdigit() and len(row) < 10:
            found[content] = int(row)
    return found


def _of_words(path: Path) -> dict[str, int]:
    """A line for each token, as BERT's tokenizers have it."""
    text = _bytes_of(path).decode("utf-8", "surrogateescape")
    return {line.rstrip("\r"): row for row, line in enumerate(text.split("\n")) if line.strip()}


def _of_pieces(path: Path) -> dict[str, int]:
    """The pieces of a sentencepiece model; empty where the file is none, such as a table of tiktoken.

    The file is a protobuf message, of which only the texts of the pieces are wanted. They are read here, and not by the
    library, so that it does not depend on what is installed whether rows are matched by token.
    """
    data = memoryview(_bytes_of(path))
    try:
        pieces = [
            bytes(text).decode("utf-8")
            for message in _fields(data, _PIECE_FIELD)
            for text in list(_fields(message, _TEXT_FIELD))[:1]
        ]
    except (ValueError, IndexError):
        return {}
    return {piece: row for row, piece in enumerate(pieces)}


def _fields(data: memoryview, wanted: int) -> Iterator[memoryview]:
    """The length-delimited fields of one number in a protobuf message.

    Raises:
        ValueError: it is no such message.
        IndexError: it ends early.
    """
    place = 0
    while place < len(data):
        key, place = _varint(data, place)
        kind = key & 7
        if kind == _LENGTH_DELIMITED:
            length, place = _varint(data, place)
            if length > len(data) - place:
                raise ValueError("the message ends early")
            if key >> 3 == wanted:
                yield data[place : place + length]
            place += length
        elif kind == 0:
            _, place = _varint(data, place)
        elif kind in (1, 5):
            place += 8 if kind == 1 else 4
        else:
            raise ValueError("no protobuf message")


def _varint(data: memoryview, place: int) -> tuple[int, int]:
    """A number of seven bits a byte from `place` on, and the place after it."""
    value = 0
    for number in range(10):
        byte = data[place + number]
        value |= (byte & 127) << (7 * number)
        if byte < 128:
            return value, place + number + 1
    raise ValueError("a number of more than ten bytes")


def _bytes_of(path: Path) -> bytes:
    try:
        found = path.stat()
        if not stat.S_ISREG(found.st_mode) or found.st_size > MAX_JSON_BYTES:
            raise CheckpointError(f"{path}: no regular file of a tokenizer's size; check where it comes from")
        return path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror}); check its permissions") from error
